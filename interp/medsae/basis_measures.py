"""The measures of all neurons of a basis, with what their intervals over patients need.

The mean of a measure over neurons or classes is computed again in every resample of the patients; which neurons are
kept, which one is a class's best, its threshold, and each neuron's smallest activation stay those of all studies. A
patient's studies that a resample holds several times are no pairs of similar images: a pair is of two studies, and
counts as often as both are drawn.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from threadpoolctl import threadpool_limits

from interp.exemplars.study_peaks import StudyPeaks
from interp.features.concepts import StudyLabels
from interp.medsae import monosemanticity
from interp.medsae.group_sums import GroupedStudies, GroupSums
from interp.medsae.monosemanticity import NeuronMeasures
from interp.medsae.patient_groups import PatientGroups

_NEURONS = 256  # at a time
_THREADS = 4  # at most; each holds a block, [n, _NEURONS], and its sums
_RESAMPLED = 32  # neurons whose correlations are resampled together: [resamples, _RESAMPLED, classes]
_TURNED = 512  # studies of a block that are turned together, few enough for a processor's cache
NEURON_FIGURES = ("monosemanticity", "monosemanticity_kept", "entropy_kept")
CLASS_FIGURES = ("r", "precision", "recall", "f1")

_Result = TypeVar("_Result")


@dataclasses.dataclass(frozen=True)
class CutActivations:
    """What exceeds each neuron's cut of activations of either sign, and 0 elsewhere; read in blocks, as `StudyPeaks`.

    Attributes:
      activation: of either sign. [n, F]
      cut: float32 [F]
    """

    activation: np.ndarray | StudyPeaks
    cut: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        return self.activation.shape

    def __getitem__(self, key: tuple[Any, slice]) -> np.ndarray:
        return np.maximum(self.activation[key] - self.cut[key[1]], 0)


@dataclasses.dataclass(frozen=True)
class BasisMeasures:
    """What is measured of the F neurons of a basis for C classes.

    Attributes:
      measures: of each neuron.
      n_active: the number of studies on which each neuron is above its smallest activation. int64 [F]
      resampled: the mean over neurons or classes of each measure, in every resample. float64 [resamples] each
      train_correlation: r of each neuron with each class on each split's training patients; 0 where it is not defined.
        float32 [splits, F, C]
    """

    measures: NeuronMeasures
    n_active: np.ndarray
    resampled: dict[str, np.ndarray]
    train_correlation: np.ndarray


def measure_basis(
    activation: np.ndarray | StudyPeaks | CutActivations,
    embedding: np.ndarray,
    labels: StudyLabels,
    groups: PatientGroups,
    train: np.ndarray,
) -> BasisMeasures:
    """Measures every neuron of a basis.

    Args:
      activation: activations of either sign, which are read in blocks of neurons. [n, F]
      embedding: the embeddings of the same studies; none is zero. [n, d]
      labels: their labels.
      groups: their patients.
      train: the groups of the training patients of each split. bool [splits, groups]
    """
    studies = GroupedStudies.of(embedding, labels, *groups.order())
    means = {name: _ResampledMean(len(groups.weights)) for name in NEURON_FIGURES}

    def of_block(block: slice) -> tuple[NeuronMeasures, np.ndarray, np.ndarray, tuple[np.ndarray, ...]]:
        sums = GroupSums.of(_columns(activation, studies.order, block), studies)
        found = sums.measures()
        kept, defined = found.kept(), np.isfinite(found.monosemanticity)
        scores = sums.monosemanticity(groups.weights, defined)
        values = scores[:, defined], scores[:, defined & kept], _entropies(sums, groups.weights, np.flatnonzero(kept))
        correlation = np.nan_to_num(sums.correlation(train, slice(None))).astype(np.float32)
        return found, sums.active.sum(0).astype(np.int64), correlation, values

    parts, active, correlations = [], [], []
    for found, n_active, correlation, values in _by_blocks(of_block, activation.shape[1]):
        for name, value in zip(NEURON_FIGURES, values, strict=True):
            means[name].add(value)
        parts.append(found)
        active.append(n_active)
        correlations.append(correlation)
    measures = NeuronMeasures.concatenate(parts)
    resampled = {name: mean.values() for name, mean in means.items()}
    resampled |= _class_resamples(activation, measures, labels, groups)
    return BasisMeasures(measures, np.concatenate(active), resampled, np.concatenate(correlations, axis=1))


def cut_by_rank(activation: np.ndarray | StudyPeaks, n_active: np.ndarray, seed: int) -> CutActivations:
    """Activations of signed neurons that are active on as many studies as features are, and 0 elsewhere.

    Every neuron is given the number of active studies of a feature that is drawn at random; what is left of its
    activation is what exceeds that of the next study by rank.

    Args:
      activation: of either sign, read in blocks of neurons. float32 [n, F]
      n_active: on how many studies each alive feature is active. [features]
      seed: seed of the draw.
    """
    n, width = activation.shape
    if not len(n_active):
        return CutActivations(activation, np.full(width, np.inf, np.float32))
    drawn = np.random.default_rng((seed, width)).choice(n_active, width)
    rank = np.maximum(n - 1 - drawn, 0)  # of the strongest study that is not active

    def cuts(block: slice) -> list[np.float32]:
        columns = _columns(activation, slice(None), block)
        return [np.partition(own, place)[place] for own, place in zip(columns, rank[block], strict=True)]

    return CutActivations(activation, np.concatenate(list(_by_blocks(cuts, width))).astype(np.float32))


def _by_blocks(measure: Callable[[slice], _Result], width: int) -> Iterator[_Result]:
    """What `measure` gives of each block of neurons, in their order; some blocks are measured at a time."""
    blocks = [slice(begin, begin + _NEURONS) for begin in range(0, width, _NEURONS)]
    # Each block by one thread: products of these sizes lose more by sharing them than they gain, many times more where
    # other programs run.
    with ThreadPoolExecutor(min(os.cpu_count() or 1, _THREADS)) as pool, threadpool_limits(1, "blas"):
        yield from pool.map(measure, blocks)


def _columns(
    activation: np.ndarray | StudyPeaks | CutActivations, order: np.ndarray | slice, block: slice
) -> np.ndarray:
    """The activations of a block of neurons, a neuron per row. [neurons, n]"""
    rows = activation[:, block]  # as they lie in a file, and ordered here
    columns, places = np.empty(rows.shape[::-1], rows.dtype), np.arange(len(rows))[order]
    for begin in range(0, len(rows), _TURNED):
        columns[:, begin : begin + _TURNED] = rows[places[begin : begin + _TURNED]].T
    return columns


class _ResampledMean:
    """The mean over neurons in every resample, of which blocks of neurons are added; NaN is left out."""

    def __init__(self, n_resamples: int):
        self._total, self._count = np.zeros(n_resamples), np.zeros(n_resamples)

    def add(self, values: np.ndarray) -> None:
        """Adds the values of some neurons, [resamples, neurons]."""
        self._total += np.nansum(values, axis=1)
        self._count += np.isfinite(values).sum(1)

    def values(self) -> np.ndarray:
        """The means, NaN without neurons. [resamples]"""
        return np.divide(self._total, self._count, out=np.full_like(self._total, np.nan), where=self._count > 0)


def _entropies(sums: GroupSums, weights: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The entropy of the correlations of some neurons in resamples. [resamples, chosen]"""
    found = np.empty((len(weights), len(chosen)))
    for begin in range(0, len(chosen), _RESAMPLED):
        part = slice(begin, begin + _RESAMPLED)
        r = sums.correlation(weights, chosen[part])  # [resamples, part, C]
        found[:, part] = monosemanticity.entropy(r.reshape(-1, r.shape[2])).reshape(r.shape[:2])
    return found


