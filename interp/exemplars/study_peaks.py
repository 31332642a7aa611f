"""Each study's largest activation of every feature, in files of some studies each.

It grows with the number of studies, so it is on disk. Every process of a run writes files of its own: hosts that share
a disk do not see each other's changes to a map of one file.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class StudyPeaks:
    """An array of n studies and F features, float32 [n, F]: `peaks[:, 512:1024]`, `peaks[[3, 7], :]`.

    Attributes:
      shape: n and F.
      parts: files of rows, float32 [rows, F], none below 0, each with the study of its first row. Files may share
        studies, whose largest values count.
    """

    shape: tuple[int, int]
    parts: Sequence[tuple[Path, int]]

    def __getitem__(self, key: tuple[Any, slice]) -> np.ndarray:
        rows, columns = key
        wanted = np.arange(self.shape[0])[rows]
        found = np.zeros((len(wanted), len(range(self.shape[1])[columns])), np.float32)  # [rows, columns]
        for path, first in self.parts:
            part = np.load(path, mmap_mode="r")
            own = np.flatnonzero((wanted >= first) & (wanted < first + len(part)))
            found[own] = np.maximum(found[own], part[wanted[own] - first, columns])
        return found
