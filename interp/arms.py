"""Control arms: what is explained and scored like features and should not be as easy to explain.

  raw dimensions        single dimensions of the residual stream, either sign
  shuffled autoencoder  encoder columns with their entries shuffled: directions of the same entries, pointing anywhere

Neither has a natural zero, so both are active by rank: above the quantile of their values that makes each one as dense
as a feature of the autoencoder, drawn at random, because what is rare is easier or harder to explain. They are written
as one autoencoder, so that they go the same way as the features.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from interp.index import SplitIndex
from sae.activations import TRAIN, Store
from sae.autoencoder import Sae

RAW, SHUFFLED = "raw dimensions", "shuffled autoencoder"
ARMS = (RAW, SHUFFLED)
# Train tokens that the quantiles are taken over.
_CALIBRATION = 1 << 16


@dataclasses.dataclass(frozen=True)
class Controls:
    """The features of both control arms, one after the other.

    Attributes:
      sae: they, as an autoencoder; the first group of features is the raw dimensions, the second is shuffled.
      matched: int32 [controls], the feature of the autoencoder whose density each one has.
      direction: for each the dimension with its sign ("+17"), or "" where it is no dimension.
    """

    sae: Sae
    matched: np.ndarray
    direction: tuple[str, ...]

    def arm(self, number: int) -> str:
        """The arm that a control belongs to."""
        return ARMS[number >= self.sae.group_sizes[0]]


def build(sae: Sae, store: Store, train: SplitIndex, eligible: np.ndarray, count: int, seed: int) -> Controls:
    """Makes `count` controls of each arm, or as many as there are signed dimensions.

    Args:
      sae: of raw activations.
      store: the activations.
      train: the features' activity on the train split.
      eligible: int [n], features to take densities and columns from, at least one.
      count: controls of each arm.
      seed: of all draws.
    """
    rng = np.random.default_rng((seed, count))
    signed = rng.permutation(2 * sae.d_model)[:count]
    dimension, sign = signed % sae.d_model, np.where(signed < sae.d_model, 1, -1)
    raw = np.zeros((sae.d_model, len(signed)), np.float32)
    raw[dimension, np.arange(len(signed))] = sign
    matched = np.concatenate([_draw(rng, eligible, len(signed)), _draw(rng, eligible, count)])
    columns = np.asarray(sae.params["W_enc"])[:, matched[len(signed) :]]
    encoder = np.concatenate([raw, rng.permuted(columns, axis=0)], axis=1)  # [d_model, controls]
    density = train.n_tokens.sum(1)[matched] / train.total_tokens
    cut = _quantiles(store, encoder, 1 - density, rng)
    params = {
        "W_enc": jnp.asarray(encoder),
        "b_enc": jnp.asarray(-cut),
        "W_dec": jnp.asarray(encoder.T),
        "b_dec": jnp.zeros(sae.d_model, jnp.float32),
    }
    names = tuple(f"{s:+d}"[0] + str(d) for d, s in zip(dimension, sign, strict=True))
    group_sizes = (len(signed), count)
    return Controls(Sae(params, 0.0, sae.k, group_sizes), matched.astype(np.int32), names + ("",) * count)


def _draw(rng: np.random.Generator, eligible: np.ndarray, count: int) -> np.ndarray:
    return rng.choice(eligible, count, replace=count > len(eligible))


def _quantiles(store: Store, encoder: np.ndarray, level: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each column's quantile of its products with the activations of random train studies. float32 [columns]"""
    studies = store.studies
    train = np.flatnonzero(np.array(studies["split"].to_pylist()) == TRAIN)
    starts, stops = studies["start"].to_numpy(), studies["stop"].to_numpy()
    drawn, rows = [], 0
    for study in rng.permutation(train):
        if rows >= _CALIBRATION:
            break
        drawn.append((int(starts[study]), int(stops[study])))
        rows += int(stops[study] - starts[study])
    values = np.concatenate(store.read_ranges(sorted(drawn))).astype(np.float32) @ encoder
    return np.array([np.quantile(values[:, i], q) for i, q in enumerate(level)], np.float32)
