"""Each study's largest activation of every feature, in files of some studies each.

It grows with the number of studies, so it is on disk. Every process of a run writes files of its own: hosts that share
a disk do not see each other's changes to a map of one file.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

_ROWS = 4096  # read at a time


@dataclasses.dataclass(frozen=True)
class StudyPeaks:
    """An array of n studies and F features, float32 [n, F]: `peaks[:, 512:1024]`, `peaks[[3, 7], :]`.

    Attributes:
      shape: n and F.
      parts: files of rows, float32 [rows, F], none below `least`, each with the study of its first row. Files may
        share studies, whose largest values count.
      least: what studies without a row have.
    """

    shape: tuple[int, int]
    parts: Sequence[tuple[Path, int]]
    least: float = 0.0

    def __getitem__(self, key: tuple[Any, slice]) -> np.ndarray:
        chosen, columns = key
        wanted = np.arange(self.shape[0])[chosen]
        found = np.full((len(wanted), len(range(self.shape[1])[columns])), self.least, np.float32)  # [rows, columns]
        for path, first in self.parts:
            own = np.flatnonzero((wanted >= first) & (wanted < first + len(np.load(path, mmap_mode="r"))))
            for begin in range(0, len(own), _ROWS):
                rows = own[begin : begin + _ROWS]
                part = _read(path, wanted[rows] - first, columns)
                # By a slice, as of studies in their order, `found` is read without a copy.
                places = slice(rows[0], rows[-1] + 1) if rows[-1] - rows[0] == len(rows) - 1 else rows
                found[places] = np.maximum(found[places], part, out=part)
        return found


def _read(path: Path, rows: np.ndarray, columns: slice) -> np.ndarray:
    """Some rows of a file. Mapped anew: what was read of a map counts as memory of this process until it is closed.

    Returns:
      float32 [rows, columns]
    """
    part: np.memmap = np.load(path, mmap_mode="r")
    if len(range(part.shape[1])[columns]) < part.shape[1]:
        return part[rows, columns]
    # Of rows here and there a map would hold all that lies between them, up to the whole file.
    found = np.empty((len(rows), part.shape[1]), part.dtype)
    with path.open("rb") as file:
        for row, place in zip(found, rows.tolist(), strict=True):
            file.seek(part.offset + place * row.nbytes)
            if file.readinto(row.data) != row.nbytes:
                raise OSError(f"{path} is cut off")
    return found
