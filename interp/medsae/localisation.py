"""Where in the image a neuron is active, compared with boxes that mark where the finding is.

A heat map is a neuron's activation on every patch of the frontal image. It is scored by the pointing game (Zhang et
al., arXiv 1608.00507): whether its strongest patch is where the finding is; by the intersection over union of the
patches above a threshold; and by the share of its activation that lies in a box. Patients are divided into folds: the
neuron of a concept, the one with the highest r with the studies' labels, and its threshold come from the other folds.

Maps without content are scored for comparison: those of random alive features, a uniform map, and a perfect one, whose
activation is the covered share of each patch: how coarse patches are limits what any map can reach.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import pyarrow as pa

from interp.features.concepts import StudyLabels
from interp.medsae.boxed_images import BoxedImages
from interp.medsae.comparison import DIMENSIONS, DIRECTIONS, FEATURES, MEDSAE, Measured, difference, interval
from interp.medsae.patient_groups import PatientGroups
from interp.medsae.vectors import random_directions
from sae.activations.store import ActivationStore
from sae.autoencoder import Sae

FOLDS = 5
RANDOM_FEATURES, UNIFORM, PERFECT = "random features", "uniform map", "perfect map"
MEASURES = ("pointing", "touching", "inside", "iou", "oracle_iou")
_N_RANDOM = 20  # features that are drawn
_N_THRESHOLDS = 32
_BLOCK_ROWS = 4096  # encoded at a time


@dataclasses.dataclass(frozen=True)
class MapScores:
    """Scores of one heat map for each of m images.

    Attributes:
      pointing: whether the centre of the strongest patch lies in a box; the share of equally strong ones. [m]
      touching: the same of patches that a box covers in part.
      inside: the share of the activation above 0 that lies in a box; that of a uniform map without any.
      iou: intersection over union of the boxes and the patches above the threshold of other patients; NaN without any.
      oracle_iou: the same at the image's own best threshold.
    """

    pointing: np.ndarray
    touching: np.ndarray
    inside: np.ndarray
    iou: np.ndarray
    oracle_iou: np.ndarray

    def stacked(self) -> np.ndarray:
        """All measures, [measures, m]."""
        return np.stack([getattr(self, measure) for measure in MEASURES])


def score_maps(maps: np.ndarray, images: BoxedImages, fold: np.ndarray) -> MapScores:
    """Scores heat maps.

    Args:
      maps: activations. [m, P]
      images: the images.
      fold: each image's fold, whose threshold comes from the other folds. int [m]
    """
    strongest = maps == maps.max(1, keepdims=True)  # [m, P]
    weight = np.maximum(maps, 0)
    weight = np.where(weight.any(1, keepdims=True), weight, 1.0)
    share = np.divide(images.covered, images.area, out=np.zeros_like(images.area), where=images.area > 0)
    curve = _iou_curve(maps, images)
    return MapScores(
        (strongest & images.inside).sum(1) / strongest.sum(1),
        (strongest & (images.covered > 0)).sum(1) / strongest.sum(1),
        (weight * share).sum(1) / weight.sum(1),
        _iou_of_other_folds(maps, curve, fold),
        np.nanmax(curve, axis=1),
    )


def _iou_curve(maps: np.ndarray, images: BoxedImages) -> np.ndarray:
    """IoU of the k strongest patches, [m, P + 1] from k = 0 on; NaN where the next patch is equally strong."""
    order = np.argsort(-maps, axis=1, kind="stable")
    value, covered, area = (np.take_along_axis(part, order, axis=1) for part in (maps, images.covered, images.area))
    covered, area = covered.cumsum(1), area.cumsum(1)
    curve = covered / (area + images.box_area[:, None] - covered)
    curve[:, :-1][value[:, :-1] == value[:, 1:]] = np.nan
    return np.concatenate([np.zeros((len(maps), 1)), curve], axis=1)


def _iou_of_other_folds(maps: np.ndarray, curve: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Each image's IoU at the threshold with the best mean on the images of the other folds; NaN without any. [m]"""
    out = np.full(len(maps), np.nan)
    for number in np.unique(fold):
        own, others = fold == number, fold != number
        if not others.any():
            continue
        thresholds = np.append(np.quantile(maps[others], np.arange(_N_THRESHOLDS) / _N_THRESHOLDS), -np.inf)
        above = [(maps > threshold).sum(1) for threshold in thresholds]  # [m] each
        iou = np.stack([curve[np.arange(len(maps)), count] for count in above])  # [thresholds, m]
        out[own] = iou[iou[:, others].mean(1).argmax()][own]
    return out


