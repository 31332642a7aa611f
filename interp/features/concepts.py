"""Which feature detects which labelled concept: study-level scores, threshold chosen on train, measured on held-out.

A study's score for a feature is the feature's largest activation over the study's counted tokens. The threshold and
the best feature are those with the highest F1 on the train studies; what is reported is measured on the held-out ones.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pyarrow as pa

from interp.exemplars.study_peaks import StudyPeaks
from maira_jax.run.columns import column
from maira_jax.run.progress import progress

N_RUNNERS_UP = 4
# Features whose columns of the study matrix are sorted together.
_FEATURES = 256

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


def fit(study_peak: np.ndarray | StudyPeaks, labels: StudyLabels, held_out: np.ndarray) -> ConceptFit:
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
    for begin in progress(range(0, n_features, _FEATURES), unit="block", desc="interpret: concepts"):
        block = slice(begin, min(begin + _FEATURES, n_features))
        peak = study_peak[:, block]  # [studies, block]
        train, test = peak[~held_out], peak[held_out]  # [studies, block]
        order = np.argsort(-train, axis=0, kind="stable")  # [studies, block]
        train = np.take_along_axis(train, order, axis=0)  # [studies, block]
        for c in range(len(labels.concepts)):
            value, known = labels.value[:, c], labels.known[:, c]
            out.threshold[c, block], out.train_f1[c, block] = _best_threshold(
                train, (value & known)[~held_out][order], known[~held_out][order]
            )
            counted = known[held_out]
            positive = value[held_out][counted]
            fires = test[counted] > out.threshold[c, block]  # [studies, block]
            hits, fired = (fires & positive[:, None]).sum(0), fires.sum(0)  # [block]
            out.precision[c, block] = hits / np.maximum(fired, 1)
            out.recall[c, block] = hits / max(positive.sum(), 1)
            out.f1[c, block] = 2 * hits / np.maximum(fired + positive.sum(), 1)
    return out


def _best_threshold(score: np.ndarray, positive: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The threshold with the highest F1, in every column of sorted scores.

    Args:
      score: scores that fall in each column. [n, F]
      positive, known: the labels in the order of the scores. bool [n, F]

    Returns:
      Thresholds [F], half way to the next lower score, and F1 [F].
    """
    n = len(score)
    hits, fired = positive.cumsum(0), known.cumsum(0)  # [n, F]
    f1 = 2 * hits / np.maximum(fired + positive.sum(0), 1)  # [n, F]
    following = np.concatenate([score[1:], np.zeros_like(score[:1])])  # [n, F]
    # No threshold lies between equal scores, and studies on which the feature is not active stay negative.
    f1[(score <= following) | (score <= 0)] = 0.0
    best = f1.argmax(0)  # [F]
    columns = np.arange(score.shape[1])
    value = f1[best, columns] if n else np.zeros(score.shape[1])
    threshold = (score[best, columns] + following[best, columns]) / 2
    return np.where(value > 0, threshold, np.inf), value


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
            left_out[concept] = f"a split has only {min(counts)} studies with or without it, {min_studies} are needed"
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
