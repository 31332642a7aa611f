"""Which feature detects which labelled concept: study-level scores, threshold chosen on train, measured on held-out.

A study's score for a feature is the feature's largest activation over the study's counted tokens. The threshold and
the best feature are those with the highest F1 on the train studies; what is reported is measured on the held-out ones.
"""

import dataclasses
import json
import os
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
import pyarrow as pa

from maira_jax.run.columns import column
from maira_jax.run.progress import progress

N_RUNNERS_UP = 4
_FEATURES = 256  # whose columns of the study matrix are read together
_SORTED = 64  # of them that one thread sorts together

SCHEMA = pa.schema(
    [
        column("concept", pa.string(), "a label of the studies"),
        column("prevalence", pa.float64(), "share of positive studies among the held-out ones whose label is known"),
        column("n_train", pa.int32(), "train studies whose label is known"),
        column("n_held_out", pa.int32(), "held-out studies whose label is known"),
        column("n_positive", pa.int32(), "held-out studies that have it"),
        column("feature", pa.int32(), "that detects it best on the train studies"),
        column("threshold", pa.float64(), "a study is positive above it"),
        column("train_f1", pa.float64(), "F1 on the train studies"),
        column("f1", pa.float64(), "F1 on the held-out studies"),
        column("precision", pa.float64(), "on the held-out studies"),
        column("recall", pa.float64(), "on the held-out studies"),
        column("runners_up", pa.list_(pa.int32()), "the next best features"),
        column("runners_up_f1", pa.list_(pa.float64()), "their F1 on the held-out studies"),
    ]
)


# The groups of studies that are counted for a concept.
_GROUPS = tuple(f"{split} studies {kind} it" for split in ("training", "held-out") for kind in ("without", "with"))


class Peaks(Protocol):
    """Each study's largest activations of F neurons, read in blocks of neurons: an array, or files. float32 [n, F]"""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, key: tuple[slice, slice], /) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class StudyLabels:
    """Which of C concepts n studies have.

    Attributes:
      concepts: the names of the concepts.
      value: whether the study has the concept; False where that is not known. bool [n, C]
      known: whether the study is labelled for the concept. bool [n, C]
    """

    concepts: tuple[str, ...]
    value: np.ndarray
    known: np.ndarray

    @classmethod
    def from_json(cls, rows: Iterable[str]) -> "StudyLabels":
        """Reads the `labels` column of a store's studies."""
        return cls.of([json.loads(row) for row in rows])

    @classmethod
    def of(cls, parsed: Sequence[Mapping[str, bool]]) -> "StudyLabels":
        """The labels of studies, each as in `Study.labels`."""
        concepts = tuple(sorted({name for labels in parsed for name in labels}))
        known = np.array([[name in labels for name in concepts] for labels in parsed], bool)
        value = np.array([[bool(labels.get(name)) for name in concepts] for labels in parsed], bool)
        shape = (len(parsed), len(concepts))
        return cls(concepts, value.reshape(shape), known.reshape(shape))


@dataclasses.dataclass(frozen=True)
class ConceptFit:
    """How well each of F features detects each of C concepts.

    Attributes:
      always_f1: the train F1 of calling every study positive. float64 [C]
      threshold: the threshold with the best train F1; infinite where no threshold finds anything. float64 [C, F]
      train_f1: F1 on the train studies at that threshold. float64 [C, F]
      f1, precision, recall: the measures on the held-out studies at that threshold. float64 [C, F]
    """

    always_f1: np.ndarray
    threshold: np.ndarray
    train_f1: np.ndarray
    f1: np.ndarray
    precision: np.ndarray
    recall: np.ndarray


