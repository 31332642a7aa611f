"""The bootstrap over patients of measures of many neurons, from sums over groups of patients.

A measure of all neurons takes one pass over studies x neurons, and a thousand resamples must not take a thousand. So
patients are dealt at random into at most `MAX_GROUPS` groups, and a resample draws whole groups: everything that is
needed of it follows from sums over each group. With fewer patients each is a group of its own.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from interp.scorers.bootstrap import study_weights

MAX_GROUPS = 128


@dataclasses.dataclass(frozen=True)
class PatientGroups:
    """Groups of the patients of n studies, and resamples of the groups.

    Attributes:
      of_study: the group of each study. int64 [n]
      weights: how often each resample has each group. float64 [resamples, groups]
    """

    of_study: np.ndarray
    weights: np.ndarray

    @classmethod
    def of(cls, patients: Sequence[str], n_resamples: int, seed: int) -> "PatientGroups":
        """Deals out the patients `patients [n]` of n studies."""
        unique, patient = np.unique(np.asarray(patients), return_inverse=True)
        n_groups = min(len(unique), MAX_GROUPS)
        dealt = np.random.default_rng((seed, len(unique))).permutation(len(unique)) % n_groups
        return cls(dealt[patient], study_weights(n_groups, n_resamples, (seed, n_groups)))

    @property
    def n(self) -> int:
        """The number of groups."""
        return self.weights.shape[1]

    def sums(self, values: np.ndarray) -> np.ndarray:
        """The sums of values [n, ...] over each group's studies. float64 [groups, ...]"""
        order, starts = self.order()
        return np.add.reduceat(values[order], starts, axis=0, dtype=np.float64)

    def order(self) -> tuple[np.ndarray, np.ndarray]:
        """The studies, group by group [n], and the place of each group's first one [groups]."""
        order = np.argsort(self.of_study, kind="stable")
        return order, np.searchsorted(self.of_study[order], np.arange(self.n))

    def folds(self, n: int) -> np.ndarray:
        """Which groups are trained on where each of n folds of them is left out. bool [n, groups]"""
        return np.arange(self.n) % n != np.arange(n)[:, None]

    def random_splits(self, n: int, train: float, seed: int) -> np.ndarray:
        """Which groups are trained on in each of n random splits. bool [n, groups]

        Args:
          n: number of splits.
          train: the share of the groups that is trained on.
          seed: seed of the splits.
        """
        rng = np.random.default_rng((seed, self.n, 1))
        return np.stack([rng.permutation(self.n) < round(train * self.n) for _ in range(n)])
