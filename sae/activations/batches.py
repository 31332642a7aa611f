"""Batches of activations in a shuffled order that any step can be resumed from."""

import dataclasses
from collections.abc import Iterator

import grain
import numpy as np

from maira_jax.errors import UserError
from sae.activations.store import ActivationRows


@dataclasses.dataclass(frozen=True)
class _Block:
    """Some rows of a chunk of the store: the offsets of the wanted ones from `start`."""

    start: int
    stop: int
    offsets: np.ndarray


def _blocks(store: ActivationRows, rows: np.ndarray) -> list[_Block]:
    """Groups ascending `rows` by the chunk of the store that they lie in, so that a read never splits a chunk."""
    cuts = np.flatnonzero(np.diff(store.chunk_of(rows))) + 1
    return [_Block(int(part[0]), int(part[-1]) + 1, part - part[0]) for part in np.split(rows, cuts) if len(part)]


class ShuffledBatches:
    """An endless shuffled stream of rows, cut into groups of batches.

    Every epoch visits the blocks (the wanted rows of a chunk) in another order; the rows of all the blocks of a window
    (one group, or as many as the store's buffer holds) are shuffled again. Group i is a pure function of the seed
    and i, so the position in the data is a single number.

    Args:
      store: where to read.
      rows: the rows to draw from, ascending. [n]
      batch_size: rows of a batch.
      group: batches of a group.
      n_groups: length of the stream.
      seed: of the order.
    """

    def __init__(self, store: ActivationRows, rows: np.ndarray, batch_size: int, group: int, n_groups: int, seed: int):
        if not len(rows):
            raise UserError(f"{store.directory} has no token in the training split: lower harvest.held_out_fraction")
        self._shape = (group, batch_size, store.d_model)
        self._per_window = min(max(store.buffer_rows // (group * batch_size), 1), n_groups)
        self._n_groups = n_groups
        self._windows = _Windows(
            store, rows, self._per_window * group * batch_size, n_groups * group * batch_size, seed
        )
        self._latest: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return self._n_groups

    def __getitem__(self, index: int) -> np.ndarray:
        """Group `index`: [group, batch_size, d_model], as stored."""
        window, place = divmod(int(index), self._per_window)
        if self._latest is None or self._latest[0] != window:
            self._latest = (window, self._windows[window])
        return self._latest[1].reshape(-1, *self._shape)[place]

    def iterate(self, first: int) -> Iterator[np.ndarray]:
        """Groups from `first` on; threads read windows ahead."""
        self._latest = None
        window, place = divmod(first, self._per_window)
        # Of large windows only the next one is read ahead, since each of them fills the buffer.
        ahead = 2 if self._per_window == 1 else 1
        dataset = grain.MapDataset.source(self._windows).slice(slice(window, len(self._windows)))
        for rows in dataset.to_iter_dataset(grain.ReadOptions(num_threads=ahead, prefetch_buffer_size=ahead)):
            yield from rows.reshape(-1, *self._shape)[place:]
            place = 0


class _Windows:
    """The stream of `ShuffledBatches` in windows; a grain source with random access."""

    def __init__(self, store: ActivationRows, rows: np.ndarray, size: int, total: int, seed: int):
        self._store, self._seed, self._size, self._total = store, seed, size, total
        self._blocks = _blocks(store, rows)
        self._sizes = np.array([len(block.offsets) for block in self._blocks])
        self._n_rows = len(rows)

    def __len__(self) -> int:
        return -(-self._total // self._size)

    def __repr__(self) -> str:
        return f"_Windows({self._store.directory}, {self._size} of {self._total}, {self._n_rows} rows, {self._seed})"

    def __getitem__(self, index: int) -> np.ndarray:
        """The rows of window `index`, shuffled; the last window may be short. [rows, d_model]"""
        start = int(index) * self._size
        size = min(self._size, self._total - start)
        parts = self._pieces(start, size)
        reads = self._store.read_ranges([(block.start, block.stop) for block, _ in parts])
        rows = np.concatenate([values[offsets] for values, (_, offsets) in zip(reads, parts, strict=True)])
        return rows[np.random.default_rng((self._seed, 1, int(index))).permutation(size)]

    def _pieces(self, start: int, size: int) -> list[tuple[_Block, np.ndarray]]:
        """The blocks that hold places `start` to `start + size` of the stream, with the offsets wanted of each."""
        pieces = []
        epoch, place = divmod(start, self._n_rows)
        while size:
            order = np.random.default_rng((self._seed, 0, epoch)).permutation(len(self._blocks))
            ends = np.cumsum(self._sizes[order])
            at = int(np.searchsorted(ends, place, side="right"))
            while size and at < len(order):
                block = self._blocks[order[at]]
                # Inside a block, too, the order differs by epoch: otherwise a block that lies across two groups would
                # always be cut at its early rows.
                offsets = np.random.default_rng((self._seed, 2, epoch, int(order[at]))).permutation(block.offsets)
                skip = place - int(ends[at] - len(offsets))
                wanted = offsets[skip : skip + size]
                pieces.append((block, wanted))
                place, size, at = place + len(wanted), size - len(wanted), at + 1
            epoch, place = epoch + 1, 0
        return pieces


def sequential(store: ActivationRows, rows: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """The given ascending rows in order, `[batch_size, d_model]` float32; the last batch may be short."""
    source = _Sequential(store, rows, batch_size)
    dataset = grain.MapDataset.source(source)
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)))


class _Sequential:
    def __init__(self, store: ActivationRows, rows: np.ndarray, batch_size: int):
        self._store, self._rows, self._batch = store, rows, batch_size

    def __len__(self) -> int:
        return -(-len(self._rows) // self._batch)

    def __getitem__(self, index: int) -> np.ndarray:
        blocks = _blocks(self._store, self._rows[index * self._batch : (index + 1) * self._batch])
        reads = self._store.read_ranges([(block.start, block.stop) for block in blocks])
        parts = [values[block.offsets] for values, block in zip(reads, blocks, strict=True)]
        return np.concatenate(parts).astype(np.float32)
