"""MedSAE's measures (arXiv 2510.26411) of single neurons: features of an autoencoder, or raw dimensions.

All follow exactly from sums over studies, which `group_sums` takes in float64: they cost one product of activations
[n, neurons] with embeddings [n, d] and labels [n, classes]; no pair of images is ever visited.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

# A neuron fires above this quantile of its positive activations.
FIRING_QUANTILE = 0.7
# Neurons whose correlation with every label is at most this are left out of means over neurons.
MIN_CORRELATION = 0.2


@dataclasses.dataclass(frozen=True)
class NeuronMeasures:
    """The measures of F neurons for C classes; NaN where undefined.

    Attributes:
      monosemanticity: see `score`. [F]
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


def score(length: np.ndarray, total: np.ndarray, square: np.ndarray, active: np.ndarray) -> np.ndarray:
    """How similar the images are that a neuron is active on: the mean cosine of pairs, weighted by both activations.

    Where a are the activations scaled to [0, 1], e the embeddings, and u the same scaled to length 1,

      sum over i < j of a_i a_j cos(e_i, e_j)   (|sum a_i u_i|^2 - sum a_i^2) / 2
      --------------------------------------- = ---------------------------------
      sum over i < j of a_i a_j                 ((sum a_i)^2 - sum a_i^2) / 2

    Args:
      length: |sum a_i u_i|^2.
      total: sum a_i.
      square: sum a_i^2.
      active: the number of studies with a_i > 0.

    Returns:
      At most 1; NaN where the denominator is 0: a neuron that is constant, or above its smallest value only once.
    """
    defined = active >= 2  # exactly; the difference of two rounded sums need not be 0
    return np.divide(length - square, total**2 - square, out=np.full(np.shape(total), np.nan), where=defined)


def pearson(n: np.ndarray, positive: np.ndarray, total: np.ndarray, square: np.ndarray, hit: np.ndarray) -> np.ndarray:
    """Pearson's r of neurons with labels, from sums over the studies whose label is known; NaN if either is constant.

    Args:
      n: number of these studies, at least 1.
      positive: number of those that have the label.
      total, square: of activations, and of their squares.
      hit: of the activations on studies that have the label.
    """
    variance, label_variance = square - total * total / n, positive - positive * positive / n
    # The variance of a neuron that is constant where the label is known is rounding.
    varies = (variance > 1e-12 * square) & (label_variance > 0)
    scale = np.sqrt(np.where(varies, variance * label_variance, 1.0))
    return np.divide(hit - total * positive / n, scale, out=np.full(np.shape(total), np.nan), where=varies)


def entropy(r: np.ndarray) -> np.ndarray:
    """Entropy of each neuron's correlations [F, C], in nats: H = -sum p ln p of p = |r| / sum |r|; NaN without any."""
    size = np.abs(np.nan_to_num(r))
    total = size.sum(1, keepdims=True)
    p = np.divide(size, total, out=np.zeros_like(size), where=total > 0)
    h = -(p * np.log(np.where(p > 0, p, 1.0))).sum(1)
    return np.where(total[:, 0] > 0, h, np.nan)


def thresholds(columns: np.ndarray) -> np.ndarray:
    """What each neuron fires above, NaN of one that is never above 0. Activations [F, n], to float64 [F]"""
    found = np.full(len(columns), np.nan)
    for neuron, a in enumerate(columns):
        positive = a[a > 0]
        if len(positive):
            place = FIRING_QUANTILE * (len(positive) - 1)
            below, above = math.floor(place), math.ceil(place)
            positive.partition((below, above))
            found[neuron] = np.interp(place, (below, above), positive[[below, above]].astype(np.float64))
    return found


def firing(
    fired: np.ndarray, hits: np.ndarray, true: np.ndarray, alive: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision, recall and F1 [F, C] of firing; ratios without cases are 0, without labels NaN.

    Args:
      fired: of the studies with a known label, those that each neuron fires on. [F, C]
      hits: those of them that have the label. [F, C]
      true: studies that have each label. [C]
      alive: the neurons that are ever above 0. bool [F]
    """
    precision, recall = hits / np.maximum(fired, 1), hits / np.maximum(true, 1)
    f1 = 2 * hits / np.maximum(fired + true, 1)
    for measured in (precision, recall, f1):
        measured[:, true == 0] = np.nan
        measured[~alive] = np.nan
    return precision, recall, f1


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
