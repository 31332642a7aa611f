"""Held-out activations while training: a sample of them, and the calibrated autoencoder of a state."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from sae import autoencoder
from sae.activations import batches
from sae.activations.store import HELD_OUT, ActivationRows
from sae.autoencoder import Sae
from sae.evaluation import calibrate
from sae.training.config import SaeConfig, TrainConfig
from sae.training.trainer import Trainer, TrainState
from sae.variants import VARIANTS

BATCH = 4096
# Tokens on which an autoencoder is evaluated during its training, at least.
_SAMPLE = 16_384


def sample(store: ActivationRows, seed: int) -> list[np.ndarray]:
    """A fixed sample of the held-out tokens in batches, float32 [batch, d_model] each.

    Whole chunks of the store (studies, where the model runs on the fly) are drawn, since they are read as a whole.
    """
    rows = store.rows_of(HELD_OUT)
    chunk = store.chunk_of(rows)
    first = np.flatnonzero(np.diff(chunk, prepend=-1))
    sizes = np.diff(np.append(first, len(rows)))
    order = np.random.default_rng((seed, 4)).permutation(len(first))
    drawn = order[: np.searchsorted(np.cumsum(sizes[order]), _SAMPLE) + 1]
    return list(batches.sequential(store, rows[np.isin(chunk, chunk[first[drawn]])], BATCH))


def calibrated(
    trainer: Trainer, state: TrainState, scale: float, batches: Callable[[], Iterator[np.ndarray]], meta: dict[str, Any]
) -> Sae:
    """The autoencoder of a state: its normalisation folded in, its threshold set for a mean of k features per token.

    Args:
      trainer: the trainer that the state belongs to.
      state: the state, striped.
      scale: number that activations are divided by.
      batches: starts a pass over the tokens that set the threshold, float32 [batch, d_model] each.
      meta: entries to add to the autoencoder's `meta`.
    """
    ordered = trainer.ordered(state)
    folded, followed = autoencoder.fold(ordered.params, float(ordered.threshold), scale)
    params = jax.device_put(folded, jax.devices()[0])
    k, variant = trainer.sae.k, VARIANTS.get(trainer.sae.kind)
    threshold = variant.threshold
    if threshold is None:
        threshold = calibrate.threshold_for_l0(params, batches, k)
    meta = meta | {
        "normalization": scale,
        "running_threshold": followed,
        "sae": _plain(trainer.sae),
        "train": _plain(trainer.config),
    }
    return Sae(params, threshold, k, trainer.sae.group_sizes, meta, variant.per_token)


def _plain(config: SaeConfig | TrainConfig) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(config).items()}
