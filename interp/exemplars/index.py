"""The exemplar index: one pass over an activation store that finds, for every feature, where it is active.

The pass keeps, for each feature and each split, its strongest contexts, a uniform sample of its activating contexts,
counters and a histogram. Memory depends on the numbers of features and exemplars, not on the number of tokens: for each
feature and split, the devices hold twice as many contexts as are kept (and 64 more than are kept, if that is more), at
8 bytes for a strongest and 12 bytes for a sampled one, 1 byte for each context of the pool, and about 270 bytes of
counters; besides, the autoencoder, one block of tokens x features, and what the route of `device_program` takes.
Sampling is by random priority: every (context, feature) pair has a hash, and the activating contexts with the largest
hashes are a uniform sample, whatever the order or the block size of the pass.

Each process of a run reads a share of the store, and the devices of its host divide the features among them: a host
reads more slowly than its devices encode, so that a pass takes as long as its reading. What was found in parts of the
store is joined exactly, whatever the parts; so a pass that was interrupted resumes after what it had saved, by any
number of processes, with the same result.
"""

import dataclasses
import functools
import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from interp.exemplars.contexts import Contexts
from interp.exemplars.index_pass import blocks
from interp.exemplars.index_pass.blocks import ContextTable
from interp.exemplars.index_pass.device_pass import DevicePass
from interp.exemplars.index_pass.device_program import Route
from interp.exemplars.index_pass.pass_parts import PassParts
from interp.exemplars.index_pass.running_index import COUNTERS, NO_PRIORITY, IndexConfig, hash_uniform
from interp.exemplars.index_pass.streaming_top_k import StreamingTopK
from interp.exemplars.study_peaks import StudyPeaks
from maira_jax.errors import UserError
from maira_jax.inputs.tokens import Kind
from maira_jax.run import files, processes, storage
from maira_jax.run.performance import profile
from maira_jax.run.performance.profile import StepTrace
from maira_jax.run.progress import progress
from sae.activations.store import HELD_OUT, TRAIN, ActivationRows
from sae.autoencoder import Sae

SPLITS = (TRAIN, HELD_OUT)
# Positions are summed in int32 over a block, of at most 2^15 tokens.
_MAX_POSITION = 2**16
# A save of the real size writes some hundred megabytes; an interrupted pass loses at most so much work.
_SAVE_SECONDS = 300.0
_INDEX, _PARTS = "index.npz", "parts"
_PEAKS, _FIRSTS = "study_peak", "first_studies.json"  # a folder of arrays, and the study of each one's first row


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
    study_kinds: frozenset[Kind],
    devices: Sequence[jax.Device],
    folder: Path,
    route: Route | None = None,
    trace: StepTrace = profile.OFF,
    name: str = "exemplars",
) -> dict[str, SplitIndex]:
    """Runs the pass, in which all processes of the run take part, and writes what `load` and `study_peaks` read.

    Args:
      sae: autoencoder of raw activations, with F features.
      store: the activations that `contexts` were cut from.
      contexts: all contexts of the store.
      held_out: which studies are held out. bool [n_studies]
      cfg: sizes of the pass.
      study_kinds: the kinds of tokens that count for a study's largest activations.
      devices: they share the features.
      folder: where the results are, and where the pass is saved every few minutes, so that an interrupted one resumes.
      route: how the devices add a block, with equal results; None for what suits them.
      trace: which blocks are traced.
      name: of the pass, for the progress bar.

    Returns:
      An index for each of `SPLITS`.

    Raises:
      UserError: a study is too long, or what was saved is of another pass.
    """
    length = _longest_study(contexts)
    if length > _MAX_POSITION:
        raise UserError(
            f"a study has {length} tokens, and exemplars can be found in at most {_MAX_POSITION}: shorten it"
        )
    split = held_out[contexts.study].astype(np.int8)  # [contexts]
    pools = [_draw_pool(np.flatnonzero(split == number), cfg, number) for number in (0, 1)]
    table = _context_table(contexts, split, pools, study_kinds, cfg.n_pool)
    whole = _StorePass(sae, store, table, pools, cfg, devices, route, folder)
    parts = PassParts(folder / _PARTS, _identity(sae, table, cfg))
    saved = [range(*ends) for ends in processes.first_only(lambda: [[p.start, p.stop] for p in parts.saved()])]
    own = _share(contexts, cfg.block_tokens, saved)
    n_tokens = sum(int(contexts.length[part.start : part.stop].sum()) for reads in own for part in reads)
    with progress(total=n_tokens, unit="tok", desc=f"interpret: {name}") as bar:
        for reads in own:
            whole.add(reads, parts, bar, trace)
    added = processes.gather([[reads[0].start, reads[-1].stop] for reads in own])
    saved += [range(*ends) for of_process in added for ends in of_process]
    if processes.is_first():
        storage.fetch(folder)
        _join(folder, parts, sorted(saved, key=lambda part: part.start), contexts, cfg.seed)
    processes.barrier()
    storage.fetch(folder)
    return load(folder)