def _class_resamples(
    activation: np.ndarray | StudyPeaks | CutActivations,
    measures: NeuronMeasures,
    labels: StudyLabels,
    groups: PatientGroups,
) -> dict[str, np.ndarray]:
    """The figures of each class's best neuron in every resample, as means over the classes. [resamples] each"""
    found: dict[str, list[np.ndarray]] = {name: [] for name in CLASS_FIGURES}
    for c, neuron in measures.best_of_classes().items():
        known, value = labels.known[:, c], labels.known[:, c] & labels.value[:, c]
        a = np.asarray(activation[:, neuron : neuron + 1], np.float64)[:, 0]
        fires = (a > measures.threshold[neuron]) & known
        a = np.where(known, a - a.mean(), 0.0)
        columns = np.stack([known, value, fires, fires & value, a, a * a, a * value], axis=1)
        n, true, fired, hits, total, square, hit = (groups.weights @ groups.sums(columns)).T  # [resamples] each
        variance = (n * square - total**2) * true * (n - true)
        # A resample in which the neuron is constant leaves a variance that is not quite 0.
        varies = (n * square - total**2 > 1e-9 * n * square) & (true > 0) & (true < n)
        r = np.divide(
            n * hit - total * true, np.sqrt(np.maximum(variance, 0)), out=np.full_like(hit, np.nan), where=varies
        )
        found["r"].append(r)
        missing = np.where((true > 0) & np.isfinite(measures.threshold[neuron]), 0.0, np.nan)
        found["precision"].append(np.where(fired > 0, hits / np.maximum(fired, 1), np.nan) + missing)
        found["recall"].append(hits / np.maximum(true, 1) + missing)
        found["f1"].append(2 * hits / np.maximum(fired + true, 1) + missing)
    out = {}
    for name, values in found.items():
        mean = _ResampledMean(len(groups.weights))
        mean.add(np.stack(values, axis=1) if values else np.zeros((len(groups.weights), 0)))
        out[name] = mean.values()
    return out
