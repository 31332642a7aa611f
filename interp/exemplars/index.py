"""The exemplar index: one pass over an activation store that finds, for every feature, where it is active.

The pass keeps, for each feature and each split, its strongest contexts, a uniform sample of its activating contexts,
counters and a histogram. Memory depends on the numbers of features and exemplars, not on the number of tokens: for each
feature and split, the device holds twice as many contexts as are kept (and 64 more than are kept, if that is more), at
8 bytes for a strongest and 12 bytes for a sampled one, 1 byte for each context of the pool, and about 270 bytes of
counters; besides, the autoencoder, one block of tokens x features, and about 50 bytes for each active entry of the
block. Sampling is by random priority: every (context, feature) pair has a hash, and the activating contexts with the
largest hashes are a uniform sample, whatever the order or the block size of the pass.

Few features are active on a token, so after a block is encoded only its active entries are handled, listed by feature.
The compiled program has a fixed capacity of entries; a block with more is repeated by a program of a larger capacity.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from interp.exemplars import streaming_top_k
from interp.exemplars.blocks import STUDIES_PER_BLOCK, ContextBlock, ContextTable, blocks, max_contexts
from interp.exemplars.contexts import Contexts
from interp.exemplars.streaming_top_k import Candidates, StreamingTopK
from maira_jax.errors import UserError
from maira_jax.inputs.tokens import Kind
from maira_jax.run import files
from maira_jax.run.progress import progress
from sae.activations.store import HELD_OUT, TRAIN, ActivationRows
from sae.autoencoder import Params, Sae, encode
from sae.kernels import kept_entries

SPLITS = (TRAIN, HELD_OUT)
# Half octaves, 2^-10 to 2^14, around any scale of residual stream; the outer bins are open.
EDGES = 2.0 ** (np.arange(-20, 29) / 2)
N_KINDS = len(Kind)
# Positions are summed in int32 over a block, of at most 2^15 tokens.
_MAX_POSITION = 2**16

# Counters are int32 on the device; before one could overflow, all are added to int64 totals of the host.
_MAX_COUNT = 2**31 - 1
_COUNTERS = ("n_contexts", "n_tokens", "position_sum", "histogram")
_NO_PEAK, _NO_PRIORITY = 0.0, -1.0


@dataclasses.dataclass(frozen=True)
class IndexConfig:
    """Sizes of the pass.

    Attributes:
      n_top: number of strongest contexts kept for each feature and split.
      n_sample: size of the uniform sample of activating contexts for each feature and split.
      n_pool: number of contexts of each split whose activity is kept for all features; non-activating contexts are
        drawn from them.
      block_tokens: number of tokens encoded at a time, at most 2^15.
      seed: seed of the samples.
    """

    n_top: int
    n_sample: int
    n_pool: int
    block_tokens: int
    seed: int


@dataclasses.dataclass(frozen=True)
class SplitIndex:
    """What the pass found in one split, for F features. Context numbers index `Contexts`; -1 means none.

    Attributes:
      top_context, top_peak: the strongest contexts and their peak activations, by falling peak. [F, n_top]
      sample_context, sample_peak: the sampled contexts and their peak activations, in random order, empty places last.
        [F, n_sample]
      n_contexts: number of contexts in which the feature is active. int64 [F]
      n_tokens: number of tokens on which it is active, by kind. int64 [F, kinds]
      position_sum: sum of those tokens' positions in their studies' sequences. int64 [F]
      histogram: peak activations of the activating contexts, by bin. int64 [F, len(EDGES) + 1]
      pool: context numbers of the pool. int64 [n_pool]
      pool_active: whether the feature is active in each context of the pool. bool [n_pool, F]
      total_contexts, total_tokens: numbers of contexts and tokens in the split.
    """

    top_context: np.ndarray
    top_peak: np.ndarray
    sample_context: np.ndarray
    sample_peak: np.ndarray
    n_contexts: np.ndarray
    n_tokens: np.ndarray
    position_sum: np.ndarray
    histogram: np.ndarray
    pool: np.ndarray
    pool_active: np.ndarray
    total_contexts: int
    total_tokens: int


def hash_uniform(context: Any, feature: Any, seed: int) -> Any:
    """Pseudo-random numbers in [0, 1) in steps of 2^-24, for NumPy and JAX arrays alike.

    Args:
      context, feature: integer arrays that broadcast against each other.
      seed: seed of the numbers.
    """
    h = context.astype(np.uint32) * np.uint32(0x9E3779B1) ^ (
        feature.astype(np.uint32) * np.uint32(0x85EBCA77) + np.uint32((seed * 0x27D4EB2F) % 2**32)
    )
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):  # the finalizer of MurmurHash3
        h = (h ^ (h >> np.uint32(shift))) * np.uint32(factor)
    return ((h ^ (h >> np.uint32(16))) >> np.uint32(8)).astype(np.float32) * np.float32(2**-24)


def build(
    sae: Sae,
    store: ActivationRows,
    contexts: Contexts,
    held_out: np.ndarray,
    cfg: IndexConfig,
    study_peak: np.ndarray,
    study_kinds: frozenset[Kind],
) -> dict[str, SplitIndex]:
    """Runs the pass.

    Args:
      sae: autoencoder of raw activations, with F features.
      store: the activations that `contexts` were cut from.
      contexts: all contexts of the store.
      held_out: which studies are held out. bool [n_studies]
      cfg: sizes of the pass.
      study_peak: zeros, which become each study's largest activations; may be a memory map. float32 [n_studies, F]
      study_kinds: the kinds of tokens that count for `study_peak`.

    Returns:
      An index for each of `SPLITS`.

    Raises:
      UserError: a study is too long.
    """
    length = int((contexts.position + contexts.length).max(initial=1))  # of the longest study
    if length > _MAX_POSITION:
        raise UserError(
            f"a study has {length} tokens, and exemplars can be found in at most {_MAX_POSITION}: shorten it"
        )
    split = held_out[contexts.study].astype(np.int8)  # [contexts]
    pools = [_draw_pool(np.flatnonzero(split == number), cfg, number) for number in (0, 1)]
    table = _context_table(contexts, split, pools, study_kinds, cfg.n_pool)
    passes = [_SplitPass(cfg, sae.n_features) for _ in SPLITS]
    threshold = jnp.asarray(sae.threshold, jnp.float32)
    max_entries = cfg.block_tokens * sae.n_features
    capacity = _entry_capacity(sae.k * cfg.block_tokens, max_entries)
    drain_interval = max(_MAX_COUNT // (cfg.block_tokens * length), 1)  # in blocks
    with progress(total=int(contexts.length.sum()), unit="tok", desc="interpret: exemplars") as bar:
        for number, (own, studies, block) in enumerate(blocks(store, table, cfg.block_tokens), 1):
            while True:
                running, peak, n = _add_block(
                    passes[own].running, sae.params, threshold, block, cfg, sae.top_k, capacity
                )
                passes[own].running = running
                if n <= capacity:
                    break
                capacity = _entry_capacity(int(n), max_entries)
            study_peak[studies] = np.maximum(study_peak[studies], np.asarray(peak)[: len(studies)])
            if number % drain_interval == 0:
                for part in passes:
                    part.drain()
            bar.update(int((block.slot < max_contexts(cfg.block_tokens)).sum()))
    return {
        name: passes[number].result(pools[number], contexts.length[split == number], cfg)
        for number, name in enumerate(SPLITS)
    }


def _draw_pool(candidates: np.ndarray, cfg: IndexConfig, split: int) -> np.ndarray:
    rng = np.random.default_rng((cfg.seed, split))
    return np.sort(rng.permutation(candidates)[: cfg.n_pool])


def _context_table(
    contexts: Contexts, split: np.ndarray, pools: list[np.ndarray], study_kinds: frozenset[Kind], n_pool: int
) -> ContextTable:
    pool_slot = np.full(len(contexts), n_pool, np.int32)
    for pool in pools:
        pool_slot[pool] = np.arange(len(pool), dtype=np.int32)
    counts_for_study = np.isin(contexts.kind, [int(kind) for kind in study_kinds])
    return ContextTable(contexts, split, pool_slot, n_pool, counts_for_study)


def _entry_capacity(n: int, limit: int) -> int:
    """A capacity for n active entries and an eighth more, at most `limit`; few sizes, so that few programs compile."""
    wanted = n + n // 8
    step = 1 << max(wanted.bit_length() - 4, 0)
    return min(max(-(-wanted // step) * step, 1), limit)


class RunningIndex(NamedTuple):
    """What the device holds of one split's index during the pass; shapes as in `SplitIndex`, counters int32.

    Attributes:
      top: contexts by peak activation, with the value "context".
      sample: contexts by random priority, with the values "context" and "peak".
      n_contexts, n_tokens, position_sum, histogram: the counters, since they were last drained.
      pool_active: whether each feature is active in each context of the pool. bool [n_pool, F]
    """

    top: StreamingTopK
    sample: StreamingTopK
    n_contexts: jax.Array
    n_tokens: jax.Array
    position_sum: jax.Array
    histogram: jax.Array
    pool_active: jax.Array

    @classmethod
    def empty(cls, cfg: IndexConfig, n_features: int) -> "RunningIndex":
        """The index of no contexts."""
        context, peak = (-1, jnp.int32), (0, jnp.float32)
        return cls(
            top=streaming_top_k.empty(n_features, cfg.n_top, _NO_PEAK, {"context": context}),
            sample=streaming_top_k.empty(n_features, cfg.n_sample, _NO_PRIORITY, {"context": context, "peak": peak}),
            n_contexts=jnp.zeros(n_features, jnp.int32),
            n_tokens=jnp.zeros((n_features, N_KINDS), jnp.int32),
            position_sum=jnp.zeros(n_features, jnp.int32),
            histogram=jnp.zeros((n_features, len(EDGES) + 1), jnp.int32),
            pool_active=jnp.zeros((cfg.n_pool, n_features), bool),
        )


class _SplitPass:
    """One split's part of the pass.

    Attributes:
      running: what the device holds.
      totals: the counters that were drained from it, int64.
    """

    def __init__(self, cfg: IndexConfig, n_features: int):
        self.running = RunningIndex.empty(cfg, n_features)
        self.totals = {name: np.asarray(getattr(self.running, name), np.int64) for name in _COUNTERS}

    def drain(self) -> None:
        """Moves the device's counters to the totals."""
        for name in _COUNTERS:
            self.totals[name] += np.asarray(getattr(self.running, name))
        zeros: dict[str, Any] = {name: jnp.zeros_like(getattr(self.running, name)) for name in _COUNTERS}
        self.running = self.running._replace(**zeros)

    def result(self, pool: np.ndarray, lengths: np.ndarray, cfg: IndexConfig) -> SplitIndex:
        """The finished index of a split with this pool and contexts of these `lengths`."""
        self.drain()
        top_peak, top = streaming_top_k.largest(self.running.top, cfg.n_top)
        _, sample = streaming_top_k.largest(self.running.sample, cfg.n_sample)
        return SplitIndex(
            top_context=np.asarray(top["context"]),
            top_peak=np.asarray(top_peak),
            sample_context=np.asarray(sample["context"]),
            sample_peak=np.asarray(sample["peak"]),
            **self.totals,
            pool=pool.astype(np.int64),
            pool_active=np.asarray(self.running.pool_active)[: len(pool)],
            total_contexts=len(lengths),
            total_tokens=int(lengths.sum()),
        )


