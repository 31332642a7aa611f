"""The exemplar index: one pass over an activation store that finds, for every feature, where it is active.

The pass keeps, for each feature and each split, its strongest contexts, a uniform sample of its activating contexts,
counters and a histogram. Memory depends on the numbers of features and exemplars, not on the number of tokens: for each
feature and split, the devices hold twice as many contexts as are kept (and 64 more than are kept, if that is more), at
8 bytes for a strongest and 12 bytes for a sampled one, 1 byte for each context of the pool, and about 270 bytes of
counters; besides, the autoencoder, one block of tokens x features, and what the route of `device_program` takes.
Sampling is by random priority: every (context, feature) pair has a hash, and the activating contexts with the largest
hashes are a uniform sample, whatever the order or the block size of the pass.

A pass that is interrupted resumes at its last save, with the same result.
"""

import dataclasses
import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from interp.exemplars.contexts import Contexts
from interp.exemplars.index_pass import saved_pass
from interp.exemplars.index_pass.blocks import ContextTable, blocks, read_ahead
from interp.exemplars.index_pass.device_pass import DevicePass
from interp.exemplars.index_pass.device_program import Route
from interp.exemplars.index_pass.running_index import IndexConfig
from interp.exemplars.index_pass.streaming_top_k import StreamingTopK
from maira_jax.errors import UserError
from maira_jax.inputs.tokens import Kind
from maira_jax.run import files, profile
from maira_jax.run.profile import StepTrace
from maira_jax.run.progress import progress
from sae.activations.store import HELD_OUT, TRAIN, ActivationRows
from sae.autoencoder import Sae

SPLITS = (TRAIN, HELD_OUT)
# Positions are summed in int32 over a block, of at most 2^15 tokens.
_MAX_POSITION = 2**16
# A save of the real size writes some hundred megabytes; an interrupted pass loses at most so much work.
_SAVE_SECONDS = 300.0


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


def build(
    sae: Sae,
    store: ActivationRows,
    contexts: Contexts,
    held_out: np.ndarray,
    cfg: IndexConfig,
    study_peak: np.ndarray,
    study_kinds: frozenset[Kind],
    devices: Sequence[jax.Device],
    saved: Path | None = None,
    route: Route | None = None,
    trace: StepTrace = profile.OFF,
) -> dict[str, SplitIndex]:
    """Runs the pass.

    Args:
      sae: autoencoder of raw activations, with F features.
      store: the activations that `contexts` were cut from.
      contexts: all contexts of the store.
      held_out: which studies are held out. bool [n_studies]
      cfg: sizes of the pass.
      study_peak: zeros, which become each study's largest activations; what an interrupted pass left in it, if `saved`
        is there. May be a memory map. float32 [n_studies, F]
      study_kinds: the kinds of tokens that count for `study_peak`.
      devices: they share the features.
      saved: the file in which the pass is saved every few minutes, and from which an interrupted one resumes; None for
        none.
      route: how the devices add a block, with equal results; None for what suits them.
      trace: which blocks are traced.

    Returns:
      An index for each of `SPLITS`.

    Raises:
      UserError: a study is too long, or `saved` is of another pass.
    """
    length = int((contexts.position + contexts.length).max(initial=1))  # of the longest study
    if length > _MAX_POSITION:
        raise UserError(
            f"a study has {length} tokens, and exemplars can be found in at most {_MAX_POSITION}: shorten it"
        )
    split = held_out[contexts.study].astype(np.int8)  # [contexts]
    pools = [_draw_pool(np.flatnonzero(split == number), cfg, number) for number in (0, 1)]
    table = _context_table(contexts, split, pools, study_kinds, cfg.n_pool)
    max_length = int(contexts.length.max(initial=1))
    device_pass = DevicePass(sae, cfg, max_length, length, study_peak, devices, route)
    _run(device_pass, store, table, cfg, study_peak, saved, _identity(sae, table, cfg) if saved else "", trace)
    return {
        name: _result(device_pass, number, pools[number], contexts.length[split == number], cfg)
        for number, name in enumerate(SPLITS)
    }


def _run(
    device_pass: DevicePass,
    store: ActivationRows,
    table: ContextTable,
    cfg: IndexConfig,
    study_peak: np.ndarray,
    saved: Path | None,
    identity: str,
    trace: StepTrace,
) -> None:
    """Adds all contexts that are not in the saved pass, and saves it from time to time."""
    found = saved_pass.load(saved, identity) if saved else None
    n_done = 0
    if found is not None:
        n_done, arrays = found
        device_pass.restore(arrays)
    length = table.contexts.length
    last_save = time.monotonic()
    with progress(
        total=int(length.sum()), initial=int(length[:n_done].sum()), unit="tok", desc="interpret: exemplars"
    ) as bar:
        read = blocks(store, table, cfg.block_tokens, n_done)
        sent = ((part, device_pass.put(part.block)) for part in read)
        for part, block in trace.over(read_ahead(sent)):
            device_pass.add(part.split, part.studies, block)
            bar.update(part.n_tokens)
            if saved and part.n_done is not None and time.monotonic() - last_save >= _SAVE_SECONDS:
                arrays = device_pass.arrays()  # waits for all blocks
                if isinstance(study_peak, np.memmap):
                    study_peak.flush()
                saved_pass.save(saved, identity, part.n_done, arrays)
                last_save = time.monotonic()


def _identity(sae: Sae, table: ContextTable, cfg: IndexConfig) -> str:
    """A digest of all that decides the result, the store's values apart."""
    digest = hashlib.sha256(repr((cfg, sae.top_k)).encode())
    for array in (*vars(table.contexts).values(), table.split, table.pool_slot, table.counts_for_study):
        digest.update(np.asarray(array).tobytes())
    for name in ("W_enc", "b_enc", "b_dec"):
        digest.update(np.asarray(sae.params[name]).tobytes())
    digest.update(np.asarray(sae.threshold).tobytes())
    return digest.hexdigest()


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


def _result(device_pass: DevicePass, split: int, pool: np.ndarray, lengths: np.ndarray, cfg: IndexConfig) -> SplitIndex:
    """The finished index of a split with this pool and contexts of these `lengths`."""
    running = device_pass.running(split)
    top_peak, top = _largest(running.top, cfg.n_top)
    _, sample = _largest(running.sample, cfg.n_sample)
    return SplitIndex(
        top_context=top["context"],
        top_peak=top_peak,
        sample_context=sample["context"],
        sample_peak=sample["peak"],
        **{name: np.ascontiguousarray(total.T) for name, total in device_pass.totals[split].items()},
        pool=pool.astype(np.int64),
        pool_active=np.asarray(running.pool_active)[: len(pool)],
        total_contexts=len(lengths),
        total_tokens=int(lengths.sum()),
    )


def _largest(kept: StreamingTopK, k: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Keys and values of each row's k largest entries, by falling key, [rows, k] each; the earlier one wins a tie."""
    key = np.ascontiguousarray(np.asarray(kept.key).T)  # [rows, capacity]
    order = np.argsort(-key, axis=1, kind="stable")[:, :k]  # [rows, k]
    values = {name: np.take_along_axis(np.asarray(value).T, order, axis=1) for name, value in kept.values.items()}
    return np.take_along_axis(key, order, axis=1), values


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
