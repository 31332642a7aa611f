"""Sums over groups of studies, from which every measure of a block of neurons follows, in resamples too.

One pass over the studies is enough, a group at a time, whose part of a block fits into a processor's cache. All sums
are exact in float64 but `GroupSums.vector`, which resamples alone read.
"""

import dataclasses
from typing import NamedTuple

import numpy as np
from scipy import sparse

from interp.features.concepts import StudyLabels
from interp.medsae import monosemanticity
from interp.medsae.monosemanticity import NeuronMeasures

_SPARSE = 0.05  # density below which products of a group skip zeros
_RESAMPLED = 32  # neurons whose vectors are resampled together: [resamples, _RESAMPLED, groups]


@dataclasses.dataclass(frozen=True)
class GroupedStudies:
    """n studies, group by group, as sums are taken over them.

    Attributes:
      order: the studies. [n]
      starts: the place of the first one of each of G groups. [G]
      right: what activations are multiplied with: the embedding's direction, whether each label is known, and whether
        the study is known to have it. float64 [n, d + 2C]
      d: width of the embedding.
    """

    order: np.ndarray
    starts: np.ndarray
    right: np.ndarray
    d: int

    @classmethod
    def of(cls, embedding: np.ndarray, labels: StudyLabels, order: np.ndarray, starts: np.ndarray) -> "GroupedStudies":
        """Studies with embeddings [n, d], none of which is zero, and their labels."""
        (n, d), n_classes = embedding.shape, len(labels.concepts)
        right = np.empty((n, d + 2 * n_classes))
        unit, known, value = np.split(right, [d, d + n_classes], axis=1)
        unit[:] = embedding[order]
        unit /= np.sqrt(np.einsum("nd,nd->n", unit, unit))[:, None]
        known[:] = labels.known[order]
        value[:] = (labels.known & labels.value)[order]
        return cls(order, starts, right, d)