@dataclasses.dataclass(frozen=True)
class LocalisedNeurons:
    """The neurons of one concept whose maps are scored.

    Attributes:
      best: basis -> the neuron with the highest r on the patients that each fold leaves. int64 [folds] each
      random: features that are drawn. int64 [r]
    """

    best: dict[str, np.ndarray]
    random: np.ndarray

    def of(self, basis: str) -> np.ndarray:
        """All of one basis, ascending."""
        return np.union1d(self.best[basis], self.random if basis == FEATURES else []).astype(np.int64)


def localise(
    boxed: Mapping[str, BoxedImages],
    found: Measured,
    folds: slice,
    labels: StudyLabels,
    groups: PatientGroups,
    study: np.ndarray,
    sae: Sae,
    store: ActivationStore,
    seed: int,
) -> tuple[dict[str, Any], pa.Table]:
    """Scores the heat maps of each concept's best neurons.

    Args:
      boxed: the images of each concept.
      found: the measures of the bases.
      folds: the splits of `found` that leave out one of `FOLDS` folds each.
      labels, groups: of n studies.
      study: their rows in the store's study table, ascending. [n]
      sae: autoencoder of raw activations.
      store: the activations.
      seed: seed of the random directions and of the features that are drawn.

    Returns:
      The part of the summary, and a table with one row per concept, image and map.
    """
    alive = np.flatnonzero(found[FEATURES][MEDSAE].n_active > 0)
    drawn = np.random.default_rng((seed, 2)).permutation(alive)[:_N_RANDOM]
    study_ids = store.studies["study_id"].to_pylist()
    rows: list[dict[str, Any]] = []
    for concept, images in boxed.items():
        c, group = labels.concepts.index(concept), groups.of_study[np.searchsorted(study, images.study)]
        best = {basis: rules[MEDSAE].train_correlation[folds, :, c].argmax(1) for basis, rules in found.items()}
        for name, neuron, scores in _scored_maps(
            images, group % FOLDS, LocalisedNeurons(best, drawn), sae, store, seed
        ):
            for i, number in enumerate(images.study.tolist()):
                row = {"concept": concept, "study_id": study_ids[number], "map": name, "group": int(group[i])}
                row |= {"neuron": None if neuron is None else int(neuron[i])}
                rows.append(row | {measure: float(getattr(scores, measure)[i]) for measure in MEASURES})
    table = pa.Table.from_pylist(rows)
    return _summary(table, groups), table.drop_columns(["group"])


def _scored_maps(
    images: BoxedImages, fold: np.ndarray, neurons: LocalisedNeurons, sae: Sae, store: ActivationStore, seed: int
) -> Iterator[tuple[str, np.ndarray | None, MapScores]]:
    """The name, the neuron of each image [m] and the scores of every map, for images of the folds `fold [m]`."""
    maps = neuron_maps(images, {basis: neurons.of(basis) for basis in neurons.best}, sae, store, seed)

    def scored(basis: str, neuron: int) -> np.ndarray:
        """[measures, m]"""
        return score_maps(maps[basis][np.searchsorted(neurons.of(basis), neuron)], images, fold).stacked()

    for basis, best in neurons.best.items():
        of_neuron = {neuron: scored(basis, neuron) for neuron in set(best.tolist())}
        own = best[fold]  # [m]
        yield (
            basis,
            own,
            MapScores(*np.stack([of_neuron[neuron][:, i] for i, neuron in enumerate(own.tolist())], axis=1)),
        )
    if len(neurons.random):
        yield RANDOM_FEATURES, None, MapScores(*np.mean([scored(FEATURES, int(f)) for f in neurons.random], axis=0))
    yield UNIFORM, None, score_maps(np.ones_like(images.area), images, fold)
    yield PERFECT, None, score_maps(images.covered + images.inside, images, fold)


