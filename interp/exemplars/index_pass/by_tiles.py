"""Adds a block to an index by whole matrices, without a gather, scatter or sort of single entries.

This is the route of accelerators. A tile of features is small enough for a TPU's vector memory, so that what a context
gives is read from the device's memory once; a GPU takes all features as one tile.
"""

import dataclasses
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from interp.exemplars.index_pass import streaming_top_k
from interp.exemplars.index_pass.blocks import STUDIES_PER_BLOCK, ContextBlock
from interp.exemplars.index_pass.context_peaks import context_peaks
from interp.exemplars.index_pass.running_index import (
    EDGES,
    N_KINDS,
    NO_PEAK,
    NO_PRIORITY,
    IndexConfig,
    RunningIndex,
    hash_uniform,
)

_Tree = TypeVar("_Tree")


@dataclasses.dataclass(frozen=True)
class Tiles:
    """How a block is added.

    Attributes:
      max_length: number of tokens of the longest context.
      features: number of features of a tile, which divides that of a device's features.
    """

    max_length: int
    features: int


def add(
    running: RunningIndex, f: jax.Array, block: ContextBlock, first_feature: jax.Array, cfg: IndexConfig, tiles: Tiles
) -> tuple[RunningIndex, jax.Array]:
    """Adds a block of T tokens and C contexts to its split's index; as `interp.exemplars.index_pass.by_entries.add`."""
    n_features = f.shape[1]
    peak = context_peaks(f, block.slot, block.context.shape[0], tiles.max_length)  # [C, F]
    running = _with_tokens(running, f, block)
    in_pool = (block.pool_slot == jnp.arange(cfg.n_pool)[:, None]).astype(jnp.bfloat16)  # [n_pool, C]

    def add_tile(number: jax.Array, carry: tuple[RunningIndex, jax.Array]) -> tuple[RunningIndex, jax.Array]:
        start = number * tiles.features
        part, peak_part = _columns((carry[0], peak), start, tiles.features)
        part = _with_contexts(part, peak_part, block.context, first_feature + start, cfg)
        seen = jnp.dot(in_pool, (peak_part > 0).astype(jnp.bfloat16), preferred_element_type=jnp.float32)
        part = part._replace(pool_active=part.pool_active | (seen > 0))  # [n_pool, tile]
        new = (part, _study_peaks(peak_part, block.study_slot))
        return jax.tree.map(
            lambda whole, piece: lax.dynamic_update_slice_in_dim(whole, piece, start, axis=-1), carry, new
        )

    empty = jnp.zeros((STUDIES_PER_BLOCK, n_features), jnp.float32)
    return lax.fori_loop(0, n_features // tiles.features, add_tile, (running, empty))


def _columns(tree: _Tree, start: jax.Array | int, size: int) -> _Tree:
    """Features `start` to `start + size` of every array."""
    return jax.tree.map(lambda array: lax.dynamic_slice_in_dim(array, start, size, axis=-1), tree)


def _with_tokens(running: RunningIndex, f: jax.Array, block: ContextBlock) -> RunningIndex:
    """Adds the tokens `f [T, F]` to their counters."""
    # Sums of T bytes are exact in float32, and so are bytes in bfloat16; padding has no kind and the position 0.
    of_kind = block.kind == jnp.arange(N_KINDS)[:, None]  # [kinds, T]
    factors = jnp.concatenate([of_kind, block.position[None] >> 8, block.position[None] & 255])  # [kinds + 2, T]
    sums = jnp.dot(
        factors.astype(jnp.bfloat16), (f > 0).astype(jnp.bfloat16), preferred_element_type=jnp.float32
    ).astype(jnp.int32)  # [kinds + 2, F]
    return running._replace(
        n_tokens=running.n_tokens + sums[:N_KINDS],
        position_sum=running.position_sum + 256 * sums[N_KINDS] + sums[N_KINDS + 1],
    )


def _with_contexts(
    running: RunningIndex, peak: jax.Array, context: jax.Array, first_feature: jax.Array, cfg: IndexConfig
) -> RunningIndex:
    """Adds the contexts `context [C]` to their counters, to the strongest and to the sample.

    Args:
      running: the index so far.
      peak: the largest activations of the features from `first_feature` on. [C, F]
      context: the number of each context.
      first_feature: int32 []
      cfg: sizes of the pass.
    """
    # One reduction for each edge: XLA makes one pass of all, and slow code of a matrix of comparisons.
    counts = [jnp.where(peak > edge, 1.0, 0.0).sum(0) for edge in (0.0, *EDGES.astype("float32"))]
    above = jnp.stack(counts).astype(jnp.int32)  # [edges + 1, F]
    numbers = context[:, None]  # [C, 1]
    priority = hash_uniform(numbers, first_feature + jnp.arange(peak.shape[1]), cfg.seed)  # [C, F]
    drawn = {"context": numbers, "peak": peak}
    active = peak > 0  # [C, F]
    return running._replace(
        n_contexts=running.n_contexts + above[0],
        histogram=running.histogram + above - jnp.pad(above[1:], ((0, 1), (0, 0))),
        top=streaming_top_k.add_matrix(running.top, peak, {"context": numbers}, active, cfg.n_top, NO_PEAK),
        sample=streaming_top_k.add_matrix(running.sample, priority, drawn, active, cfg.n_sample, NO_PRIORITY),
    )


def _study_peaks(peak: jax.Array, study_slot: jax.Array) -> jax.Array:
    """The largest of the contexts `peak [C, F]` of each study. [STUDIES_PER_BLOCK, F]"""
    return jnp.stack(
        [jnp.where((study_slot == i)[:, None], peak, 0.0).max(0) for i in range(STUDIES_PER_BLOCK)]
    )  # [studies, F]
