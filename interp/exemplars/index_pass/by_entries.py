"""Adds a block to an index by the list of its active entries, which is short: the route of a CPU.

The compiled program has a fixed capacity of entries; `index_pass.device_pass` handles blocks that have more.
"""

import jax
import jax.numpy as jnp

from interp.exemplars.index_pass import streaming_top_k
from interp.exemplars.index_pass.blocks import STUDIES_PER_BLOCK, ContextBlock
from interp.exemplars.index_pass.running_index import (
    EDGES,
    NO_PEAK,
    NO_PRIORITY,
    IndexConfig,
    RunningIndex,
    hash_uniform,
)
from interp.exemplars.index_pass.streaming_top_k import Candidates
from sae.kernels import kept_entries


def add(
    running: RunningIndex,
    f: jax.Array,
    active: kept_entries.Entries,
    block: ContextBlock,
    first_feature: jax.Array,
    cfg: IndexConfig,
) -> tuple[RunningIndex, jax.Array]:
    """Adds a block's n active entries to its split's index.

    Args:
      running: the split's index so far, of F features.
      f: activations of the block. [T, F]
      active: their positive entries on real tokens: features in `rows`, tokens in `columns`.
      block: the block.
      first_feature: the number of the first of the F features. int32 []
      cfg: sizes of the pass.

    Returns:
      The new index, and the peak activations of the block's studies float32 [STUDIES_PER_BLOCK, F].
    """
    n_features, token = f.shape[1], active.columns
    feature = jnp.where(active.used, active.rows, n_features)  # [n], out of range, and dropped, in unused places
    n_tokens = running.n_tokens.at[block.kind[token], feature].add(1, mode="drop")  # [kinds, F]
    position_sum = running.position_sum.at[feature].add(block.position[token], mode="drop")  # [F]

    pairs = _feature_context_pairs(f, active, block.slot)
    slot, peak = pairs.values["slot"], pairs.key  # [n]
    feature = jnp.where(pairs.used, pairs.row, n_features)  # [n]
    bins = jnp.searchsorted(jnp.asarray(EDGES, jnp.float32), peak)  # [n]
    study_peak = jnp.zeros((STUDIES_PER_BLOCK, n_features), jnp.float32)
    study_peak = study_peak.at[block.study_slot[slot], feature].max(peak, mode="drop")  # [studies, F]

    context = block.context[slot]  # [n]
    strongest = pairs._replace(values={"context": context})
    priority = hash_uniform(context, first_feature + pairs.row, cfg.seed)  # [n]
    drawn = pairs._replace(key=priority, values={"context": context, "peak": peak})
    return RunningIndex(
        top=streaming_top_k.add_list(running.top, strongest, cfg.n_top, NO_PEAK),
        sample=streaming_top_k.add_list(running.sample, drawn, cfg.n_sample, NO_PRIORITY),
        n_contexts=running.n_contexts + pairs.starts[1:] - pairs.starts[:-1],  # [F]
        n_tokens=n_tokens,
        position_sum=position_sum,
        histogram=running.histogram.at[bins, feature].add(1, mode="drop"),  # [bins, F]
        pool_active=running.pool_active.at[block.pool_slot[slot], feature].set(True, mode="drop"),  # [n_pool, F]
    ), study_peak


def _feature_context_pairs(f: jax.Array, active: kept_entries.Entries, slot_of: jax.Array) -> Candidates:
    """The pairs of a feature and a context in which it is active, by feature and in the order of the contexts.

    Args:
      f: activations of the block. [T, F]
      active: n entries, as for `add`.
      slot_of: the place of each token's context in the block. int32 [T]

    Returns:
      At most n pairs, with the peak activation as `key` and the value "slot", the context's place in the block.
    """
    used, feature, token = active.used, active.rows, active.columns  # [n]
    capacity = len(used)
    slot = slot_of[token]  # [n]
    begins = used.at[1:].set(used[1:] & ((feature[1:] != feature[:-1]) | (slot[1:] != slot[:-1])))  # [n]
    pair = jnp.cumsum(begins, dtype=jnp.int32) - 1  # [n], of each entry
    first = kept_entries.entries(begins[None], capacity)  # [n], the first entry of each pair
    peak = jnp.zeros(capacity, jnp.float32).at[jnp.where(used, pair, capacity)].max(f[token, feature], mode="drop")
    n_before = jnp.concatenate([jnp.zeros(1, jnp.int32), pair + 1])  # [n + 1], pairs that begin before each entry
    return Candidates(
        row=jnp.where(first.used, feature[first.columns], 0),
        key=peak,
        values={"slot": slot[first.columns]},
        used=first.used,
        starts=n_before[active.starts],
    )