def neuron_maps(
    images: BoxedImages, neurons: Mapping[str, np.ndarray], sae: Sae, store: ActivationStore, seed: int
) -> dict[str, np.ndarray]:
    """The heat maps of neurons.

    Args:
      images: m images of P patches.
      neurons: basis -> neurons. [k] each
      sae: autoencoder of raw activations.
      store: the activations.
      seed: seed of the random directions.

    Returns:
      Basis -> activations. float32 [k, m, P] each
    """
    m, n_patches = images.area.shape
    directions = random_directions(sae.d_model, seed)[:, neurons[DIRECTIONS]]
    parts: dict[str, list[np.ndarray]] = {basis: [] for basis in neurons}
    step = max(1, _BLOCK_ROWS // n_patches)
    for begin in range(0, m, step):
        x = np.concatenate(
            [store.read(first, first + n_patches) for first in images.first[begin : begin + step].tolist()]
        )
        parts[FEATURES].append(np.asarray(sae.encode(jax.numpy.asarray(x)))[:, neurons[FEATURES]])
        parts[DIMENSIONS].append(x[:, neurons[DIMENSIONS]])
        parts[DIRECTIONS].append(x @ directions)
    return {basis: np.concatenate(own).T.reshape(-1, m, n_patches) for basis, own in parts.items()}


def _summary(table: pa.Table, groups: PatientGroups) -> dict[str, Any]:
    """Means over the images of each concept, and over concepts, with intervals over patients."""
    name, concept, group = (np.array(table[column].to_pylist()) for column in ("map", "concept", "group"))
    concepts, maps = dict.fromkeys(concept.tolist()), dict.fromkeys(name.tolist())
    values = np.stack([table[measure].to_numpy() for measure in MEASURES], axis=1)
    point: dict[str, dict[str, np.ndarray]] = {kind: {} for kind in maps}
    resampled: dict[str, list[np.ndarray]] = {kind: [] for kind in maps}
    for kind in maps:
        for own in concepts:
            rows = np.flatnonzero((name == kind) & (concept == own))
            sums = np.zeros((2, groups.n, len(MEASURES)))  # of the values, and their number
            np.add.at(sums[0], group[rows], np.nan_to_num(values[rows]))
            np.add.at(sums[1], group[rows], np.isfinite(values[rows]))
            point[kind][own] = _ratio(*sums.sum(1))
            resampled[kind].append(_ratio(*(groups.weights @ part for part in sums)))

    def mean(kind: str) -> tuple[np.ndarray, np.ndarray]:
        """Over concepts: the measures [measures], and their resamples [resamples, measures]."""
        return np.nanmean(list(point[kind].values()), axis=0), np.nanmean(resampled[kind], axis=0)

    figures: dict[str, Any] = {}
    for kind in maps:
        over, drawn = mean(kind)
        figures[kind] = {measure: _number(over[i]) for i, measure in enumerate(MEASURES)} | {
            "intervals": {measure: interval(_number(over[i]), drawn[:, i]) for i, measure in enumerate(MEASURES)},
            "concepts": {
                own: dict(zip(MEASURES, map(_number, part), strict=True)) for own, part in point[kind].items()
            },
        }
    (one, drawn_one) = mean(FEATURES)
    gains = {}
    for kind in (kind for kind in maps if kind != FEATURES):
        other, drawn_other = mean(kind)
        gains[f"{FEATURES} minus {kind}"] = {
            measure: difference(float(one[i] - other[i]), drawn_one[:, i] - drawn_other[:, i])
            for i, measure in enumerate(MEASURES)
            if np.isfinite(one[i] - other[i])
        }
    images = {own: int(((concept == own) & (name == FEATURES)).sum()) for own in concepts}
    return {"folds": FOLDS, "images": images, "maps": figures, "differences": gains}


def _ratio(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    return np.divide(total, count, out=np.full(np.shape(total), np.nan), where=count > 0)


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
