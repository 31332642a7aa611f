"""The exemplar index: one pass over an activation store that finds, for every feature, where it is active.

The pass keeps, for each feature and each split, its strongest contexts, a uniform sample of its activating contexts,
counts and a histogram. Memory depends on features and exemplars, not on tokens: for each feature and split 8 bytes a
strongest context, 12 a sampled one, 1 a context of the pool and about 250 of counters, on the device; beside them the
autoencoder and a few blocks of tokens x features. Uniform sampling is by random
priority: every (context, feature) pair has a hash, and the activating contexts with the largest hashes are a uniform
sample, whatever the order or the block size of the pass.
"""

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from interp.contexts import Contexts
from maira_jax.errors import UserError
from maira_jax.processing.tokens import Kind
from maira_jax.run import files
from maira_jax.run.progress import progress
from sae.autoencoder import Params, Sae, encode

SPLITS = ("train", "held_out")
# Half octaves, 2^-10 to 2^14, around any scale of residual stream; the outer bins are open.
EDGES = 2.0 ** (np.arange(-20, 29) / 2)
N_KINDS = len(Kind)
_STUDIES_PER_BLOCK = 64
_BLOCKS_PER_READ = 16

# Counters are int32 on the device; before one could overflow, all are added to int64 ones of the host.
_MOST = 2**31 - 1
_COUNTERS = ("n_contexts", "n_tokens", "position_sum", "above")

State = dict[str, jax.Array]


class Rows(Protocol):
    """What the pass needs of an activation store."""

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows start to stop as float32 [stop - start, d_model]."""


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
    store: Rows,
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
    drain_after = max(_MOST // (cfg.block_tokens * last), 1)
    with progress(total=int(contexts.length.sum()), unit="tok", desc="interpret: exemplars") as bar:
        for number, (split, chosen, x) in enumerate(_blocks(store, contexts, context_split, cfg), 1):
            block, studies = _block_arrays(contexts, chosen, cfg, pool_slot, counts_for_study)
            states[split], peak = _update(states[split], sae.params, threshold, x, block, cfg, sae.top_k)
            study_peak[studies] = np.maximum(study_peak[studies], np.asarray(peak)[: len(studies)])
            if number % drain_after == 0:
                states = [_drain(state, total) for state, total in zip(states, counters, strict=True)]
            bar.update(int(contexts.length[chosen].sum()))
    states = [_drain(state, total) for state, total in zip(states, counters, strict=True)]
    return {
        name: _to_host(states[split], counters[split], pools[split], contexts.length[context_split == split])
        for split, name in enumerate(SPLITS)
    }


def _drain(state: State, total: dict[str, np.ndarray]) -> State:
    """Adds the device's counters to `total`, in place, and gives the state with counters of zero."""
    for name in _COUNTERS:
        total[name] += np.asarray(state[name])
    return state | {name: jnp.zeros_like(state[name]) for name in _COUNTERS}


def _choose_pool(candidates: np.ndarray, cfg: IndexConfig, split: int) -> np.ndarray:
    rng = np.random.default_rng((cfg.seed, split))
    return np.sort(rng.permutation(candidates)[: cfg.n_pool])