@functools.partial(jax.jit, static_argnames=("cfg", "top_k", "capacity"), donate_argnums=0)
def _add_block(
    running: RunningIndex,
    params: Params,
    threshold: jax.Array,
    block: ContextBlock,
    cfg: IndexConfig,
    top_k: int | None,
    capacity: int,
) -> tuple[RunningIndex, jax.Array, jax.Array]:
    """Adds a block of T tokens to its split's index.

    Args:
      running: the split's index so far.
      params, threshold, top_k: the autoencoder's parameters, threshold and number of features kept on each token.
      block: the block.
      cfg: sizes of the pass.
      capacity: number of active entries that the program can handle.

    Returns:
      The new index, the peak activations of the block's studies float32 [STUDIES_PER_BLOCK, F], and the number of
      active entries; if that is above `capacity`, the index is unchanged and the peaks are 0.
    """
    f = encode(params, block.x, threshold, top_k)  # [T, F]
    real = block.slot < max_contexts(cfg.block_tokens)  # [T]
    active = kept_entries.entries((f > 0) & real[:, None], capacity, by_column=True)  # [capacity]
    n = active.starts[-1]
    study_peak = jnp.zeros((STUDIES_PER_BLOCK, f.shape[1]), jnp.float32)  # [studies, F]
    running, study_peak = jax.lax.cond(
        n <= capacity, lambda: _add_entries(running, f, active, block, cfg), lambda: (running, study_peak)
    )
    return running, study_peak, n


