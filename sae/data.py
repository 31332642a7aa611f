"""Batches of activations in a shuffled order that any step can be resumed from."""

import dataclasses
from collections.abc import Iterator

import grain
import numpy as np

from maira_jax.errors import UserError
from sae.activations import Store


@dataclasses.dataclass(frozen=True)
class _Block:
    """Some rows of a chunk of the store: the offsets of the wanted ones from `start`."""

    start: int
    stop: int
    offsets: np.ndarray


def _blocks(rows: np.ndarray, chunk_rows: int) -> list[_Block]:
    """Groups ascending `rows` by the chunk they lie in, so that a read never splits a chunk."""
    chunk_of = rows // chunk_rows
    cuts = np.flatnonzero(np.diff(chunk_of)) + 1
    return [_Block(int(part[0]), int(part[-1]) + 1, part - part[0]) for part in np.split(rows, cuts) if len(part)]


class ShuffledBatches:
    """An endless shuffled stream of rows, cut into groups of batches; a grain source with random access.

    Every epoch visits the blocks (the wanted rows of a chunk) in another order; the rows of all the blocks of a group
    are shuffled again. Group i is a pure function of the seed and i, so the position in the data is a single number.

    Args:
      store: where to read.
      rows: the rows to draw from, ascending. [n]
      batch_size: rows of a batch.
      group: batches of a group.
      n_groups: length of the source.
      seed: of the order.
    """

    def __init__(self, store: Store, rows: np.ndarray, batch_size: int, group: int, n_groups: int, seed: int):
        if not len(rows):
            raise UserError(f"{store.directory} has no token in the training split: lower harvest.held_out_fraction")
        self._store, self._seed = store, seed
        self._shape = (group, batch_size, store.d_model)
        self._n_groups = n_groups
        self._blocks = _blocks(rows, store.layout.chunk_rows)
        self._sizes = np.array([len(block.offsets) for block in self._blocks])
        self._n_rows = len(rows)

    def __len__(self) -> int:
        return self._n_groups

    def __repr__(self) -> str:
        return f"ShuffledBatches({self._store.directory}, {self._shape}, {self._n_rows} rows, seed {self._seed})"

    def __getitem__(self, index: int) -> np.ndarray:
        """Group `index`: [group, batch_size, d_model], as stored."""
        size = self._shape[0] * self._shape[1]
        parts = self._pieces(int(index) * size, size)
        reads = self._store.read_ranges([(block.start, block.stop) for block, _ in parts])
        rows = np.concatenate([values[offsets] for values, (_, offsets) in zip(reads, parts, strict=True)])
        order = np.random.default_rng((self._seed, 1, int(index))).permutation(size)
        return rows[order].reshape(self._shape)

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

    def iterate(self, first: int) -> Iterator[np.ndarray]:
        """Groups from `first` on, read ahead by threads."""
        dataset = grain.MapDataset.source(self).slice(slice(first, len(self)))
        return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)))


def sequential(store: Store, rows: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """The given ascending rows in order, `[batch_size, d_model]` float32; the last batch may be short."""
    source = _Sequential(store, rows, batch_size)
    dataset = grain.MapDataset.source(source)
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)))


class _Sequential:
    def __init__(self, store: Store, rows: np.ndarray, batch_size: int):
        self._store, self._rows, self._batch = store, rows, batch_size

    def __len__(self) -> int:
        return -(-len(self._rows) // self._batch)

    def __getitem__(self, index: int) -> np.ndarray:
        rows = self._rows[index * self._batch : (index + 1) * self._batch]
        blocks = _blocks(rows, self._store.layout.chunk_rows)
        reads = self._store.read_ranges([(block.start, block.stop) for block in blocks])
        parts = [values[block.offsets] for values, block in zip(reads, blocks, strict=True)]
        return np.concatenate(parts).astype(np.float32)