def _share(contexts: Contexts, block_tokens: int, saved: Sequence[range]) -> list[list[range]]:
    """What this process reads of the contexts that are not saved: for each part, reads that follow each other."""
    starts, stops = (sorted(getattr(part, name) for part in saved) for name in ("start", "stop"))
    gaps = map(range, [0, *stops], [*starts, len(contexts)])
    left = [read for gap in gaps for read in blocks.reads(contexts, block_tokens, gap)]
    low, high = (len(left) * (processes.index() + i) // processes.count() for i in (0, 1))
    found: list[list[range]] = []
    for read in left[low:high]:
        if found and found[-1][-1].stop == read.start:
            found[-1].append(read)
        else:
            found.append([read])
    return found


@dataclasses.dataclass(frozen=True)
class _StorePass:
    """What passes over parts of the store; attributes as the arguments of `build`.

    Attributes:
      table: all contexts of the store.
      pools: the context numbers of each split's pool.
    """

    sae: Sae
    store: ActivationRows
    table: ContextTable
    pools: Sequence[np.ndarray]
    cfg: IndexConfig
    devices: Sequence[jax.Device]
    route: Route | None
    folder: Path

    def add(self, reads: Sequence[range], parts: PassParts, bar: Any, trace: StepTrace) -> None:
        """Passes over a part; saves it from time to time, and at its end."""
        contexts = self.table.contexts
        begin, stop = reads[0].start, reads[-1].stop
        first = int(contexts.study[begin])
        path = _peaks_path(self.folder, begin)
        path.parent.mkdir(parents=True, exist_ok=True)
        study_peak = files.array_on_disk(
            path, np.float32, (int(contexts.study[stop - 1]) + 1 - first, self.sae.n_features)
        )
        device_pass = DevicePass(
            self.sae,
            self.cfg,
            int(contexts.length.max(initial=1)),
            _longest_study(contexts),
            study_peak,
            self.devices,
            self.route,
        )
        last_save = time.monotonic()
        read = blocks.blocks(self.store, self.table, self.cfg.block_tokens, reads)
        sent = ((part, device_pass.put(part.block)) for part in read)
        for part, block in trace.over(blocks.read_ahead(sent)):
            device_pass.add(part.split, part.studies - first, block)
            bar.update(part.n_tokens)
            due = time.monotonic() - last_save >= _SAVE_SECONDS
            if part.n_done == stop or (part.n_done is not None and due):
                found = self._found(device_pass)  # waits for all blocks
                study_peak.flush()
                storage.send(path)
                parts.save(range(begin, part.n_done), _arrays(found))
                last_save = time.monotonic()

    def _found(self, device_pass: DevicePass) -> dict[str, SplitIndex]:
        """The index of the part so far; its pools and totals are those of the whole store."""
        contexts, split = self.table.contexts, self.table.split
        return {
            name: _result(device_pass, number, self.pools[number], contexts.length[split == number], self.cfg)
            for number, name in enumerate(SPLITS)
        }


def _join(folder: Path, parts: PassParts, saved: Sequence[range], contexts: Contexts, seed: int) -> None:
    """Writes the index of the whole store, and where its studies' peaks are, from all parts, in order."""
    assert [0, *(part.stop for part in saved)] == [*(part.start for part in saved), len(contexts)]
    found = (_of_arrays(parts.load(part.start)) for part in saved)
    whole = functools.reduce(lambda one, later: {name: _joined(one[name], later[name], seed) for name in SPLITS}, found)
    firsts = {_peaks_path(folder, part.start).name: int(contexts.study[part.start]) for part in saved}
    files.write_json(folder / _PEAKS / _FIRSTS, firsts)
    with files.atomic_path(folder / _INDEX) as temporary, temporary.open("wb") as file:
        np.savez(file, **_arrays(whole))
    files.remove(parts.folder)


def _joined(one: SplitIndex, later: SplitIndex, seed: int) -> SplitIndex:
    """What was found in two parts of a split; the contexts of `later` come after those of `one`."""

    def both(name: str) -> np.ndarray:
        return np.concatenate([getattr(one, name), getattr(later, name)], axis=1)

    top_peak, top = _largest(both("top_peak"), {"top_context": both("top_context")}, one.top_peak.shape[1])
    drawn = {name: both(name) for name in ("sample_context", "sample_peak")}
    context, feature = drawn["sample_context"], np.arange(len(one.n_contexts))[:, None]
    priority = np.where(context < 0, NO_PRIORITY, hash_uniform(context, feature, seed))  # [F, 2 n_sample]
    _, sample = _largest(priority, drawn, one.sample_peak.shape[1])
    changed: dict[str, Any] = {name: getattr(one, name) + getattr(later, name) for name in COUNTERS}
    changed |= {"top_peak": top_peak, "pool_active": one.pool_active | later.pool_active, **top, **sample}
    return dataclasses.replace(one, **changed)


def _longest_study(contexts: Contexts) -> int:
    """Its number of tokens."""
    return int((contexts.position + contexts.length).max(initial=1))


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
    """What was found in a split with this pool and contexts of these `lengths`."""
    running = device_pass.running(split)
    top_peak, top = _kept(running.top, cfg.n_top)
    _, sample = _kept(running.sample, cfg.n_sample)
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


def _kept(top: StreamingTopK, k: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Keys and values of each row's k largest entries, by falling key. [rows, k] each"""
    values = {name: np.asarray(value).T for name, value in top.values.items()}
    return _largest(np.ascontiguousarray(np.asarray(top.key).T), values, k)


def _largest(key: np.ndarray, values: dict[str, np.ndarray], k: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Each row's k largest keys and their values, by falling key; the earlier one wins a tie. [rows, n] to [rows, k]"""
    order = np.argsort(-key, axis=1, kind="stable")[:, :k]  # [rows, k]
    return np.take_along_axis(key, order, axis=1), {
        name: np.take_along_axis(value, order, axis=1) for name, value in values.items()
    }


def pool_activity(found: Mapping[str, SplitIndex]) -> np.ndarray:
    """Which feature is active in which context of either split's pool, bool [contexts, F]."""
    return np.concatenate([found[split].pool_active for split in SPLITS])


def is_built(folder: Path) -> bool:
    """Whether `build` has ended in a folder."""
    return (folder / _INDEX).is_file()


def load(folder: Path) -> dict[str, SplitIndex]:
    """Reads the index that `build` wrote into a folder."""
    with np.load(folder / _INDEX) as arrays:
        return _of_arrays(arrays)


def study_peaks(folder: Path, n_studies: int, n_features: int) -> StudyPeaks:
    """Reads each study's largest activations, which `build` wrote into a folder."""
    firsts = files.read_object(folder / _PEAKS / _FIRSTS)
    return StudyPeaks((n_studies, n_features), [(folder / _PEAKS / name, first) for name, first in firsts.items()])


def _peaks_path(folder: Path, begin: int) -> Path:
    """Where the largest activations in the contexts from `begin` on are, from the study of the first of them on."""
    return folder / _PEAKS / f"{begin:012d}.npy"


def _arrays(found: Mapping[str, SplitIndex]) -> dict[str, Any]:
    return {f"{split}/{name}": value for split, part in found.items() for name, value in vars(part).items()}


def _of_arrays(arrays: Mapping[str, np.ndarray]) -> dict[str, SplitIndex]:
    parts: dict[str, dict[str, Any]] = {split: {} for split in SPLITS}
    for path, value in arrays.items():
        split, field = path.split("/")
        parts[split][field] = value if value.ndim else int(value)
    return {split: SplitIndex(**part) for split, part in parts.items()}
