"""Held-out activations of a training run, and the autoencoder of a state as they measure it."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sae import autoencoder, mesh
from sae.activations import batches
from sae.activations.store import HELD_OUT, ActivationRows
from sae.autoencoder import Sae
from sae.evaluation import calibrate, metrics
from sae.evaluation.striped import HeldOutTokens, StripedSae, TokenBatch, largest_batch
from sae.training.config import SaeConfig, TrainConfig
from sae.training.trainer import Trainer, TrainState
from sae.variants import VARIANTS

# Tokens on which an autoencoder is evaluated during its training, at most.
_SAMPLE = 16_384


def drawn(store: ActivationRows, n: int, seed: int) -> np.ndarray:
    """At most `n` held-out tokens, as row numbers, ascending; a larger `n` adds to those of a smaller one. int64 [n]

    Whole chunks of the store (studies, where the model runs on the fly) are drawn, all but the last one, since they
    are read as a whole.
    """
    rows = store.rows_of(HELD_OUT)
    edges = rows.chunk_edges(store.chunk_bounds()).astype(np.int64)
    sizes = np.diff(edges)
    order = np.random.default_rng((seed, 4)).permutation(len(sizes))
    chosen = order[: np.searchsorted(np.cumsum(sizes[order]), n) + 1]
    sizes = sizes[chosen]
    sizes[-1] -= max(sizes.sum() - n, 0)
    places = [np.arange(first, first + size) for first, size in zip(edges[chosen], sizes, strict=True)]
    return rows.take(np.sort(np.concatenate(places)))


def sample(store: ActivationRows, trainer: Trainer) -> HeldOutTokens:
    """A fixed sample of the held-out tokens, in one batch on the trainer's mesh."""
    return _on_mesh(store, trainer.mesh, drawn(store, _SAMPLE, trainer.config.seed), _SAMPLE)


def final_tokens(store: ActivationRows, trainer: Trainer) -> tuple[list[HeldOutTokens], list[HeldOutTokens]]:
    """The `tokens_of` the autoencoder that a trainer has trained."""
    config = trainer.config
    sizes = config.calibration_tokens, config.held_out_tokens
    return tokens_of(store, trainer.mesh, largest_batch(trainer.mesh, trainer.sae.n_features), sizes, config.seed)


def tokens_of(
    store: ActivationRows, on: Mesh, largest: int, sizes: tuple[int, int], seed: int
) -> tuple[list[HeldOutTokens], list[HeldOutTokens]]:
    """The tokens that set the final threshold, and those on which the final autoencoder is measured.

    One is part of the other, and what is in both is read once if the devices have room for it.

    Args:
      store: the activations.
      on: the mesh.
      largest: maximum number of tokens in a batch.
      sizes: maximum numbers of tokens for the threshold and for measuring.
      seed: the seed by which they are drawn.
    """
    calibration, evaluation = (drawn(store, n, seed) for n in sizes)
    fewer, more = sorted((calibration, evaluation), key=len)
    both, rest = (_on_mesh(store, on, rows, largest) for rows in (fewer, np.setdiff1d(more, fewer)))
    all_of = {len(fewer): [both], len(more): [both, rest] if rest.n else [both]}
    return all_of[len(calibration)], all_of[len(evaluation)]


def _on_mesh(store: ActivationRows, on: Mesh, rows: np.ndarray, largest: int) -> HeldOutTokens:
    def read(first: int, size: int, part: slice) -> Iterator[np.ndarray]:
        return batches.sequential(store, rows[first:], size, part)

    return HeldOutTokens(on, len(rows), read, largest)


def striped(trainer: Trainer, state: TrainState, scale: float) -> StripedSae:
    """The autoencoder of a state where it lies, its normalisation folded in."""
    params = autoencoder.scale_up(state.params, jnp.float32(scale))
    top_k = trainer.sae.k if VARIANTS.get(trainer.sae.kind).per_token else None
    return StripedSae.placed(params, trainer.mesh, trainer.sae.group_sizes, top_k)


@functools.partial(jax.jit, static_argnames=("threshold", "count"))
def _measured(sae: StripedSae, batch: TokenBatch, threshold: float | None, count: int) -> metrics.Sums:
    # One program, in which the pre-activations are computed once.
    limit = calibrate.of_batch(sae, batch, count) if threshold is None else jnp.float32(threshold)
    return metrics.of_batch(sae, limit, batch)


def measured(trainer: Trainer, state: TrainState, scale: float, tokens: HeldOutTokens) -> metrics.Sums:
    """What `metrics.summary` takes, of a state on a `sample`, which sets the threshold; the devices are not waited for.

    Args:
      trainer: the trainer that the state belongs to.
      state: the state, striped.
      scale: number that activations are divided by.
      tokens: the sample.
    """
    (batch,) = tokens
    threshold = VARIANTS.get(trainer.sae.kind).threshold
    return _measured(striped(trainer, state, scale), batch, threshold, trainer.sae.k * tokens.n + 1)


def calibrated(
    trainer: Trainer, state: TrainState, scale: float, tokens: Sequence[HeldOutTokens], meta: dict[str, Any]
) -> Sae:
    """The autoencoder of a state: its normalisation folded in, its threshold set for a mean of k features per token.

    Args:
      trainer: the trainer that the state belongs to.
      state: the state, striped.
      scale: number that activations are divided by.
      tokens: those that set the threshold.
      meta: entries to add to the autoencoder's `meta`.
    """
    k, variant = trainer.sae.k, VARIANTS.get(trainer.sae.kind)
    threshold = variant.threshold
    if threshold is None:
        threshold = calibrate.threshold_for_l0(striped(trainer, state, scale), tokens, k)
    ordered = autoencoder.scale_up(trainer.ordered(state).params, jnp.float32(scale))
    everywhere = jax.device_put(ordered, mesh.sharding(trainer.mesh))
    params = {name: value.addressable_data(0) for name, value in everywhere.items()}
    followed = np.asarray(state.threshold)
    meta = meta | {
        "normalization": scale,
        "running_threshold": float(followed * np.float32(scale) if followed >= 0 else followed),
        "sae": _plain(trainer.sae),
        "train": _plain(trainer.config),
    }
    return Sae(params, threshold, k, trainer.sae.group_sizes, meta, variant.per_token)


def _plain(config: SaeConfig | TrainConfig) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(config).items()}