@dataclasses.dataclass(frozen=True)
class GroupSums:
    """Sums over the studies of each of G groups, of activations a that are scaled to [0, 1] for each of F neurons.

    Attributes:
      threshold: each neuron fires above it, NaN of one that is never above 0. [F]
      active: the number of studies with a > 0. [G, F]
      total, square: of a, and of a squared. [G, F]
      vector: of a times the embedding's direction. float32 [G, F, d]
      whole_vector: the same over all studies. [F, d]
      known, value: studies whose label is known, and those of them that have it. [G, 1, C]
      total_known, square_known, total_value: of a and a squared over those studies. [G, F, C]
      fired, hits: over all studies with a known label, those that a neuron fires on, and those of them that have the
        label. [F, C]
    """

    threshold: np.ndarray
    active: np.ndarray
    total: np.ndarray
    square: np.ndarray
    vector: np.ndarray
    whole_vector: np.ndarray
    known: np.ndarray
    value: np.ndarray
    total_known: np.ndarray
    square_known: np.ndarray
    total_value: np.ndarray
    fired: np.ndarray
    hits: np.ndarray

    @classmethod
    def of(cls, columns: np.ndarray, studies: GroupedStudies) -> "GroupSums":
        """The sums of activations of either sign, a neuron per row, in the order of `studies`. [F, n]"""
        d, n_groups, n_neurons = studies.d, len(studies.starts), len(columns)
        n_classes = (studies.right.shape[1] - d) // 2
        low, threshold = columns.min(1).astype(np.float64), monosemanticity.thresholds(columns)
        span = columns.max(1) - low
        scale = low, np.where(span > 0, span, 1.0), threshold
        vector, whole = np.empty((n_groups, n_neurons, d), np.float32), np.zeros((n_neurons, d))
        of_labels, counts = np.empty((n_groups, n_neurons, 2 * n_classes)), np.empty((n_groups, 1, 2 * n_classes))
        square_known, fired = np.empty((n_groups, n_neurons, n_classes)), np.zeros((n_neurons, 2 * n_classes))
        active, total, square = np.empty((3, n_groups, n_neurons))

        stops = [*studies.starts[1:], columns.shape[1]]
        for g, (begin, stop) in enumerate(zip(studies.starts, stops, strict=True)):
            own = _of_group(columns[:, begin:stop], studies.right[begin:stop], d, *scale)
            active[g], total[g], square[g], square_known[g], counts[g] = own[:5]
            vector[g], of_labels[g] = own.product[:, :d], own.product[:, d:]
            whole += own.product[:, :d]
            fired += own.fired
        (total_known, total_value), (known, value), (n_fired, hits) = (
            np.split(part, 2, axis=-1) for part in (of_labels, counts, fired)
        )
        sums = active, total, square, vector, whole, known, value, total_known, square_known, total_value
        return cls(threshold, *sums, n_fired, hits)

    def measures(self) -> NeuronMeasures:
        """All measures of every neuron, over all studies."""
        length = np.square(self.whole_vector).sum(1)  # [F]
        score = monosemanticity.score(length, self.total.sum(0), self.square.sum(0), self.active.sum(0))
        r = self.correlation(np.ones((1, len(self.total))), slice(None))[0]  # [F, C]
        true = self.value.sum((0, 1))  # [C]
        firing = monosemanticity.firing(self.fired, self.hits, true, np.isfinite(self.threshold))
        return NeuronMeasures(score, r, monosemanticity.entropy(r), self.threshold, *firing)

    def monosemanticity(self, weights: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        """The score of the neurons `chosen [F]` in resamples; NaN for others and undefined ones. [resamples, F]"""
        squares = np.square(weights) @ self.square  # [resamples, F]
        active = np.where(chosen, np.minimum(weights, 1) @ self.active, 0)
        length = np.zeros_like(squares)  # [resamples, F]
        w, (n_groups, _, d) = weights.astype(np.float32), self.vector.shape
        for begin in range(0, len(chosen), _RESAMPLED):
            own = begin + np.flatnonzero(chosen[begin : begin + _RESAMPLED])
            vector = self.vector[:, own]  # [G, own, d]
            # The squared length of the sum of vectors, or the sum of their products where those are fewer numbers.
            if d <= n_groups:
                summed = (w @ vector.reshape(n_groups, -1)).reshape(len(w), len(own), d)
                length[:, own] = np.einsum("rfd,rfd->rf", summed, summed)
            else:
                products = np.empty((n_groups, len(own), n_groups), np.float32)
                for i in range(len(own)):
                    alone = np.ascontiguousarray(vector[:, i])  # [G, d]
                    products[:, i] = alone @ alone.T
                summed = (w @ products.reshape(n_groups, -1)).reshape(len(w), len(own), n_groups)
                length[:, own] = np.einsum("rfg,rg->rf", summed, w)
        return monosemanticity.score(length, weights @ self.total, squares, active)

    def correlation(self, weights: np.ndarray, chosen: np.ndarray | slice) -> np.ndarray:
        """r of the neurons `chosen` with each label in resamples, NaN if either is constant. [resamples, chosen, C]"""

        def over(values: np.ndarray) -> np.ndarray:
            return np.tensordot(weights.astype(np.float64), values, axes=1)

        n, positive = over(self.known), over(self.value)  # [resamples, 1, C]
        total, square, hit = (
            over(part[:, chosen]) for part in (self.total_known, self.square_known, self.total_value)
        )  # [resamples, chosen, C]
        return monosemanticity.pearson(np.maximum(n, 1), positive, total, square, hit)


class _OneGroup(NamedTuple):
    """What `GroupSums` has of one group."""

    active: np.ndarray
    total: np.ndarray
    square: np.ndarray
    square_known: np.ndarray
    counts: np.ndarray  # of studies, by known label and by label [2C]
    product: np.ndarray  # of a with the right side [F, d + 2C]
    fired: np.ndarray  # studies with a known label that a neuron fires on, and those that have the label [F, 2C]


def _of_group(
    raw: np.ndarray, right: np.ndarray, d: int, low: np.ndarray, span: np.ndarray, threshold: np.ndarray
) -> _OneGroup:
    """The sums of one group of studies, of activations [F, rows] and what they are multiplied with [rows, d + 2C]."""
    a = (raw - low[:, None]) / span[:, None]  # [F, rows]
    fires = (raw > threshold[:, None]).astype(np.float64)  # [F, rows]
    active = np.count_nonzero(a, axis=1)
    if active.sum() < _SPARSE * a.size:
        a, fires = sparse.csr_array(a), sparse.csr_array(fires)
    squares, labels = a * a, right[:, d:]
    square_known = squares @ labels[:, : labels.shape[1] // 2]
    return _OneGroup(active, a.sum(axis=1), squares.sum(axis=1), square_known, labels.sum(0), a @ right, fires @ labels)
