"""MedSAE's measures (arXiv 2510.26411) of single neurons: features of an autoencoder, or raw dimensions.

All are exact, computed in float64, and cost one product of activations [n, neurons] with embeddings [n, d] and labels
[n, classes]; no pair of images is ever visited.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from interp.features.concepts import StudyLabels

# A neuron fires above this quantile of its positive activations.
FIRING_QUANTILE = 0.7
# Neurons whose correlation with every label is at most this are left out of means over neurons.
MIN_CORRELATION = 0.2


@dataclasses.dataclass(frozen=True)
class NeuronMeasures:
    """The measures of F neurons for C classes; NaN where undefined.

    Attributes:
      monosemanticity: see `monosemanticity`. [F]
      correlation: Pearson's r with each label. [F, C]
      entropy: the entropy of the correlations' absolute values, in nats; 0 where one label alone correlates. [F]
      threshold: the neuron fires above it. [F]
      precision, recall, f1: the measures of firing as a test for each label. [F, C]
    """

    monosemanticity: np.ndarray
    correlation: np.ndarray
    entropy: np.ndarray
    threshold: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray

    @classmethod
    def concatenate(cls, parts: Sequence["NeuronMeasures"]) -> "NeuronMeasures":
        """The measures of the neurons of all parts, one after the other."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def kept(self) -> np.ndarray:
        """Which neurons count in means over neurons: those that correlate with some label. bool [F]"""
        return np.abs(np.nan_to_num(self.correlation)).max(1, initial=0.0) > MIN_CORRELATION

    def best_of_classes(self) -> dict[int, int]:
        """The kept neuron with the highest signed r for each class that has one."""
        signed = np.where(self.kept()[:, None], np.nan_to_num(self.correlation, nan=-np.inf), -np.inf)  # [F, C]
        best = {c: int(signed[:, c].argmax()) for c in range(signed.shape[1]) if len(signed)}
        return {c: neuron for c, neuron in best.items() if np.isfinite(signed[neuron, c])}


def measure(activation: np.ndarray, embedding: np.ndarray, labels: StudyLabels) -> NeuronMeasures:
    """All measures of every neuron, in memory.

    Args:
      activation: activations of either sign. [n, F]
      embedding: the embeddings of the same studies; none is zero. [n, d]
      labels: the labels of the same studies; each class is measured on the studies whose label is known.
    """
    a = np.asarray(activation, np.float64)
    r = correlation(a, labels)
    return NeuronMeasures(monosemanticity(a, embedding), r, entropy(r), *_firing(a, labels))


def monosemanticity(activation: np.ndarray, embedding: np.ndarray) -> np.ndarray:
    """How similar the images are that a neuron is active on: the mean cosine of pairs, weighted by both activations.

    Where a are the activations scaled to [0, 1], e the embeddings, and u the same scaled to length 1,

      sum over i < j of a_i a_j cos(e_i, e_j)   (|sum a_i u_i|^2 - sum a_i^2) / 2
      --------------------------------------- = ---------------------------------
      sum over i < j of a_i a_j                 ((sum a_i)^2 - sum a_i^2) / 2

    Args:
      activation: the activation of each neuron on each of n studies. float64 [n, F]
      embedding: the embedding of each study. [n, d]

    Returns:
      [F], at most 1; NaN where the denominator is 0: a neuron that is constant, or above its smallest value only once.
    """
    low, high = activation.min(0), activation.max(0)
    span = high - low
    a = (activation - low) / np.where(span > 0, span, 1.0)
    unit = np.asarray(embedding, np.float64)
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    squares = (a * a).sum(0)  # [F]
    numerator = ((a.T @ unit) ** 2).sum(1) - squares  # [F]
    denominator = a.sum(0) ** 2 - squares  # [F]
    defined = (a > 0).sum(0) >= 2  # exactly; the difference of two rounded sums need not be 0
    return np.divide(numerator, denominator, out=np.full(len(span), np.nan), where=defined)


