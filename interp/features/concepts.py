"""Which feature detects which labelled concept: study-level scores, threshold chosen on train, measured on held-out.

A study's score for a feature is the feature's largest activation over the study's counted tokens. The threshold and
the best feature are those with the highest F1 on the train studies; what is reported is measured on the held-out ones.
"""

import dataclasses
import json
from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from maira_jax.run.progress import progress

N_RUNNERS_UP = 4
# Columns of the study matrix that are sorted at a time.
_FEATURES = 256

SCHEMA = pa.schema(
    [
        ("concept", pa.string()),
        ("prevalence", pa.float64()),  # among the held-out studies whose label is known
        ("n_train", pa.int32()),
        ("n_held_out", pa.int32()),
        ("n_positive", pa.int32()),  # held-out
        ("feature", pa.int32()),
        ("threshold", pa.float64()),  # a study is positive above it
        ("train_f1", pa.float64()),
        ("f1", pa.float64()),
        ("precision", pa.float64()),
        ("recall", pa.float64()),
        ("runners_up", pa.list_(pa.int32())),
        ("runners_up_f1", pa.list_(pa.float64())),
    ]
)


@dataclasses.dataclass(frozen=True)
class Labels:
    """Study-level labels.

    Attributes:
      concepts: names.
      value: bool [n_studies, n_concepts].
      known: bool [n_studies, n_concepts].
    """

    concepts: tuple[str, ...]
    value: np.ndarray
    known: np.ndarray

    @classmethod
    def from_json(cls, rows: Iterable[str]) -> "Labels":
        """Reads the `labels` column of a store's studies."""
        parsed = [json.loads(row) for row in rows]
        concepts = tuple(sorted({name for labels in parsed for name in labels}))
        known = np.array([[name in labels for name in concepts] for labels in parsed], bool)
        value = np.array([[bool(labels.get(name)) for name in concepts] for labels in parsed], bool)
        shape = (len(parsed), len(concepts))
        return cls(concepts, value.reshape(shape), known.reshape(shape))


@dataclasses.dataclass(frozen=True)
class Fit:
    """How well each of F features detects each of C concepts; arrays [C, F] but for `always_f1`.

    Attributes:
      always_f1: [C], the train F1 of saying yes to every study.
      threshold: with the best train F1; infinite where no threshold finds anything.
      train_f1: at that threshold.
      f1, precision, recall: on the held-out studies at that threshold.
    """

    always_f1: np.ndarray
    threshold: np.ndarray
    train_f1: np.ndarray
    f1: np.ndarray
    precision: np.ndarray
    recall: np.ndarray


def fit(study_peak: np.ndarray, labels: Labels, held_out: np.ndarray) -> Fit:
    """Chooses thresholds on the train studies and measures them on the others.

    Args:
      study_peak: float32 [n_studies, F], may be a memory map: it is read a block of features at a time.
      labels: of the same studies.
      held_out: bool [n_studies].
    """
    n_features = study_peak.shape[1]
    positive, known = ((labels.value & labels.known)[~held_out].sum(0), labels.known[~held_out].sum(0))
    shape = (len(labels.concepts), n_features)
    out = Fit(2 * positive / np.maximum(positive + known, 1), *(np.zeros(shape) for _ in range(5)))
    for begin in progress(range(0, n_features, _FEATURES), unit="block", desc="interpret: concepts"):
        block = slice(begin, min(begin + _FEATURES, n_features))
        train, test = study_peak[~held_out, block], study_peak[held_out, block]
        order = np.argsort(-train, axis=0, kind="stable")
        train = np.take_along_axis(train, order, axis=0)
        for c in range(len(labels.concepts)):
            value, known = labels.value[:, c], labels.known[:, c]
            out.threshold[c, block], out.train_f1[c, block] = _best_threshold(
                train, (value & known)[~held_out][order], known[~held_out][order]
            )
            counted = known[held_out]
            positive = value[held_out][counted]
            fires = test[counted] > out.threshold[c, block]
            hits, fired = (fires & positive[:, None]).sum(0), fires.sum(0)
            out.precision[c, block] = hits / np.maximum(fired, 1)
            out.recall[c, block] = hits / max(positive.sum(), 1)
            out.f1[c, block] = 2 * hits / np.maximum(fired + positive.sum(), 1)
    return out


def _best_threshold(score: np.ndarray, positive: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The cut with the highest F1, in every column of sorted scores.

    Args:
      score: [n, F], falling in each column.
      positive, known: bool [n, F], labels in the order of the scores.

    Returns:
      thresholds [F], half way to the next lower score, and F1 [F].
    """
    n = len(score)
    hits, fired = positive.cumsum(0), known.cumsum(0)
    f1 = 2 * hits / np.maximum(fired + positive.sum(0), 1)
    following = np.concatenate([score[1:], np.zeros_like(score[:1])])
    # Equal scores cannot be told apart, and a silent feature says nothing.
    f1[(score <= following) | (score <= 0)] = 0.0
    best = f1.argmax(0)
    columns = np.arange(score.shape[1])
    value = f1[best, columns] if n else np.zeros(score.shape[1])
    threshold = (score[best, columns] + following[best, columns]) / 2
    return np.where(value > 0, threshold, np.inf), value


def table(found: Fit, labels: Labels, held_out: np.ndarray, n_least: int) -> tuple[pa.Table, dict[str, str]]:
    """The best feature of each concept.

    Args:
      found: of `fit`.
      labels, held_out: as there.
      n_least: fewest studies of each class in each split.

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
        if min(counts) < n_least:
            left_out[concept] = f"a split has only {min(counts)} studies with or without it, {n_least} are needed"
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
