"""The exemplar index: one pass over an activation store that finds, for every feature, where it is active.

The pass keeps, for each feature and each split, its strongest contexts, a uniform sample of its activating contexts,
counts and a histogram. Memory depends on features and exemplars, not on tokens: for each feature and split there is
room for twice as many contexts as are kept (and for 64 more, if that is more), 8 bytes a strongest and 12 a sampled
one, and 1 byte a context of the pool and about 270 of counters, on the device; beside them the autoencoder, a block
of tokens x features and about 50 bytes for each of the block's active entries. Uniform sampling is by random
priority: every (context, feature) pair has a hash, and the activating contexts with the largest hashes are a uniform
sample, whatever the order or the block size of the pass.

Few features are active on a token, so after encoding a block only its active entries are handled, listed by feature.
The program has room for so many; a block with more is taken again by a program with more room.
"""

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from interp.exemplars import streaming_top_k
from interp.exemplars.contexts import Contexts
from maira_jax.errors import UserError
from maira_jax.inputs.tokens import Kind
from maira_jax.run import files
from maira_jax.run.progress import progress
from sae.activations.store import ActivationRows
from sae.autoencoder import Params, Sae, encode
from sae.kernels import kept_entries

SPLITS = ("train", "held_out")
# Half octaves, 2^-10 to 2^14, around any scale of residual stream; the outer bins are open.
EDGES = 2.0 ** (np.arange(-20, 29) / 2)
N_KINDS = len(Kind)
_STUDIES_PER_BLOCK = 64
_BLOCKS_PER_READ = 16

# Counters are int32 on the device; before one could overflow, all are added to int64 ones of the host.
_MOST = 2**31 - 1
_COUNTERS = ("n_contexts", "n_tokens", "position_sum", "histogram")
_NO_PEAK, _NO_PRIORITY = 0.0, -1.0

State = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class IndexConfig:
    """Sizes of the pass.

    Attributes:
      n_top: strongest contexts kept for each feature and split.
      n_sample: size of the uniform sample of activating contexts for each feature and split.
      n_pool: contexts of each split whose activity is kept for all features; non-activating ones are drawn from them.
      block_tokens: tokens encoded at a time, at most 2^15.
      seed: of the samples.
    """

    n_top: int
    n_sample: int
    n_pool: int
    block_tokens: int
    seed: int

    @property
    def block_contexts(self) -> int:
        """Most contexts in a block; short contexts (single tokens) fill a block by this count first."""
        return max(self.block_tokens // 8, 1)


@dataclasses.dataclass(frozen=True)
class SplitIndex:
    """What the pass found in one split, F features. Context numbers index `Contexts`; -1 means none.

    Attributes:
      top_context, top_peak: [F, n_top], by falling peak activation.
      sample_context, sample_peak: [F, n_sample], in random order, empty places last.
      n_contexts: int64 [F], contexts in which the feature is active.
      n_tokens: int64 [F, kinds], tokens on which it is active, by kind.
      position_sum: int64 [F], of those tokens' places in their studies' sequences.
      histogram: int64 [F, len(EDGES) + 1], peak activations of the activating contexts.
      pool: int64 [n_pool], context numbers.
      pool_active: bool [n_pool, F].
      total_contexts, total_tokens: of the split.
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


def hashed(context: Any, feature: Any, seed: int) -> Any:
    """Pseudo-random numbers in [0, 1) in steps of 2^-24, for NumPy and JAX arrays alike.

    Args:
      context, feature: integer arrays that broadcast against each other.
      seed: of the sample.
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
      sae: of raw activations.
      store: the activations that `contexts` were cut from.
      contexts: all of the store.
      held_out: bool [n_studies].
      cfg: sizes.
      study_peak: float32 [n_studies, F], zeros; receives each study's largest activations (may be a memory map).
      study_kinds: tokens of these kinds count for `study_peak`.

    Returns:
      An index for each of `SPLITS`.
    """
    context_split = held_out[contexts.study].astype(np.int8)
    pools = [_choose_pool(np.flatnonzero(context_split == split), cfg, split) for split in (0, 1)]
    pool_slot = np.full(len(contexts), cfg.n_pool, np.int32)  # one past the end: not in the pool
    for pool in pools:
        pool_slot[pool] = np.arange(len(pool), dtype=np.int32)
    counts_for_study = np.isin(contexts.kind, [int(kind) for kind in study_kinds])
    states = [_empty_state(cfg, sae.n_features) for _ in SPLITS]
    counters = [{name: np.asarray(state[name], np.int64) for name in _COUNTERS} for state in states]
    threshold = jnp.asarray(sae.threshold, jnp.float32)
    last = int((contexts.position + contexts.length).max(initial=1))
    if last > 2**16:
        raise UserError(f"a study has {last} tokens, and exemplars can be found in at most {2**16}: shorten it")
    most = cfg.block_tokens * sae.n_features
    size = _room(sae.k * cfg.block_tokens, most)
    drain_after = max(_MOST // (cfg.block_tokens * last), 1)
    with progress(total=int(contexts.length.sum()), unit="tok", desc="interpret: exemplars") as bar:
        for number, (split, chosen, x) in enumerate(_blocks(store, contexts, context_split, cfg), 1):
            block, studies = _block_arrays(contexts, chosen, cfg, pool_slot, counts_for_study)
            while True:
                states[split], peak, n = _update(states[split], sae.params, threshold, x, block, cfg, sae.top_k, size)
                if n <= size:
                    break
                size = _room(int(n), most)
            study_peak[studies] = np.maximum(study_peak[studies], np.asarray(peak)[: len(studies)])
            if number % drain_after == 0:
                states = [_drain(state, total) for state, total in zip(states, counters, strict=True)]
            bar.update(int(contexts.length[chosen].sum()))
    states = [_drain(state, total) for state, total in zip(states, counters, strict=True)]
    return {
        name: _to_host(states[split], counters[split], pools[split], contexts.length[context_split == split], cfg)
        for split, name in enumerate(SPLITS)
    }


def _room(n: int, most: int) -> int:
    """Room for n active entries and an eighth more, at most `most`; of few sizes, so that few programs are compiled."""
    wanted = n + n // 8
    step = 1 << max(wanted.bit_length() - 4, 0)
    return min(max(-(-wanted // step) * step, 1), most)


def _drain(state: State, total: dict[str, np.ndarray]) -> State:
    """Adds the device's counters to `total`, in place, and gives the state with counters of zero."""
    for name in _COUNTERS:
        total[name] += np.asarray(state[name])
    return state | {name: jnp.zeros_like(state[name]) for name in _COUNTERS}


def _choose_pool(candidates: np.ndarray, cfg: IndexConfig, split: int) -> np.ndarray:
    rng = np.random.default_rng((cfg.seed, split))
    return np.sort(rng.permutation(candidates)[: cfg.n_pool])


def _blocks(
    store: ActivationRows, contexts: Contexts, context_split: np.ndarray, cfg: IndexConfig
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yields (split, context numbers [m], activations float32 [block_tokens, d_model] padded with zeros)."""
    begin, end = 0, len(contexts)
    while begin < end:
        row = contexts.start[begin]
        # At least one context: the search value is above the start of `begin`.
        stop = int(np.searchsorted(contexts.start, row + _BLOCKS_PER_READ * cfg.block_tokens))
        last = contexts.start[stop - 1] + contexts.length[stop - 1]
        x = store.read(int(row), int(last))
        for split in (0, 1):
            numbers = begin + np.flatnonzero(context_split[begin:stop] == split)
            for chosen in _split_into_blocks(contexts, numbers, cfg):
                rows, _ = contexts.rows(chosen)
                padded = np.zeros((cfg.block_tokens, x.shape[1]), np.float32)
                padded[: len(rows)] = x[rows - row]
                yield split, chosen, padded
        begin = stop


def _split_into_blocks(contexts: Contexts, numbers: np.ndarray, cfg: IndexConfig) -> Iterator[np.ndarray]:
    """Cuts a list of contexts so that tokens, contexts and studies fit the static shapes of a block."""
    tokens = np.concatenate([[0], np.cumsum(contexts.length[numbers])])
    study_rank = np.unique(contexts.study[numbers], return_inverse=True)[1]
    i = 0
    while i < len(numbers):
        by_tokens = int(np.searchsorted(tokens, tokens[i] + cfg.block_tokens, side="right")) - 1
        by_studies = int(np.searchsorted(study_rank, study_rank[i] + _STUDIES_PER_BLOCK))
        j = min(by_tokens, by_studies, i + cfg.block_contexts)
        yield numbers[i:j]
        i = j


def _block_arrays(
    contexts: Contexts,
    chosen: np.ndarray,
    cfg: IndexConfig,
    pool_slot: np.ndarray,
    counts_for_study: np.ndarray,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Index arrays of a block, padded with numbers of nothing, and its studies. Padding has no active entries."""
    length = contexts.length[chosen]
    rows, _ = contexts.rows(chosen)
    studies, study_slot = np.unique(contexts.study[chosen], return_inverse=True)

    def padded(values: np.ndarray, size: int, fill: int) -> np.ndarray:
        out = np.full(size, fill, np.int32)
        out[: len(values)] = values
        return out

    n = cfg.block_contexts
    return {
        "slot": padded(np.repeat(np.arange(len(chosen)), length), cfg.block_tokens, n),
        "kind": padded(np.repeat(contexts.kind[chosen], length), cfg.block_tokens, -1),
        "position": padded(
            rows - np.repeat(contexts.start[chosen] - contexts.position[chosen], length), cfg.block_tokens, 0
        ),
        "context": padded(chosen, n, -1),
        "study": padded(
            np.where(counts_for_study[chosen], study_slot, _STUDIES_PER_BLOCK),
            n,
            _STUDIES_PER_BLOCK,
        ),
        "pool": padded(pool_slot[chosen], n, cfg.n_pool),
    }, studies


def _empty_state(cfg: IndexConfig, n_features: int) -> State:
    context = (-1, jnp.int32)
    return {
        "top": streaming_top_k.empty(n_features, cfg.n_top, _NO_PEAK, {"context": context}),
        "sample": streaming_top_k.empty(
            n_features, cfg.n_sample, _NO_PRIORITY, {"context": context, "peak": (0, jnp.float32)}
        ),
        "n_contexts": jnp.zeros(n_features, jnp.int32),
        "n_tokens": jnp.zeros((n_features, N_KINDS), jnp.int32),
        "position_sum": jnp.zeros(n_features, jnp.int32),
        "histogram": jnp.zeros((n_features, len(EDGES) + 1), jnp.int32),
        "pool_active": jnp.zeros((cfg.n_pool, n_features), bool),
    }


@functools.partial(jax.jit, static_argnames=("cfg", "top_k", "size"), donate_argnums=0)
def _update(
    state: State,
    params: Params,
    threshold: jax.Array,
    x: jax.Array,
    block: dict[str, jax.Array],
    cfg: IndexConfig,
    top_k: int | None,
    size: int,
) -> tuple[State, jax.Array, jax.Array]:
    """Adds a block to a split's state.

    Args:
      state: of the split.
      params, threshold, top_k: of the autoencoder.
      x: float32 [block_tokens, d_model].
      block: of `_block_arrays`.
      cfg: sizes.
      size: room for active entries.

    Returns:
      The new state, the peak activations of the block's studies, float32 [_STUDIES_PER_BLOCK, F], and the number of
      active entries; if that is above `size`, the state is the old one and the peaks are 0.
    """
    f = encode(params, x, threshold, top_k)  # [tokens, F]
    real = block["slot"] < cfg.block_contexts
    active = kept_entries.entries((f > 0) & real[:, None], size, by_column=True)
    n = active.starts[-1]
    study_peak = jnp.zeros((_STUDIES_PER_BLOCK, f.shape[1]), jnp.float32)
    state, study_peak = jax.lax.cond(
        n <= size, lambda: _with_entries(state, f, active, block, cfg), lambda: (state, study_peak)
    )
    return state, study_peak, n


def _with_entries(
    state: State, f: jax.Array, active: kept_entries.Entries, block: dict[str, jax.Array], cfg: IndexConfig
) -> tuple[State, jax.Array]:
    """The state with a block's active entries, and the peak activations of its studies; see `_update`.

    Args:
      state: of the split.
      f: [tokens, F]
      active: its positive entries on real tokens, `rows` the features and `columns` the tokens.
      block: of `_block_arrays`.
      cfg: sizes.
    """
    n_features = f.shape[1]
    used, feature, token = active.used, active.rows, active.columns
    nowhere = jnp.where(used, feature, n_features)  # unused places are dropped
    new = dict(state)
    new["n_tokens"] = state["n_tokens"].at[nowhere, block["kind"][token]].add(1, mode="drop")
    new["position_sum"] = state["position_sum"].at[nowhere].add(block["position"][token], mode="drop")

    pairs = _pairs(f, active, block["slot"])
    slot, peak = pairs.values["slot"], pairs.key
    nowhere = jnp.where(pairs.used, pairs.row, n_features)
    bins = jnp.searchsorted(jnp.asarray(EDGES, jnp.float32), peak)
    new["histogram"] = state["histogram"].at[nowhere, bins].add(1, mode="drop")
    new["n_contexts"] = state["n_contexts"] + pairs.starts[1:] - pairs.starts[:-1]
    new["pool_active"] = state["pool_active"].at[block["pool"][slot], nowhere].set(True, mode="drop")
    study_peak = jnp.zeros((_STUDIES_PER_BLOCK, n_features), jnp.float32)
    study_peak = study_peak.at[block["study"][slot], nowhere].max(peak, mode="drop")

    context = block["context"][slot]
    tops = pairs._replace(values={"context": context})
    new["top"] = streaming_top_k.add(state["top"], tops, cfg.n_top, _NO_PEAK)
    priority = hashed(context, pairs.row, cfg.seed)
    drawn = pairs._replace(key=priority, values={"context": context, "peak": peak})
    new["sample"] = streaming_top_k.add(state["sample"], drawn, cfg.n_sample, _NO_PRIORITY)
    return new, study_peak


def _pairs(f: jax.Array, active: kept_entries.Entries, slot_of: jax.Array) -> streaming_top_k.Newcomers:
    """The pairs of a feature and a context in which it is active, by feature and in the order of the contexts.

    Args:
      f: [tokens, F]
      active: see `_with_entries`.
      slot_of: of each token's context. int32 [tokens]

    Returns:
      With the peak activation as `key` and the context's "slot".
    """
    used, feature, token = active.used, active.rows, active.columns
    size = len(used)
    slot = slot_of[token]
    begins = used.at[1:].set(used[1:] & ((feature[1:] != feature[:-1]) | (slot[1:] != slot[:-1])))
    number = jnp.cumsum(begins, dtype=jnp.int32) - 1
    first = kept_entries.entries(begins[None], size)
    peak = jnp.zeros(size, jnp.float32).at[jnp.where(used, number, size)].max(f[token, feature], mode="drop")
    before = jnp.concatenate([jnp.zeros(1, jnp.int32), number + 1])  # pairs that begin before each entry
    return streaming_top_k.Newcomers(
        row=jnp.where(first.used, feature[first.columns], 0),
        key=peak,
        values={"slot": slot[first.columns]},
        used=first.used,
        starts=before[active.starts],
    )


def _to_host(
    state: State, counters: dict[str, np.ndarray], pool: np.ndarray, lengths: np.ndarray, cfg: IndexConfig
) -> SplitIndex:
    top_peak, top = streaming_top_k.cut(state["top"], cfg.n_top)
    _, sample = streaming_top_k.cut(state["sample"], cfg.n_sample)
    return SplitIndex(
        top_context=np.asarray(top["context"]),
        top_peak=np.asarray(top_peak),
        sample_context=np.asarray(sample["context"]),
        sample_peak=np.asarray(sample["peak"]),
        **{name: counters[name] for name in _COUNTERS},
        pool=pool.astype(np.int64),
        pool_active=np.asarray(state["pool_active"])[: len(pool)],
        total_contexts=len(lengths),
        total_tokens=int(lengths.sum()),
    )


def pooled(found: dict[str, SplitIndex]) -> np.ndarray:
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
