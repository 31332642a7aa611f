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
    """An array of n studies and F features, float32 [n, F], that is read by columns: `peaks[:, 512:1024]`.

    Attributes:
      shape: n and F.
      parts: files of rows, float32 [rows, F], none below 0, each with the study of its first row. Files may share
        studies, whose largest values count.
    """

    shape: tuple[int, int]
    parts: Sequence[tuple[Path, int]]

    def __getitem__(self, key: tuple[Any, slice]) -> np.ndarray:
        rows, columns = key
        width = len(range(self.shape[1])[columns])
        found = np.zeros((self.shape[0], width), np.float32)  # [n, width]
        for path, first in self.parts:
            part = np.load(path, mmap_mode="r")[:, columns]  # [rows, width]
            own = found[first : first + len(part)]
            np.maximum(own, part, out=own)
        return found[rows]