def fit(study_peak: Peaks, labels: StudyLabels, held_out: np.ndarray) -> ConceptFit:
    """Chooses thresholds on the train studies and measures them on the others.

    Args:
      study_peak: each study's largest activations, which are read in blocks of features. float32 [n, F]
      labels: the labels of the same studies.
      held_out: which studies are held out. bool [n]
    """
    n_features = study_peak.shape[1]
    positive, known = ((labels.value & labels.known)[~held_out].sum(0), labels.known[~held_out].sum(0))  # [C]
    shape = (len(labels.concepts), n_features)
    out = ConceptFit(2 * positive / np.maximum(positive + known, 1), *(np.zeros(shape) for _ in range(5)))

    def of_part(peak: np.ndarray, begin: int) -> None:
        """Fits some features, from `begin` on. peak [n, part]"""
        part = slice(begin, begin + peak.shape[1])
        train, test = _Scores(peak[~held_out]), peak[held_out]
        for c in range(len(labels.concepts)):
            value, known = labels.value[:, c], labels.known[:, c]
            out.threshold[c, part], out.train_f1[c, part] = train.best_threshold(
                (value & known)[~held_out], known[~held_out]
            )
            counted = known[held_out]
            positive = value[held_out][counted]
            fires = test[counted] > out.threshold[c, part]  # [studies, part]
            hits, fired = (fires & positive[:, None]).sum(0), fires.sum(0)  # [part]
            out.precision[c, part] = hits / np.maximum(fired, 1)
            out.recall[c, part] = hits / max(positive.sum(), 1)
            out.f1[c, part] = 2 * hits / np.maximum(fired + positive.sum(), 1)

    with ThreadPoolExecutor(min(os.cpu_count() or 1, _FEATURES // _SORTED)) as pool:
        for begin in progress(range(0, n_features, _FEATURES), unit="block", desc="interpret: concepts"):
            peak = study_peak[:, begin : min(begin + _FEATURES, n_features)]  # [n, block]
            lows = range(0, peak.shape[1], _SORTED)
            parts = [peak[:, low : low + _SORTED] for low in lows]
            deque(pool.map(of_part, parts, [begin + low for low in lows]), maxlen=0)
    return out


class _Scores:
    """Scores of studies, of which thresholds for many labels are found. [n, F]

    The best threshold lies right below the score of a study with the label, so that for each label only the ranks of
    those studies are looked at.
    """

    def __init__(self, score: np.ndarray):
        n, n_features = score.shape
        order = np.argsort(-score, axis=0, kind="stable")
        falling = np.take_along_axis(score, order, axis=0)
        following = np.concatenate([falling[1:], np.zeros((min(n, 1), n_features), score.dtype)])
        # Each study's place among equal scores is that of the last of them: no threshold lies between those.
        place = np.where(falling > following, np.arange(n)[:, None], n - 1)
        last = np.minimum.accumulate(place[::-1], axis=0)[::-1]
        self._score, self._order, self._last = score, order, last
        self._below = np.empty_like(score)  # the next lower score
        np.put_along_axis(self._below, order, np.take_along_axis(following, last, axis=0), axis=0)
        self._known, self._fired = np.zeros(0, bool), order

    def best_threshold(self, positive: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The threshold with the highest F1 of each column, half way to the next lower score, and that F1. [F] each

        Studies with the score 0 stay negative. `positive` and `known` are bool [n].
        """
        rows, n_features = np.flatnonzero(positive), self._score.shape[1]
        if not len(rows):
            return np.full(n_features, np.inf), np.zeros(n_features)
        fired = self._known_at_least(known)[rows]  # [positives, F]
        by_rank = np.argsort(fired, axis=0, kind="stable")
        hits = np.arange(1, len(rows) + 1)[:, None]
        f1 = 2 * hits / (np.take_along_axis(fired, by_rank, axis=0) + len(rows))
        f1[np.take_along_axis(self._score[rows], by_rank, axis=0) <= 0] = 0.0
        best, columns = f1.argmax(0), np.arange(n_features)
        row = rows[by_rank[best, columns]]
        threshold = (self._score[row, columns] + self._below[row, columns]) / 2
        return np.where(f1[best, columns] > 0, threshold, np.inf), f1[best, columns]

    def _known_at_least(self, known: np.ndarray) -> np.ndarray:
        """How many of the known studies have at least each study's score. [n, F]"""
        if not np.array_equal(known, self._known):  # most labels are known of the same studies as the one before
            count = np.take_along_axis(known[self._order].cumsum(0), self._last, axis=0)
            self._known, self._fired = known, np.empty_like(count)
            np.put_along_axis(self._fired, self._order, count, axis=0)
        return self._fired


def table(
    found: ConceptFit, labels: StudyLabels, held_out: np.ndarray, min_studies: int
) -> tuple[pa.Table, dict[str, str]]:
    """The best feature of each concept.

    Args:
      found: what `fit` returned.
      labels, held_out: the arguments of `fit`.
      min_studies: concepts with fewer studies, with or without it, in a split are left out.

    Returns:
      A table of `SCHEMA`, and for the concepts that are not in it the reason.
    """
    rows, left_out = [], {}
    for c, concept in enumerate(labels.concepts):
        counts = [
            int((labels.known[:, c] & (labels.value[:, c] == value) & (held_out == split)).sum())
            for split in (False, True)
            for value in (False, True)
        ]
        if min(counts) < min_studies:
            group = _GROUPS[counts.index(min(counts))]
            left_out[concept] = f"{group}: {min(counts)}, but interpret.min_studies asks for {min_studies}"
            continue
        order = np.argsort(-found.train_f1[c], kind="stable")[: 1 + N_RUNNERS_UP]
        best, others = int(order[0]), order[1:]
        if not found.train_f1[c, best] > 0:
            left_out[concept] = "no feature fires on any study that has it"
            continue
        rows.append(
            {
                "concept": concept,
                "prevalence": counts[3] / (counts[2] + counts[3]),
                "n_train": counts[0] + counts[1],
                "n_held_out": counts[2] + counts[3],
                "n_positive": counts[3],
                "feature": best,
                "threshold": float(found.threshold[c, best]),
                "train_f1": float(found.train_f1[c, best]),
                "f1": float(found.f1[c, best]),
                "precision": float(found.precision[c, best]),
                "recall": float(found.recall[c, best]),
                "runners_up": others.tolist(),
                "runners_up_f1": found.f1[c, others].tolist(),
            }
        )
    return pa.Table.from_pylist(rows, schema=SCHEMA), left_out
