"""Rows of a store as ranges of neighbours, so that a description of a billion rows fits in memory many times over."""

import dataclasses
from collections.abc import Iterable
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

# Chunks whose places are found at a time: a bound on the memory for intermediate results.
_CHUNKS_AT_A_TIME = 2**18


@dataclasses.dataclass(frozen=True)
class RowRanges:
    """Ascending row numbers of a store, as ranges of neighbouring rows.

    Attributes:
      stops: one past the last row of each range, ascending. int64 [ranges]
      ends: number of the rows in each range and in all before it. int64 [ranges]
    """

    stops: np.ndarray
    ends: np.ndarray

    @classmethod
    def of(cls, starts: np.ndarray, stops: np.ndarray) -> Self:
        """The rows from each start to its stop, `int64 [n]` each, ascending and disjoint; neighbours are merged."""
        starts, stops = (rows[stops > starts] for rows in (starts, stops))
        apart = starts[1:] > stops[:-1]
        starts, stops = starts[np.append(True, apart)[: len(starts)]], stops[np.append(apart, True)[: len(stops)]]
        return cls(stops, np.cumsum(stops - starts, dtype=np.int64))

    @classmethod
    def of_split(cls, studies: Iterable[pa.RecordBatch], split: str) -> Self:
        """The rows of all studies of one split, from tables with the columns `split`, `start` and `stop`."""
        parts = []
        for table in studies:
            chosen = np.asarray(pc.equal(table["split"], split))
            parts.append(cls.of(*(np.asarray(table[name])[chosen] for name in ("start", "stop"))))
        none = np.empty(0, np.int64)
        return cls.of(
            np.concatenate([none, *(part.starts for part in parts)]),
            np.concatenate([none, *(part.stops for part in parts)]),
        )

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    @property
    def starts(self) -> np.ndarray:
        """The first row of each range. int64 [ranges]"""
        return self.stops - np.diff(self.ends, prepend=0)

    def take(self, places: np.ndarray) -> np.ndarray:
        """The rows at these places, counted from the first row as 0. int64 [n]"""
        of = np.searchsorted(self.ends, places, side="right")
        return self.stops[of] - (self.ends[of] - places)

    def numbers(self) -> np.ndarray:
        """All of them. int64 [len]"""
        return self.take(np.arange(len(self)))

    def chunk_edges(self, bounds: np.ndarray) -> np.ndarray:
        """The places at which the rows of another chunk begin, and the number of rows. [chunks with rows + 1]

        Args:
          bounds: the rows at which chunks begin, and the number of the store's rows; see `ActivationRows`.

        Returns:
          uint32 where that holds the number of rows, since there are many chunks; otherwise int64.
        """
        dtype = np.uint32 if len(self) < 2**32 else np.int64
        parts = np.array_split(bounds, -(-len(bounds) // _CHUNKS_AT_A_TIME))
        edges = np.concatenate([self.below(part).astype(dtype) for part in parts])
        return edges[np.append(True, edges[1:] > edges[:-1])]

    def below(self, bounds: np.ndarray) -> np.ndarray:
        """How many of the rows lie below each bound. int64 [n]"""
        if not len(self):
            return np.zeros(bounds.shape, np.int64)
        below = np.minimum(bounds, self.stops[-1])
        of = np.searchsorted(self.stops, below)
        return self.ends[of] - np.minimum(self.stops[of] - below, np.diff(self.ends, prepend=0)[of])