def _blocks(
    store: Rows, contexts: Contexts, context_split: np.ndarray, cfg: IndexConfig
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
    """Index arrays of a block, padded with out-of-range numbers, which segment operations drop, and its studies."""
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
    return {
        "top_peak": jnp.zeros((n_features, cfg.n_top), jnp.float32),
        "top_context": jnp.full((n_features, cfg.n_top), -1, jnp.int32),
        "sample_priority": jnp.full((n_features, cfg.n_sample), -1.0, jnp.float32),
        "sample_peak": jnp.zeros((n_features, cfg.n_sample), jnp.float32),
        "sample_context": jnp.full((n_features, cfg.n_sample), -1, jnp.int32),
        "n_contexts": jnp.zeros(n_features, jnp.int32),
        "n_tokens": jnp.zeros((N_KINDS, n_features), jnp.int32),
        "position_sum": jnp.zeros(n_features, jnp.int32),
        "above": jnp.zeros((len(EDGES), n_features), jnp.int32),
        "pool_active": jnp.zeros((cfg.n_pool, n_features), bool),
    }


@functools.partial(jax.jit, static_argnames=("cfg", "top_k"), donate_argnums=0)
def _update(
    state: State,
    params: Params,
    threshold: jax.Array,
    x: jax.Array,
    block: dict[str, jax.Array],
    cfg: IndexConfig,
    top_k: int | None = None,
) -> tuple[State, jax.Array]:
    """Adds a block to a split's state.

    Args:
      state: of the split.
      params, threshold, top_k: of the autoencoder.
      x: float32 [block_tokens, d_model].
      block: of `_block_arrays`.
      cfg: sizes.

    Returns:
      The new state, and the peak activations of the block's studies, float32 [_STUDIES_PER_BLOCK, F].
    """
    f = encode(params, x, threshold, top_k)  # [tokens, F]
    # segment_max gives -inf for an empty segment: padding, and studies without a counted token.
    peak = jnp.maximum(jax.ops.segment_max(f, block["slot"], cfg.block_contexts, indices_are_sorted=True), 0.0)
    study_peak = jnp.maximum(jax.ops.segment_max(peak, block["study"], _STUDIES_PER_BLOCK), 0.0)
    # [kinds + 2, tokens]; padding is a zero column. All numbers are below 256 and the sums below 2^24, so that the
    # product is exact in any precision that a device may choose for it.
    per_token = jnp.concatenate(
        [
            jax.nn.one_hot(block["kind"], N_KINDS, axis=0),
            jnp.where(block["kind"] < 0, 0, jnp.stack([block["position"] % 256, block["position"] // 256])),
        ]
    )
    sums = jnp.round(per_token @ (f > 0).astype(jnp.float32)).astype(jnp.int32)  # [kinds + 2, F]
    peak = peak.T  # [F, contexts]
    active = peak > 0
    feature = jnp.arange(peak.shape[0])[:, None]
    priority = jnp.where(active, hashed(block["context"][None], feature, cfg.seed), -1.0)
    new = dict(state)
    new["top_peak"], (new["top_context"],) = _keep_largest(
        (state["top_peak"], peak),
        ((state["top_context"], jnp.where(active, block["context"], -1)),),
    )
    new["sample_priority"], (new["sample_peak"], new["sample_context"]) = _keep_largest(
        (state["sample_priority"], priority),
        (
            (state["sample_peak"], peak),
            (state["sample_context"], jnp.where(active, block["context"], -1)),
        ),
    )
    new["n_contexts"] += active.sum(1, dtype=jnp.int32)
    new["n_tokens"] += sums[:N_KINDS]
    new["position_sum"] += sums[N_KINDS] + 256 * sums[N_KINDS + 1]
    edges = jnp.asarray(EDGES, jnp.float32)
    new["above"] += jax.lax.map(lambda edge: (peak > edge).sum(1, dtype=jnp.int32), edges)
    new["pool_active"] = state["pool_active"].at[block["pool"]].set(active.T, mode="drop")
    return new, study_peak


def _keep_largest(
    key: tuple[jax.Array, jax.Array], values: tuple[tuple[jax.Array, jax.Array], ...]
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Merges kept entries [F, k] with new ones [F, n]: the k largest keys and their values; the earlier wins a tie."""
    kept, order = jax.lax.top_k(jnp.concatenate(key, axis=1), key[0].shape[1])
    return kept, tuple(jnp.take_along_axis(jnp.concatenate(pair, axis=1), order, axis=1) for pair in values)


def _to_host(state: State, counters: dict[str, np.ndarray], pool: np.ndarray, lengths: np.ndarray) -> SplitIndex:
    host = {name: np.asarray(value) for name, value in state.items()} | counters
    n_contexts = host["n_contexts"]
    above = np.concatenate([n_contexts[None], host["above"]])  # contexts above each lower bin edge
    histogram = above - np.concatenate([above[1:], np.zeros_like(above[:1])])
    return SplitIndex(
        top_context=host["top_context"],
        top_peak=host["top_peak"],
        sample_context=host["sample_context"],
        sample_peak=host["sample_peak"],
        n_contexts=n_contexts,
        n_tokens=host["n_tokens"].T,
        position_sum=host["position_sum"],
        histogram=histogram.T,
        pool=pool.astype(np.int64),
        pool_active=host["pool_active"][: len(pool)],
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
