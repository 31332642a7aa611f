"""Tokens/s and GB/s of reading shuffled batches of activations for training, and the memory that describes them.

Ours reads its store, with checksums. `memmap` takes every batch from a NumPy memory map of the same values, row by row
in an order shuffled over all of them; `dataloader` is torch's DataLoader over that map. Each program runs in a process
of its own, in turns, and counts from its fifth group of ten batches on; medians are given. Activations are in the page
cache, so that processors are the limit and not disks. `described` is the memory and the time for the rows of a store of
many tokens, whose activations are never read.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pyarrow as pa

from launch.benches import child_process, peers
from sae.activations.batches import ShuffledBatches
from sae.activations.row_ranges import RowRanges
from sae.activations.store import HELD_OUT, TRAIN, ActivationStore, StoreLayout, StoreWriter
from sae.activations.token_rows import TokenRows
from sae.training.config import CHUNK_STEPS

_SIDES = ("ours", "memmap", "dataloader")
_WARM, _TIMED = 4, 12  # groups of batches
_STUDIES_AT_A_TIME = 2**16


def main(options: Sequence[str]) -> None:
    """Prints one line of JSON."""
    parser = argparse.ArgumentParser(prog="launch.bench feed", description=__doc__)
    parser.add_argument("--tokens", type=int, default=2**18, help="tokens of the store, which is read repeatedly")
    parser.add_argument("--d_model", type=int, default=4096, help="width of the activations, in bfloat16")
    parser.add_argument("--batch_size", type=int, default=4096, help="tokens")
    parser.add_argument("--readers", type=int, help="our threads that read chunks; by default one per processor")
    parser.add_argument(
        "--processes", type=int, default=1, help="ours reads the first of this many parts of each batch"
    )
    parser.add_argument("--described", type=int, default=10**9, help="tokens of the store whose rows are described")
    parser.add_argument("--turns", type=int, default=3, help="number of times that each is timed")
    parser.add_argument("--alone", action="store_true", help="time ours alone")
    parser.add_argument("--child", nargs=2, metavar=("SIDE", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(options)
    if arguments.child:
        print(json.dumps(_timed(arguments, *arguments.child)))
        return
    sides = _SIDES[:1] if arguments.alone else _SIDES
    if not arguments.alone:
        peers.torch()  # fails before anything is written where torch is not installed
    with tempfile.TemporaryDirectory() as folder:
        _write(arguments, Path(folder))
        turns = [
            {side: child_process.measured("feed", options, side, folder) for side in sides}
            for _ in range(arguments.turns)
        ]
    medians = {
        side: {name: round(statistics.median(turn[side][name] for turn in turns), 3) for name in turns[0][side]}
        for side in sides
    }
    result = {
        **{name: value for name, value in vars(arguments).items() if name not in ("child", "alone")},
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        **medians,
        "cpu_ratio": {
            side: round(medians["ours"]["tokens_per_cpu_second"] / medians[side]["tokens_per_cpu_second"], 2)
            for side in sides[1:]
        },
        "described": _described(arguments),
    }
    print(json.dumps(result))


def _studies(tokens: int) -> Iterator[pa.RecordBatch]:
    """The studies of a store, of 64 to 192 tokens each, a seventh of them held out at random."""
    rng, start = np.random.default_rng(0), 0
    while start < tokens:
        stops = np.minimum(start + np.cumsum(rng.integers(64, 193, _STUDIES_AT_A_TIME)), tokens)
        starts = np.append(start, stops[:-1])
        there = starts < stops
        split = np.where(rng.random(there.sum()) < 1 / 7, HELD_OUT, TRAIN)
        yield pa.record_batch({"split": split, "start": starts[there], "stop": stops[there]})
        start = int(stops[-1])


def _write(arguments: argparse.Namespace, folder: Path) -> None:
    """The same random activations as our store and as a memory map."""
    studies = pa.Table.from_batches(_studies(arguments.tokens))
    numbers = pa.array([str(i) for i in range(len(studies))])
    for name in ("study_id", "patient_id", "labels"):
        studies = studies.append_column(name, numbers)
    zeros = np.zeros(arguments.tokens, np.int32)
    tokens = TokenRows(zeros, zeros, zeros, zeros.astype(np.int8))
    layout = StoreLayout.of(arguments.tokens, arguments.d_model, "bfloat16")
    writer = StoreWriter(folder / "activations", layout, tokens, studies, {})
    shape = (arguments.tokens, arguments.d_model)
    flat = np.lib.format.open_memmap(folder / "values.npy", "w+", np.int16, shape)
    rng = np.random.default_rng(0)
    for shard in writer.missing():
        start, stop = layout.rows(shard)
        values = rng.standard_normal((stop - start, arguments.d_model), np.float32).astype(ml_dtypes.bfloat16)
        writer.write(shard, values)
        flat[start:stop] = values.view(np.int16)
    flat.flush()


def _timed(arguments: argparse.Namespace, side: str, folder: str) -> dict[str, float]:
    """What one program reads in a second, when its first groups have been read."""
    feed = {"ours": _ours, "memmap": _memmap, "dataloader": _dataloader}[side](arguments, Path(folder))
    for _ in range(_WARM):
        next(feed)
    wall, cpu = time.perf_counter(), time.process_time()
    tokens = sum(next(feed) for _ in range(_TIMED))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    n_bytes = tokens * arguments.d_model * 2
    return {
        "tokens_per_second": tokens / wall,
        "tokens_per_cpu_second": tokens / cpu,
        "gb_per_second": n_bytes / wall / 1e9,
        "gb_per_cpu_second": n_bytes / cpu / 1e9,
    }


def _ours(arguments: argparse.Namespace, folder: Path) -> Iterator[int]:
    """The tokens of each group that was read."""
    store = ActivationStore.open(folder / "activations", arguments.readers)
    size = arguments.batch_size
    # More groups than are timed, so that reading ahead is the same at the begin and at the end.
    source = ShuffledBatches(store, store.rows_of(TRAIN), size, CHUNK_STEPS, 2 * (_WARM + _TIMED), seed=0)
    for group in source.iterate(0, slice(size // arguments.processes)):
        yield group.shape[0] * group.shape[1]


def _batches(arguments: argparse.Namespace, folder: Path) -> Iterator[np.ndarray]:
    """Numbers of training rows in batches, shuffled in every epoch. int64 [batch_size] each"""
    rows = ActivationStore.open(folder / "activations").rows_of(TRAIN).numbers()
    rng, waiting = np.random.default_rng(0), np.empty(0, np.int64)
    while True:
        while len(waiting) < arguments.batch_size:
            waiting = np.append(waiting, rng.permutation(rows))
        yield waiting[: arguments.batch_size]
        waiting = waiting[arguments.batch_size :]


def _memmap(arguments: argparse.Namespace, folder: Path) -> Iterator[int]:
    values = np.load(folder / "values.npy", mmap_mode="r")
    batches = _batches(arguments, folder)
    while True:
        yield sum(len(values[next(batches)]) for _ in range(CHUNK_STEPS))


def _dataloader(arguments: argparse.Namespace, folder: Path) -> Iterator[int]:
    torch = peers.torch()
    values = torch.from_numpy(np.load(folder / "values.npy", mmap_mode="c"))
    sampler = (batch.tolist() for batch in _batches(arguments, folder))
    batches = iter(torch.utils.data.DataLoader(values, batch_sampler=sampler))
    while True:
        yield sum(len(next(batches)) for _ in range(CHUNK_STEPS))


class _DescribedRows:
    """A store of many rows, none of which is there: `ActivationRows` as far as the order of batches needs it."""

    directory, buffer_rows, d_model, dtype = Path(), 0, 1, np.dtype(np.int16)

    def __init__(self, tokens: int):
        self._tokens = tokens

    def chunk_bounds(self) -> np.ndarray:
        return StoreLayout.of(self._tokens, 1, "bfloat16").chunk_bounds()

    def read_into(self, out: np.ndarray, rows: np.ndarray, places: np.ndarray) -> None:
        pass


def _described(arguments: argparse.Namespace) -> dict[str, float]:
    """Memory and time until the first group of batches can be read, and the time to say what the next ones read."""
    store: Any = _DescribedRows(arguments.described)
    studies = list(_studies(arguments.described))
    tracemalloc.start()
    start = time.perf_counter()
    rows = RowRanges.of_split(studies, TRAIN)
    source = ShuffledBatches(store, rows, arguments.batch_size, CHUNK_STEPS, 1 + _TIMED, seed=0)
    source.group(0)
    seconds = time.perf_counter() - start
    held, peak = (round(n_bytes / 1e6, 2) for n_bytes in tracemalloc.get_traced_memory())
    tracemalloc.stop()
    start = time.perf_counter()
    for group in range(1, 1 + _TIMED):
        source.group(group)
    per_group = (time.perf_counter() - start) / _TIMED
    return {"held_mb": held, "peak_mb": peak, "seconds": round(seconds, 2), "seconds_per_group": round(per_group, 4)}