def _add_entries(
    running: RunningIndex, f: jax.Array, active: kept_entries.Entries, block: ContextBlock, cfg: IndexConfig
) -> tuple[RunningIndex, jax.Array]:
    """Adds a block's n active entries to its split's index.

    Args:
      running: the split's index so far.
      f: activations of the block. [T, F]
      active: their positive entries on real tokens: features in `rows`, tokens in `columns`.
      block: the block.
      cfg: sizes of the pass.

    Returns:
      The new index, and the peak activations of the block's studies float32 [STUDIES_PER_BLOCK, F].
    """
    n_features, token = f.shape[1], active.columns
    feature = jnp.where(active.used, active.rows, n_features)  # [n], out of range, and dropped, in unused places
    n_tokens = running.n_tokens.at[feature, block.kind[token]].add(1, mode="drop")  # [F, kinds]
    position_sum = running.position_sum.at[feature].add(block.position[token], mode="drop")  # [F]

    pairs = _feature_context_pairs(f, active, block.slot)
    slot, peak = pairs.values["slot"], pairs.key  # [n]
    feature = jnp.where(pairs.used, pairs.row, n_features)  # [n]
    bins = jnp.searchsorted(jnp.asarray(EDGES, jnp.float32), peak)  # [n]
    study_peak = jnp.zeros((STUDIES_PER_BLOCK, n_features), jnp.float32)
    study_peak = study_peak.at[block.study_slot[slot], feature].max(peak, mode="drop")  # [studies, F]

    context = block.context[slot]  # [n]
    strongest = pairs._replace(values={"context": context})
    priority = hash_uniform(context, pairs.row, cfg.seed)  # [n]
    drawn = pairs._replace(key=priority, values={"context": context, "peak": peak})
    return RunningIndex(
        top=streaming_top_k.add(running.top, strongest, cfg.n_top, _NO_PEAK),
        sample=streaming_top_k.add(running.sample, drawn, cfg.n_sample, _NO_PRIORITY),
        n_contexts=running.n_contexts + pairs.starts[1:] - pairs.starts[:-1],  # [F]
        n_tokens=n_tokens,
        position_sum=position_sum,
        histogram=running.histogram.at[feature, bins].add(1, mode="drop"),  # [F, bins]
        pool_active=running.pool_active.at[block.pool_slot[slot], feature].set(True, mode="drop"),  # [n_pool, F]
    ), study_peak


def _feature_context_pairs(f: jax.Array, active: kept_entries.Entries, slot_of: jax.Array) -> Candidates:
    """The pairs of a feature and a context in which it is active, by feature and in the order of the contexts.

    Args:
      f: activations of the block. [T, F]
      active: n entries, as for `_add_entries`.
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


def pool_activity(found: Mapping[str, SplitIndex]) -> np.ndarray:
    """Which feature is active in which context of either split's pool, bool [contexts, F]."""
    return np.concatenate([found[split].pool_active for split in SPLITS])


def save(path: Path, found: dict[str, SplitIndex]) -> None:
    """Writes an index as one .npz file."""
    with files.atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(
            file,
            **{f"{split}/{name}": value for split, part in found.items() for name, value in vars(part).items()},
        )


def load(path: Path) -> dict[str, SplitIndex]:
    """Reads what `save` wrote."""
    with np.load(path) as arrays:
        parts: dict[str, dict[str, Any]] = {split: {} for split in SPLITS}
        for name in arrays.files:
            split, field = name.split("/")
            parts[split][field] = arrays[name] if arrays[name].ndim else int(arrays[name])
    return {split: SplitIndex(**part) for split, part in parts.items()}
