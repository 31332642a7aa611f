"""Batches of activations in a shuffled order that any step can be resumed from."""

import collections
import mmap
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np

from maira_jax.errors import UserError
from sae.activations.row_ranges import RowRanges
from sae.activations.store import ActivationRows

# Parts of a batch with chunks of their own, so that processes that each hold a part of every batch need not read the
# same chunks. More than this many processes do, to some extent.
LANES = 64


class ShuffledBatches:
    """A shuffled stream of rows over many epochs, divided into groups of batches.

    Every epoch visits the chunks in another order. What a window takes from that order (the rows of one group, or of as
    many groups as the store's buffer holds) is divided into `LANES` lanes of neighbours, as are the rows of a batch,
    and each lane is shuffled over the batches of the window. So every batch holds rows from all of the window, and a
    part of every batch comes from the same part of the window's chunks. Group i is a pure function of the seed and i,
    so the position in the data is a single number.

    Args:
      store: the activations.
      rows: the rows to draw from.
      batch_size: number of rows in a batch.
      group: number of batches in a group.
      n_groups: number of groups in the stream.
      seed: seed of the order.

    Raises:
      UserError: there is no row to draw from.
    """

    def __init__(self, store: ActivationRows, rows: RowRanges, batch_size: int, group: int, n_groups: int, seed: int):
        if not len(rows):
            raise UserError(f"{store.directory} has no token in the training split: lower harvest.held_out_fraction")
        self._store, self._seed, self._batch_size, self._group, self._n_groups = (
            store,
            seed,
            batch_size,
            group,
            n_groups,
        )
        self._per_window = min(max(store.buffer_rows // (group * batch_size), 1), n_groups)
        self._stream = _RowStream(rows, store.chunk_bounds(), seed)
        self._direct = slice(None), self._windows(slice(None))
        self._latest: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return self._n_groups

    def group(self, index: int, rows: slice = slice(None)) -> np.ndarray:
        """Group `index`, [group, rows, d_model] in the stored dtype.

        Args:
          index: number of the group.
          rows: the part of every batch that is read, without a step.
        """
        window, place = divmod(index, self._per_window)
        if self._direct[0] != rows:
            self._direct, self._latest = (rows, self._windows(rows)), None
        if self._latest is None or self._latest[0] != window:
            self._latest = (window, self._direct[1][window])
        return self._latest[1].reshape(-1, self._group, *self._latest[1].shape[1:])[place]

    def iterate(self, first: int, rows: slice = slice(None)) -> Iterator[np.ndarray]:
        """Yields the groups from `first` to the last; threads read windows ahead, where the store allows it.

        Args:
          first: the first group.
          rows: the part of every batch that is read, without a step.
        """
        windows = self._windows(rows)
        self._latest, self._direct = None, (rows, windows)  # gives up their memory
        window, place = divmod(first, self._per_window)
        # Large windows are read ahead one at a time, since each of them fills the buffer.
        ahead = (2 if self._per_window == 1 else 1) if self._store.readable_ahead else 0
        dataset = grain.MapDataset.source(windows).slice(slice(window, len(windows)))
        for values in dataset.to_iter_dataset(grain.ReadOptions(num_threads=ahead, prefetch_buffer_size=ahead)):
            yield from values.reshape(-1, self._group, *values.shape[1:])[place:]
            place = 0

    def _windows(self, rows: slice) -> "_WindowSource":
        n_batches, total = self._per_window * self._group, self._n_groups * self._group
        part = range(self._batch_size)[rows]
        return _WindowSource(self._store, self._stream, n_batches, total, self._batch_size, part, self._seed)


class _WindowSource:
    """The windows of `ShuffledBatches`, or a part of each of their batches; a grain source with random access."""

    def __init__(
        self,
        store: ActivationRows,
        stream: "_RowStream",
        n_batches: int,
        total_batches: int,
        batch_size: int,
        part: range,
        seed: int,
    ):
        self._store, self._stream, self._n_batches, self._total_batches = store, stream, n_batches, total_batches
        self._batch_size, self._part, self._seed = batch_size, part, seed
        self._memory = _ReusedMemory(n_batches * len(part) * store.d_model * store.dtype.itemsize)

    def __len__(self) -> int:
        return -(-self._total_batches // self._n_batches)

    def __repr__(self) -> str:
        return f"_WindowSource({self._store.directory}, {self._total_batches} batches of {self._part}, {self._seed})"

    def __getitem__(self, index: int) -> np.ndarray:
        """The batches of window `index`, of which the last window may have fewer. [batches, part, d_model]"""
        first = int(index) * self._n_batches
        n_batches = min(self._n_batches, self._total_batches - first)
        shuffled = shuffled_places(self._batch_size, n_batches, self._part, (self._seed, 1, int(index)))
        order = np.argsort(shuffled, axis=None)
        rows = self._stream.rows(first * self._batch_size + shuffled.ravel()[order])
        values = self._memory.array((len(rows), self._store.d_model), self._store.dtype)
        self._store.read_into(values, rows, order)
        return values.reshape(*shuffled.shape, -1)


def shuffled_places(batch_size: int, n_batches: int, part: range, seed: tuple[int, ...]) -> np.ndarray:
    """The places in a window of the rows that the batches of the window take.

    Args:
      batch_size: number of rows in a batch.
      n_batches: number of batches in the window.
      part: the rows of every batch that are wanted.
      seed: seed of the window's order.

    Returns:
      Numbers below `n_batches * batch_size`. int64 [n_batches, len(part)]
    """
    edges = np.arange(LANES + 1) * batch_size // LANES
    first, stop = np.searchsorted(edges, part.start, side="right") - 1, np.searchsorted(edges, part.stop)
    columns = []
    for lane in range(first, stop):
        width = edges[lane + 1] - edges[lane]
        order = np.random.default_rng((*seed, lane)).permutation(n_batches * width)
        columns.append(n_batches * edges[lane] + order.reshape(n_batches, width))
    return np.concatenate(columns, axis=1)[:, part.start - edges[first] :][:, : len(part)]


class _RowStream:
    """The rows of all epochs, one epoch after the other; the chunks have another order in each of them.

    Args:
      rows: the rows of an epoch.
      bounds: where the store's chunks begin and end.
      seed: seed of the order.
    """

    def __init__(self, rows: RowRanges, bounds: np.ndarray, seed: int):
        self._rows, self._seed, self._n = rows, seed, len(rows)
        self._edges = rows.chunk_edges(bounds)
        self._epochs: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._lock = threading.Lock()

    def rows(self, places: np.ndarray) -> np.ndarray:
        """The row numbers at ascending places in the stream. int64 [n]"""
        found, begin = [], 0
        while begin < len(places):
            epoch = int(places[begin]) // self._n
            end = int(np.searchsorted(places, (epoch + 1) * self._n))
            within = (places[begin:end] - epoch * self._n).astype(self._edges.dtype)
            order, ends = self._epoch(epoch)
            of = np.searchsorted(ends, within, side="right")
            found.append(self._rows.take(self._edges[order[of] + 1] - (ends[of] - within)))
            begin = end
        return np.concatenate(found)

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The order of the chunks, and the number of rows in each and in all before it; of two epochs they are kept."""
        with self._lock:
            if epoch not in self._epochs:
                self._epochs = {other: held for other, held in self._epochs.items() if abs(other - epoch) == 1}
                rng = np.random.default_rng((self._seed, 0, epoch))
                order = rng.permutation(len(self._edges) - 1).astype(self._edges.dtype)
                self._epochs[epoch] = order, np.cumsum(np.diff(self._edges)[order], dtype=self._edges.dtype)
            return self._epochs[epoch]


class _ReusedMemory:
    """Arrays whose memory is used again once they are gone, since touching new memory takes longer than filling it.

    Args:
      n_bytes: size of the largest array.
    """

    def __init__(self, n_bytes: int):
        self._n_bytes = n_bytes
        self._free: collections.deque[mmap.mmap] = collections.deque()

    def array(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        """An array of any content."""
        try:
            memory = self._free.pop()
        except IndexError:
            memory = mmap.mmap(-1, self._n_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            if hasattr(mmap, "MADV_HUGEPAGE"):  # rows are written all over it, and small pages would be looked up
                memory.madvise(mmap.MADV_HUGEPAGE)
        flat = np.frombuffer(memory, dtype, int(np.prod(shape)))
        # Every view of it refers to it, also those that JAX holds while it copies or instead of copying.
        weakref.finalize(flat, self._free.append, memory)
        return flat.reshape(shape)


def sequential(
    store: ActivationRows, rows: np.ndarray, batch_size: int, part: slice = slice(None)
) -> Iterator[np.ndarray]:
    """Yields the given ascending rows in order, or a part of every batch of them, as `ShuffledBatches.iterate`.

    Yields:
      [batch_size, d_model] in the stored dtype, or of the part; of the last batch there may be fewer.
    """
    dataset = grain.MapDataset.source(_SequentialSource(store, rows, batch_size, part))
    ahead = 2 if store.readable_ahead else 0
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=ahead, prefetch_buffer_size=ahead)))


class _SequentialSource:
    """The batches of `sequential`; a grain source with random access."""

    def __init__(self, store: ActivationRows, rows: np.ndarray, batch_size: int, part: slice):
        self._store, self._rows, self._batch, self._part = store, rows, batch_size, part

    def __len__(self) -> int:
        return -(-len(self._rows) // self._batch)

    def __getitem__(self, index: int) -> np.ndarray:
        rows = self._rows[index * self._batch : (index + 1) * self._batch][self._part]
        values = np.empty((len(rows), self._store.d_model), self._store.dtype)
        self._store.read_into(values, rows, np.arange(len(rows)))
        return values
