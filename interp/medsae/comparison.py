"""Bases of neurons side by side: MedSAE's figures of each, their intervals over patients, and what features gain.

The measures of the controls depend on what "active" means, since all are signed and rarely 0. Each is
therefore measured twice: as MedSAE does, with the activations as they are, and "by rank", where each neuron is
active on as many studies as some feature is (`basis_measures.cut_by_rank`). For features both are the same.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from interp.features.concepts import StudyLabels
from interp.medsae import monosemanticity
from interp.medsae.basis_measures import CLASS_FIGURES, NEURON_FIGURES, BasisMeasures, cut_by_rank, measure_basis
from interp.medsae.patient_groups import PatientGroups
from interp.medsae.vectors import FEATURES, StudyVectors
from interp.scorers.bootstrap import percentile_interval

MEDSAE, BY_RANK = "medsae", "by_rank"

Measured = dict[str, dict[str, BasisMeasures]]
"""basis -> rule ("medsae" or "by_rank") -> its measures"""


def measure_bases(
    vectors: StudyVectors, labels: StudyLabels, groups: PatientGroups, train: np.ndarray, seed: int
) -> Measured:
    """Measures all bases under both rules.

    Args:
      vectors: of n studies.
      labels, groups: of the same studies.
      train: the groups of the training patients of each split. bool [splits, groups]
      seed: seed of what is drawn by rank.
    """
    rest = vectors.embedding, labels, groups, train
    features = measure_basis(vectors.activation[FEATURES], *rest)
    n_active = features.n_active[features.n_active > 0]
    found = {FEATURES: {MEDSAE: features, BY_RANK: features}}
    controls = (entry for entry in vectors.activation.items() if entry[0] != FEATURES)
    for number, (basis, activation) in enumerate(controls):
        cut = cut_by_rank(activation, n_active, seed + number)
        found[basis] = {MEDSAE: measure_basis(activation, *rest), BY_RANK: measure_basis(cut, *rest)}
    return found


def bases(found: Measured, concepts: tuple[str, ...]) -> dict[str, Any]:
    """The figures of each basis with 95 % intervals; those by rank are under "by_rank"."""

    def figures(measured: BasisMeasures) -> dict[str, Any]:
        found = monosemanticity.summary(measured.measures, concepts)
        means = _means(found)
        return found | {"intervals": {name: interval(means[name], part) for name, part in measured.resampled.items()}}

    return {basis: figures(rules[MEDSAE]) | {BY_RANK: figures(rules[BY_RANK])} for basis, rules in found.items()}


def differences(found: Measured, summary: Mapping[str, Any]) -> dict[str, Any]:
    """What features have more than each other basis: rule -> measure -> the difference and its paired interval.

    Args:
      found: the measures.
      summary: what `bases` says of them.
    """
    out: dict[str, Any] = {}
    for basis in found:
        if basis == FEATURES:
            continue
        rules = out[f"{FEATURES} minus {basis}"] = {}
        for rule, own in ((MEDSAE, summary), (BY_RANK, {name: part[BY_RANK] for name, part in summary.items()})):
            one, other = _means(own[FEATURES]), _means(own[basis])
            resampled = found[FEATURES][rule].resampled, found[basis][rule].resampled
            rules[rule] = {
                name: difference(one[name] - other[name], resampled[0][name] - resampled[1][name])
                for name in one
                if one[name] is not None and other[name] is not None
            }
    return out


def difference(value: float, resampled: np.ndarray) -> dict[str, Any]:
    """A difference with its interval, from the differences in the resamples."""
    return {"difference": value, "interval": interval(value, resampled)}


def interval(
    value: float | None, resampled: np.ndarray, within: tuple[float, float] = (-np.inf, np.inf)
) -> tuple[float, float] | None:
    """The percentile interval of a measure from its resamples, moved so that their mean is its value on all studies.

    Resamples of entropies are higher on average, since every correlation that is 0 becomes another number. Those of a
    count may nearly all be one number, and would be moved past the value: the interval is made to contain it.

    Args:
      value: the measure on all studies.
      resampled: the measure in every resample, NaN where it is not defined.
      within: the smallest and the largest value that the measure can have.

    Returns:
      None where the measure is not defined.
    """
    if value is None or not np.isfinite(resampled).any():
        return None
    low, high = percentile_interval(resampled - np.nanmean(resampled) + value)
    return max(min(low, value), within[0]), min(max(high, value), within[1])


def _means(figures: Mapping[str, Any]) -> dict[str, Any]:
    means = {name: figures[name]["mean"] for name in NEURON_FIGURES}
    return means | {name: figures["mean_over_classes"][name] for name in CLASS_FIGURES}
