"""k-sparse probing of all bases: how well the labels are read from few neurons, and from all.

Neurons are chosen and probes are fitted on training patients, by the largest |r|, which is the standardised difference
of the classes' means; the area under the ROC curve and F1 are those on the other patients. Figures are means over the
labels and over several random splits of the patients; their intervals are over the patients that are scored.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from interp.exemplars.study_peaks import StudyPeaks
from interp.features.concepts import StudyLabels
from interp.medsae.comparison import MEDSAE, Measured, difference, interval
from interp.medsae.patient_groups import PatientGroups
from interp.medsae.vectors import FEATURES
from maira_jax.run.columns import column
from maira_jax.run.progress import progress
from sae.evaluation import probing

SCHEMA = pa.schema(
    [
        column("basis", pa.string(), "features, or the control"),
        column("k", pa.string(), "number of neurons that the probe reads, or that it is dense"),
        column("concept", pa.string(), "the label"),
        column("split", pa.int64(), "of the patients, from 0"),
        column("neurons", pa.list_(pa.int64()), "that it reads"),
        column("auroc", pa.float64(), "on the other patients"),
        column("f1", pa.float64(), "on the other patients"),
    ]
)

SIZES = (1, 2, 4, 8, 16)
DENSE = "dense"
# A label is left out if a split has fewer studies with it, or without it, on either side.
MIN_STUDIES = 5
_BLOCK = 4096  # studies scored at a time
_COLUMNS = 256  # neurons read at a time
_BATCH_VALUES = 1 << 24  # activations of probes that are fitted together
_HELD_VALUES = 1 << 25  # activations, of 128 MiB, that dense probes hold; more are read for every step


@dataclasses.dataclass(frozen=True)
class ProbeScore:
    """One probe on the patients that it was not fitted on.

    Attributes:
      concept, k, split: the label, the number of neurons or "dense", and the number of the split.
      neurons: those that the probe reads; () for all.
      auroc, f1: on all scored studies.
      resampled: the same two in every resample, NaN where one class is missing. float64 [resamples] each
    """

    concept: str
    k: int | str
    split: int
    neurons: tuple[int, ...]
    auroc: float
    f1: float
    resampled: tuple[np.ndarray, np.ndarray]


def probe_bases(
    activations: Mapping[str, np.ndarray | StudyPeaks],
    embedding: np.ndarray,
    linear: Mapping[str, np.ndarray],
    found: Measured,
    labels: StudyLabels,
    groups: PatientGroups,
    splits: np.ndarray,
    seed: int,
) -> tuple[dict[str, Any], pa.Table]:
    """Probes every label in every basis.

    Args:
      activations: of each basis. [n, neurons] each
      embedding: of the same studies. [n, d]
      linear: the directions of those bases whose activations are products of the embedding with directions, as where a
        study is one row. [d, neurons] each
      found: the measures of the bases, of whose splits these are the first.
      labels, groups: of the same studies.
      splits: the groups of the training patients of each split. bool [splits, groups]
      seed: seed of the dense probes.

    Returns:
      The part of the summary, and a table with one row per basis, label, size and split.
    """
    probed, left_out = _probed_labels(labels, groups, splits)
    scores = {}
    for basis, activation in activations.items():
        correlation = found[basis][MEDSAE].train_correlation[: len(splits), :, probed]  # [splits, F, labels]
        chosen = StudyLabels(
            tuple(labels.concepts[c] for c in probed), labels.value[:, probed], labels.known[:, probed]
        )
        scores[basis] = [
            *_sparse_probes(activation, correlation, chosen, groups, splits),
            *_dense_probes(activation, linear.get(basis), embedding, chosen, groups, splits, seed),
        ]
    summary = {
        "concepts": [labels.concepts[c] for c in probed],
        "left_out": left_out,
        "splits": len(splits),
        "bases": {basis: _figures(rows) for basis, rows in scores.items()},
    }
    names = ("concept", "split", "neurons", "auroc", "f1")
    table = pa.Table.from_pylist(
        [
            {"basis": basis, "k": str(row.k)} | {name: getattr(row, name) for name in names}
            for basis, rows in scores.items()
            for row in rows
        ],
        schema=SCHEMA,
    )
    return summary | {"differences": _differences(scores)}, table


def _probed_labels(labels: StudyLabels, groups: PatientGroups, splits: np.ndarray) -> tuple[list[int], dict[str, str]]:
    """The numbers of the labels that are probed, and for the others the reason."""
    probed, left_out = [], {}
    for c, concept in enumerate(labels.concepts):
        known, value = labels.known[:, c], labels.value[:, c]
        fewest, group = min(
            (int((known & (value == wanted) & (train[groups.of_study] == is_train)).sum()), f"{side} studies {kind} it")
            for train in splits
            for side, is_train in (("training", True), ("test", False))
            for kind, wanted in (("without", False), ("with", True))
        )
        if fewest >= MIN_STUDIES:
            probed.append(c)
        else:
            left_out[concept] = f"{group} in one of the splits: {fewest}, but a probe needs {MIN_STUDIES}"
    return probed, left_out


def columns_of(activation: np.ndarray | StudyPeaks, neurons: np.ndarray) -> np.ndarray:
    """The activations [n, F] of the neurons `neurons [k]`, which ascend: float32 [n, k]."""
    parts = [np.zeros((activation.shape[0], 0), np.float32)]
    for begin in range(0, activation.shape[1], _COLUMNS):
        own = neurons[(neurons >= begin) & (neurons < begin + _COLUMNS)] - begin
        if len(own):
            parts.append(np.asarray(activation[:, begin : begin + _COLUMNS])[:, own])
    return np.concatenate(parts, axis=1)


def _sparse_probes(
    activation: np.ndarray | StudyPeaks,
    correlation: np.ndarray,
    labels: StudyLabels,
    groups: PatientGroups,
    splits: np.ndarray,
) -> Iterator[ProbeScore]:
    order = np.argsort(-np.abs(correlation), axis=1, kind="stable")[:, : SIZES[-1]]  # [splits, 16, labels]
    neurons = np.unique(order)
    values = columns_of(activation, neurons)  # [n, neurons]
    batch = max(1, _BATCH_VALUES // (len(values) * SIZES[-1]))  # labels
    for split, train in enumerate(progress(splits, total=len(splits), unit="split", desc="label: probes")):
        fitted = train[groups.of_study]
        for k in (size for size in SIZES if size <= correlation.shape[1]):
            for begin in range(0, len(labels.concepts), batch):
                classes = slice(begin, begin + batch)
                own = order[split, :k, classes].T  # [labels, k]
                x = values[:, np.searchsorted(neurons, own)].swapaxes(0, 1)  # [labels, n, k]
                known, y = labels.known[:, classes].T, labels.value[:, classes].T
                weights, biases = probing.fit_sparse(x, y, known & fitted)
                score = np.einsum("cnk,ck->cn", x, weights) + biases[:, None]
                yield from _scored(labels.concepts[classes], k, split, own, score, y, known, fitted, groups)


def _dense_probes(
    activation: np.ndarray | StudyPeaks,
    directions: np.ndarray | None,
    embedding: np.ndarray,
    labels: StudyLabels,
    groups: PatientGroups,
    splits: np.ndarray,
    seed: int,
) -> Iterator[ProbeScore]:
    """`directions [d, F]` are those whose products with `embedding [n, d]` the activations are, if they are that."""
    n, n_classes = labels.value.shape
    if not n_classes:
        return
    fitted = splits[:, groups.of_study].T  # [n, splits]
    counted = (fitted[:, :, None] & labels.known[:, None]).reshape(n, -1)  # [n, splits * labels]
    blocks = [slice(begin, begin + _BLOCK) for begin in range(0, n, _BLOCK)]
    if directions is None:
        if math.prod(activation.shape) <= _HELD_VALUES:
            activation = np.asarray(activation[:, :])
        standard = _standard(activation, blocks)
    else:
        x = embedding - embedding.mean(0, dtype=np.float64)
        activation = (x @ probing.factor_of(x.T @ x / n, directions.astype(np.float64))).astype(np.float32)
        standard = np.zeros(activation.shape[1], np.float32), np.ones(activation.shape[1], np.float32)
    value = np.tile(labels.value, (1, len(splits)))
    weights, bias = probing.fit_dense(lambda rows: np.asarray(activation[rows, :]), *standard, value, counted, seed)
    score = np.concatenate(
        [(np.asarray(activation[block, :]) - standard[0]) / standard[1] @ weights for block in blocks]
    )
    score = (score + bias).reshape(n, len(splits), n_classes)
    for split in range(len(splits)):
        none = np.zeros((n_classes, 0), int)
        given = score[:, split].T, labels.value.T, labels.known.T, fitted[:, split]
        yield from _scored(labels.concepts, DENSE, split, none, *given, groups)


def _standard(activation: np.ndarray | StudyPeaks, blocks: Sequence[slice]) -> tuple[np.ndarray, np.ndarray]:
    """The mean and the deviation of every neuron, 1 of one that is constant; blocks of studies are read. [F] each"""
    n, total, square = activation.shape[0], np.zeros(activation.shape[1]), np.zeros(activation.shape[1])
    for block in blocks:
        x = np.asarray(activation[block, :], np.float64)
        total, square = total + x.sum(0), square + (x * x).sum(0)
    mean = total / n
    scale = np.sqrt(np.maximum(square / n - mean**2, 0))
    return mean.astype(np.float32), np.where(scale > 1e-6 * np.abs(mean), scale, 1.0).astype(np.float32)


def _scored(
    concepts: Sequence[str],
    k: int | str,
    split: int,
    neurons: np.ndarray,
    score: np.ndarray,
    value: np.ndarray,
    known: np.ndarray,
    fitted: np.ndarray,
    groups: PatientGroups,
) -> Iterator[ProbeScore]:
    """Scores C probes on known studies that were not fitted, at the threshold with the best F1 on those that were.

    `neurons [C, k]`, the others [C, n] but `fitted [n]`.
    """
    own, group = np.unique(groups.of_study[~fitted], return_inverse=True)  # [G], [test]
    wins, counts = np.zeros((len(concepts), len(own), len(own))), np.zeros((len(concepts), 4, len(own)))
    for c in range(len(concepts)):
        threshold = probing.best_f1_threshold(score[c, known[c] & fitted], value[c, known[c] & fitted])
        test = known[c, ~fitted]
        of_test, y, own_score = group[test], value[c, ~fitted][test], score[c, ~fitted][test]
        fires = own_score > threshold
        wins[c] = probing.pair_wins(own_score, y, of_test, len(own))
        counts[c] = [np.bincount(of_test, part, len(own)) for part in (y, ~y, fires, fires & y)]
    auroc, f1 = (part[:, 0] for part in probing.resampled_scores(np.ones((1, len(own))), wins, counts))
    resampled = probing.resampled_scores(groups.weights[:, own], wins, counts)
    for c, concept in enumerate(concepts):
        drawn = resampled[0][c], resampled[1][c]
        yield ProbeScore(concept, k, split, tuple(neurons[c].tolist()), float(auroc[c]), float(f1[c]), drawn)


def _figures(rows: list[ProbeScore]) -> dict[str, Any]:
    """size -> means over labels and splits, their intervals over patients, and the spread of the splits."""
    out: dict[str, Any] = {}
    for k in dict.fromkeys(row.k for row in rows):
        part = out[str(k)] = {}
        for number, name in enumerate(("auroc", "f1")):
            of_split: dict[int, list[float]] = {}
            for row in rows:
                if row.k == k:
                    of_split.setdefault(row.split, []).append(getattr(row, name))
            means = [float(np.mean(values)) for values in of_split.values()]
            part[name] = float(np.mean(means))
            part[f"{name}_interval"] = interval(part[name], _mean_resampled(rows, k, number))
            part[f"{name}_deviation_of_splits"] = float(np.std(means))
    return out


def _differences(scores: dict[str, list[ProbeScore]]) -> dict[str, Any]:
    """What features have more than each other basis: size -> measure -> the difference and its paired interval."""
    out: dict[str, Any] = {}
    own, shared = _figures(scores[FEATURES]), {row.k for row in scores[FEATURES]}
    for basis, rows in scores.items():
        if basis == FEATURES:
            continue
        other, sizes = _figures(rows), [k for k in dict.fromkeys(row.k for row in rows) if k in shared]
        out[f"{FEATURES} minus {basis}"] = {
            str(k): {
                name: difference(
                    own[str(k)][name] - other[str(k)][name],
                    _mean_resampled(scores[FEATURES], k, number) - _mean_resampled(rows, k, number),
                )
                for number, name in enumerate(("auroc", "f1"))
            }
            for k in sizes
        }
    return out


def _mean_resampled(rows: list[ProbeScore], k: int | str, number: int) -> np.ndarray:
    """The mean of AUROC (`number` 0) or F1 (1) over labels and splits, in every resample. [resamples]"""
    values = np.stack([row.resampled[number] for row in rows if row.k == k])
    count = np.isfinite(values).sum(0)
    return np.divide(np.nansum(values, axis=0), count, out=np.full(len(count), np.nan), where=count > 0)
