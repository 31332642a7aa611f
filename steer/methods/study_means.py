"""Means over the tokens of each training study: what directions that need no autoencoder are computed from."""

import dataclasses
from collections.abc import Callable
from typing import Self

import numpy as np

from interp.features.concepts import StudyLabels
from sae.activations.store import TRAIN, ActivationStore
from sae.autoencoder import Sae

_BLOCK_ROWS = 8192  # rows of the store in memory at a time


def study_sums(
    store: ActivationStore,
    measured: Callable[[np.ndarray], np.ndarray],
    width: int,
    values: Callable[[np.ndarray], np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
    """Sums over the measured tokens of each training study. Reads the store once, a block at a time.

    Args:
      store: the activation store.
      measured: from the kinds of a study's tokens (of `Kind`) to which of them are measured, bool of the same shape.
      width: the number of values per token.
      values: from activations, float32 [tokens, d_model], to what is summed, [tokens, width].

    Returns:
      The sums, [studies, width] in the dtype of the values, and how many tokens each study has, int64 [studies]; 0 for
      studies that are not for training.
    """
    studies, tokens = store.studies, store.tokens
    wanted = (np.asarray(studies["split"].to_pylist()) == TRAIN)[tokens.study]  # [tokens]
    for start, stop in zip(studies["start"].to_pylist(), studies["stop"].to_pylist(), strict=True):
        wanted[start:stop] &= measured(tokens.kind[start:stop])
    sums = np.zeros((len(studies), width), values(np.zeros((1, store.d_model), np.float32)).dtype)
    for start in range(0, store.n_tokens, _BLOCK_ROWS):
        here = wanted[start : start + _BLOCK_ROWS]
        if here.any():
            found = values(store.read(start, start + len(here))[here].astype(np.float32))  # [rows, width]
            of = tokens.study[start : start + len(here)][here]  # [rows]
            firsts = np.flatnonzero(np.diff(of, prepend=-1))
            sums[of[firsts]] += np.add.reduceat(found, firsts)
    return sums, np.bincount(tokens.study[wanted], minlength=len(studies))


def class_masks(labels: StudyLabels, concept: str) -> tuple[np.ndarray, np.ndarray]:
    """Which studies are known to have a concept, and which to lack it, bool [studies] each."""
    if concept not in labels.concepts:
        nowhere = np.zeros(len(labels.known), bool)
        return nowhere, nowhere
    column = labels.concepts.index(concept)
    value, known = labels.value[:, column], labels.known[:, column]  # [studies]
    return known & value, known & ~value


@dataclasses.dataclass(frozen=True)
class StudyMeans:
    """Each study's mean activation on the tokens that a sweep edits.

    Attributes:
      means: float32 [studies, d_model]; NaN for a study without such tokens.
      labels: the labels of the same studies.
      residual_norm: the mean norm of such a token's activation; 0 where there are none.
    """

    means: np.ndarray
    labels: StudyLabels
    residual_norm: float

    @classmethod
    def measure(
        cls, store: ActivationStore, measured: Callable[[np.ndarray], np.ndarray], sae: Sae | None = None
    ) -> Self:
        """Measures the training split; see `StoreStatistic.measure`. No autoencoder is needed."""

        def values(x: np.ndarray) -> np.ndarray:
            return np.c_[x, np.linalg.norm(x, axis=1)].astype(np.float64)  # [tokens, d_model + 1]

        d = store.d_model
        sums, counts = study_sums(store, measured, d + 1, values)
        with np.errstate(invalid="ignore"):
            means = (sums[:, :d] / counts[:, None]).astype(np.float32)
        labels = StudyLabels.from_json(store.studies["labels"].to_pylist())
        return cls(means, labels, float(sums[:, d].sum() / max(counts.sum(), 1)))

    def groups(self, concept: str) -> tuple[np.ndarray, np.ndarray] | None:
        """The means of the studies with a concept and of those without it, float32 [studies, d_model] each.

        None where no study with such tokens has the concept, or none lacks it.
        """
        measured = np.isfinite(self.means).all(axis=1)  # [studies]
        has, lacks = (mask & measured for mask in class_masks(self.labels, concept))
        return (self.means[has], self.means[lacks]) if has.any() and lacks.any() else None
