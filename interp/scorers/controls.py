"""Controls: what is explained and scored like features, to compare the features' scores with.

  raw dimensions        single dimensions of the residual stream, either sign
  shuffled weights      encoder columns with their entries shuffled: directions of the same entries, pointing anywhere
  shuffled activations  encoder columns as they are, on activations that were moved to other tokens

The last knows nothing of the text that it is compared with, so that any score above chance is a fault of the scoring.
The first two read the same activations as the features: what they score is what needs no training.

None has a natural zero, so all are active by rank: above the quantile of their values that makes each one as dense
as a feature of the autoencoder, drawn at random, because what is rare is easier or harder to explain. They are written
as autoencoders, so that they go the same way as the features.
"""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from interp.exemplars.index import SplitIndex
from sae.activations.store import TRAIN, ActivationStore
from sae.autoencoder import Sae

RAW, WEIGHTS, ACTIVATIONS = "raw dimensions", "shuffled weights", "shuffled activations"
CONTROLS = (RAW, WEIGHTS, ACTIVATIONS)
# Train tokens that the quantiles are taken over.
_CALIBRATION = 1 << 16


@dataclasses.dataclass(frozen=True)
class ControlFeatures:
    """Controls that read the same activations, as the features of an autoencoder.

    Attributes:
      sae: the autoencoder.
      store: the activations that it reads.
      kind: for each control one of `CONTROLS`.
      matched: int32 [controls], the feature of the real autoencoder whose density each one has.
      direction: for each the dimension with its sign ("+17"), or "" where it is no dimension.
    """

    sae: Sae
    store: ActivationStore
    kind: tuple[str, ...]
    matched: np.ndarray
    direction: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class ShiftedStore(ActivationStore):
    """A store in which every token has the activations of the one half a store further on.

    What lies together stays together, so that features have the bursts that they have in text; and it is read as fast.
    """

    def read_ranges(self, ranges: Sequence[tuple[int, int]]) -> list[np.ndarray]:
        """As of the store, half of it further on."""
        half, n = self.n_tokens // 2, self.n_tokens
        found = []
        for start, stop in ranges:
            begin, end = start + half, stop + half
            whole = begin // n == (end - 1) // n and end % n
            parts = [(begin % n, end % n)] if whole else [(begin % n, n), (0, end % n)]
            found.append(np.concatenate(super().read_ranges(parts)))
        return found


def build(
    sae: Sae, store: ActivationStore, train: SplitIndex, eligible: np.ndarray, count: int, seed: int
) -> list[ControlFeatures]:
    """Makes `count` controls of each kind, or of raw dimensions at most as many as there are with their signs.

    Args:
      sae: the autoencoder, of activations that are not normalised.
      store: the activations.
      train: the features' activity on the train split.
      eligible: int [n], features to take densities and columns from, at least one.
      count: number of controls of each kind.
      seed: seed of all draws.
    """
    rng = np.random.default_rng((seed, count))
    signed = rng.permutation(2 * sae.d_model)[:count]
    dimension, sign = signed % sae.d_model, np.where(signed < sae.d_model, 1, -1)
    raw = np.zeros((sae.d_model, len(signed)), np.float32)
    raw[dimension, np.arange(len(signed))] = sign
    names = tuple(f"{s:+d}"[0] + str(d) for d, s in zip(dimension, sign, strict=True))
    matched = [_draw(rng, eligible, n) for n in (len(signed), count, count)]
    columns = [np.asarray(sae.params["W_enc"])[:, chosen] for chosen in matched]
    encoder = np.concatenate([raw, rng.permuted(columns[1], axis=0), columns[2]], axis=1)  # [d_model, controls]
    own = np.concatenate(matched).astype(np.int32)
    density = train.n_tokens.sum(1)[own] / train.total_tokens
    threshold = _quantiles(store, encoder, 1 - density, rng)
    kind = (RAW,) * len(signed) + (WEIGHTS,) * count + (ACTIVATIONS,) * count
    direction = names + ("",) * (2 * count)

    def controls(read: ActivationStore, part: slice) -> ControlFeatures:
        params = {
            "W_enc": jnp.asarray(encoder[:, part]),
            "b_enc": jnp.asarray(-threshold[part]),
            "W_dec": jnp.asarray(encoder[:, part].T),
            "b_dec": jnp.zeros(sae.d_model, jnp.float32),
        }
        made = Sae(params, 0.0, sae.k, (len(own[part]),))
        return ControlFeatures(made, read, kind[part], own[part], direction[part])

    first = len(signed) + count
    return [controls(store, slice(first)), controls(ShiftedStore(**vars(store)), slice(first, None))]


def _draw(rng: np.random.Generator, eligible: np.ndarray, count: int) -> np.ndarray:
    return rng.choice(eligible, count, replace=count > len(eligible))


def _quantiles(store: ActivationStore, encoder: np.ndarray, level: np.ndarray, rng: np.random.Generator) -> np.ndarray:
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