def correlation(activation: np.ndarray, labels: StudyLabels) -> np.ndarray:
    """Pearson's r of every neuron with every label over the studies that have it, [F, C]; NaN if either is constant."""
    x = activation - activation.mean(0)  # [n, F]
    known, value = labels.known.astype(np.float64), (labels.known & labels.value).astype(np.float64)  # [n, C]
    n, positive = np.maximum(known.sum(0), 1), value.sum(0)  # [C]
    total, square = x.T @ known, (x * x).T @ known  # [F, C]
    variance, label_variance = square - total**2 / n, positive - positive**2 / n
    # The variance of a neuron that is constant where the label is known is rounding.
    varies = (np.ptp(activation, axis=0) > 0)[:, None] & (variance > 1e-12 * square) & (label_variance > 0)  # [F, C]
    scale = np.sqrt(np.where(varies, variance * label_variance, 1.0))
    return np.where(varies, (x.T @ value - total * positive / n) / scale, np.nan)


def entropy(r: np.ndarray) -> np.ndarray:
    """Entropy of each neuron's correlations [F, C], in nats: H = -sum p ln p of p = |r| / sum |r|; NaN without any."""
    size = np.abs(np.nan_to_num(r))
    total = size.sum(1, keepdims=True)
    p = np.divide(size, total, out=np.zeros_like(size), where=total > 0)
    h = -(p * np.log(np.where(p > 0, p, 1.0))).sum(1)
    return np.where(total[:, 0] > 0, h, np.nan)


def _firing(activation: np.ndarray, labels: StudyLabels) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Threshold [F] and precision, recall and F1 [F, C] of firing; ratios without cases are 0, without labels NaN."""
    alive = (activation > 0).any(0)
    threshold = np.full(activation.shape[1], np.nan)
    for neuron in np.flatnonzero(alive):
        a = activation[:, neuron]
        threshold[neuron] = np.quantile(a[a > 0], FIRING_QUANTILE)
    fires = (activation > np.where(alive, threshold, np.inf)).T.astype(np.float32)  # [F, n]
    known, value = labels.known.astype(np.float32), (labels.known & labels.value).astype(np.float32)
    hits, fired = (fires @ value).astype(np.float64), (fires @ known).astype(np.float64)  # [F, C]
    true = value.sum(0)
    precision, recall = hits / np.maximum(fired, 1), hits / np.maximum(true, 1)
    f1 = 2 * hits / np.maximum(fired + true, 1)
    for measured in (precision, recall, f1):
        measured[:, true == 0] = np.nan
        measured[~alive] = np.nan
    return threshold, precision, recall, f1


def summary(found: NeuronMeasures, concepts: tuple[str, ...]) -> dict[str, Any]:
    """The figures that MedSAE reports, for the neurons of one basis.

    For each class it takes the kept neuron with the highest signed r; the means are over the classes.
    """
    kept = found.kept()
    columns = {"r": found.correlation, "precision": found.precision, "recall": found.recall, "f1": found.f1}
    classes = {
        concepts[c]: {"neuron": neuron} | {name: _number(part[neuron, c]) for name, part in columns.items()}
        for c, neuron in found.best_of_classes().items()
    }
    return {
        "neurons": len(kept),
        "alive": int(np.isfinite(found.monosemanticity).sum()),
        "kept": int(kept.sum()),
        "monosemanticity": _statistics(found.monosemanticity),
        "monosemanticity_kept": _statistics(found.monosemanticity[kept]),
        "entropy_kept": _statistics(found.entropy[kept]),
        "classes": classes,
        "mean_over_classes": {
            name: _mean([row[name] for row in classes.values()]) for name in ("r", "precision", "recall", "f1")
        },
    }


def _statistics(values: np.ndarray) -> dict[str, float | None]:
    values = values[np.isfinite(values)]
    if not len(values):
        return {"mean": None, "median": None, "max": None}
    return {"mean": float(values.mean()), "median": float(np.median(values)), "max": float(values.max())}


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _mean(values: list[float | None]) -> float | None:
    kept = [value for value in values if value is not None]
    return float(np.mean(kept)) if kept else None
