"""Batches of activations in a shuffled order that any step can be resumed from."""

import dataclasses
from collections.abc import Iterator

import grain
import numpy as np

from maira_jax.errors import UserError
from sae.activations.store import ActivationRows


@dataclasses.dataclass(frozen=True)
class _ChunkRows:
    """The rows to read from one chunk of the store.

    Attributes:
      start: the first of them.
      stop: one past the last of them.
      offsets: all of them, counted from `start`, ascending. int64 [n]
    """

    start: int
    stop: int
    offsets: np.ndarray


def _by_chunk(store: ActivationRows, rows: np.ndarray) -> list[_ChunkRows]:
    """Groups ascending `rows` by the chunk of the store that they lie in, so that a read never splits a chunk."""
    boundaries = np.flatnonzero(np.diff(store.chunk_of(rows))) + 1
    parts = [part for part in np.split(rows, boundaries) if len(part)]
    return [_ChunkRows(int(part[0]), int(part[-1]) + 1, part - part[0]) for part in parts]


class ShuffledBatches:
    """A shuffled stream of rows over many epochs, divided into groups of batches.

    Every epoch visits the chunks in another order; the rows of all chunks of a window (one group, or as many groups as
    the store's buffer holds) are shuffled again. Group i is a pure function of the seed and i, so the position in the
    data is a single number.

    Args:
      store: the activations.
      rows: the rows to draw from, ascending. int64 [n]
      batch_size: number of rows in a batch.
      group: number of batches in a group.
      n_groups: number of groups in the stream.
      seed: seed of the order.

    Raises:
      UserError: there is no row to draw from.
    """

    def __init__(self, store: ActivationRows, rows: np.ndarray, batch_size: int, group: int, n_groups: int, seed: int):
        if not len(rows):
            raise UserError(f"{store.directory} has no token in the training split: lower harvest.held_out_fraction")
        self._shape = (group, batch_size, store.d_model)
        self._per_window = min(max(store.buffer_rows // (group * batch_size), 1), n_groups)
        self._n_groups = n_groups
        self._windows = _WindowSource(
            store, rows, self._per_window * group * batch_size, n_groups * group * batch_size, seed
        )
        self._latest: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return self._n_groups

    def __getitem__(self, index: int) -> np.ndarray:
        """Group `index`, [group, batch_size, d_model] in the stored dtype."""
        window, place = divmod(int(index), self._per_window)
        if self._latest is None or self._latest[0] != window:
            self._latest = (window, self._windows[window])
        return self._latest[1].reshape(-1, *self._shape)[place]

    def iterate(self, first: int) -> Iterator[np.ndarray]:
        """Yields the groups from `first` to the last; threads read windows ahead."""
        self._latest = None
        window, place = divmod(first, self._per_window)
        # Large windows are read ahead one at a time, since each of them fills the buffer.
        ahead = 2 if self._per_window == 1 else 1
        dataset = grain.MapDataset.source(self._windows).slice(slice(window, len(self._windows)))
        for rows in dataset.to_iter_dataset(grain.ReadOptions(num_threads=ahead, prefetch_buffer_size=ahead)):
            yield from rows.reshape(-1, *self._shape)[place:]
            place = 0


class _WindowSource:
    """The stream of `ShuffledBatches` in windows; a grain source with random access."""

    def __init__(self, store: ActivationRows, rows: np.ndarray, size: int, total: int, seed: int):
        self._store, self._seed, self._size, self._total = store, seed, size, total
        self._chunks = _by_chunk(store, rows)
        self._sizes = np.array([len(chunk.offsets) for chunk in self._chunks])
        self._n_rows = len(rows)

    def __len__(self) -> int:
        return -(-self._total // self._size)

    def __repr__(self) -> str:
        return (
            f"_WindowSource({self._store.directory}, {self._size} of {self._total}, {self._n_rows} rows, {self._seed})"
        )

    def __getitem__(self, index: int) -> np.ndarray:
        """The rows of window `index`, shuffled; the last window may be short. [rows, d_model]"""
        start = int(index) * self._size
        size = min(self._size, self._total - start)
        parts = self._pieces(start, size)
        reads = self._store.read_ranges([(chunk.start, chunk.stop) for chunk, _ in parts])
        rows = np.concatenate([values[offsets] for values, (_, offsets) in zip(reads, parts, strict=True)])
        return rows[np.random.default_rng((self._seed, 1, int(index))).permutation(size)]

    def _pieces(self, start: int, size: int) -> list[tuple[_ChunkRows, np.ndarray]]:
        """The chunks that hold rows `start` to `start + size` of the stream, with the offsets to read from each."""
        pieces = []
        epoch, place = divmod(start, self._n_rows)
        while size:
            order = np.random.default_rng((self._seed, 0, epoch)).permutation(len(self._chunks))
            ends = np.cumsum(self._sizes[order])
            at = int(np.searchsorted(ends, place, side="right"))
            while size and at < len(order):
                chunk = self._chunks[order[at]]
                # Inside a chunk, too, the order differs by epoch: otherwise a chunk that lies across two groups would
                # always give its first rows to the first one.
                offsets = np.random.default_rng((self._seed, 2, epoch, int(order[at]))).permutation(chunk.offsets)
                skip = place - int(ends[at] - len(offsets))
                wanted = offsets[skip : skip + size]
                pieces.append((chunk, wanted))
                place, size, at = place + len(wanted), size - len(wanted), at + 1
            epoch, place = epoch + 1, 0
        return pieces


def sequential(store: ActivationRows, rows: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """Yields the given ascending rows in order, [batch_size, d_model] in the stored dtype; the last may be short."""
    source = _SequentialSource(store, rows, batch_size)
    dataset = grain.MapDataset.source(source)
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)))


class _SequentialSource:
    """The batches of `sequential`; a grain source with random access."""

    def __init__(self, store: ActivationRows, rows: np.ndarray, batch_size: int):
        self._store, self._rows, self._batch = store, rows, batch_size

    def __len__(self) -> int:
        return -(-len(self._rows) // self._batch)

    def __getitem__(self, index: int) -> np.ndarray:
        chunks = _by_chunk(self._store, self._rows[index * self._batch : (index + 1) * self._batch])
        reads = self._store.read_ranges([(chunk.start, chunk.stop) for chunk in chunks])
        parts = [values[chunk.offsets] for values, chunk in zip(reads, chunks, strict=True)]
        return np.concatenate(parts)
