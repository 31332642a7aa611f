"""Where in the image a neuron is active, compared with boxes that mark where the finding is.

A heat map is a neuron's activation on every patch of the frontal image. It is scored by the pointing game (Zhang et
al., arXiv 1608.00507): whether its strongest patch is where the finding is; by the intersection over union of the
patches above a threshold; and by the share of its activation that lies in a box. Patients are divided into folds: the
neuron of a concept, the one with the highest r with the studies' labels, and its threshold come from the other folds.
A finding with sides or zones has a feature for each, so the maps of the 16 neurons with the largest |r| are added, too,
weighted by what is positive of the weights of their probe.

Maps without content are scored for comparison: those of random alive features, a uniform map, and a perfect one, whose
activation is the covered share of each patch: how coarse patches are limits what any map can reach.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import pyarrow as pa

from interp.exemplars.study_peaks import StudyPeaks
from interp.features.concepts import StudyLabels
from interp.medsae.boxed_images import BoxedImages
from interp.medsae.comparison import difference, interval
from interp.medsae.patient_groups import PatientGroups
from interp.medsae.probes import columns_of
from interp.medsae.vectors import FEATURES
from maira_jax.run.columns import column
from sae.activations.store import ActivationStore
from sae.autoencoder import Sae
from sae.evaluation import probing

FOLDS = 5
RANDOM_FEATURES, UNIFORM, PERFECT = "random features", "uniform map", "perfect map"
_MEANINGS = {
    "pointing": "whether the centre of its largest patch lies in a box",
    "touching": "whether its largest patch touches a box",
    "inside": "share of its sum inside boxes",
    "iou": "intersection over union with the boxes, at the best threshold of other images",
    "oracle_iou": "the same at the image's own best threshold",
}
MEASURES = tuple(_MEANINGS)
SCHEMA = pa.schema(
    [
        column("concept", pa.string(), "the label whose boxes are looked for"),
        column("study_id", pa.string(), "the study"),
        column("map", pa.string(), "which neurons made the heat map"),
        column("neuron", pa.int64(), "the neuron, where it is one"),
        *(column(name, pa.float64(), meaning) for name, meaning in _MEANINGS.items()),
    ]
)
_N_RANDOM = 20  # features that are drawn
_TOGETHER = 16  # neurons whose maps are added
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
class LabelledStudies:
    """What the neurons of a concept are chosen by.

    Attributes:
      study: rows of the store's study table, ascending. int64 [n]
      labels, groups: of these studies.
      activations: of each basis on them. [n, neurons] each
      correlation: of each basis, r with each label on the patients that each fold leaves. [FOLDS, neurons, C] each
    """

    study: np.ndarray
    labels: StudyLabels
    groups: PatientGroups
    activations: Mapping[str, np.ndarray | StudyPeaks]
    correlation: Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class WeightedNeurons:
    """Neurons of a basis, and how much each counts in W maps.

    Attributes:
      basis: their basis.
      neurons: ascending. int64 [k]
      weights: one map per fold, or per draw. [W, k]
    """

    basis: str
    neurons: np.ndarray
    weights: np.ndarray

    @classmethod
    def single(cls, basis: str, neuron: np.ndarray) -> "WeightedNeurons":
        """A map of each neuron of `neuron [W]`."""
        unique, place = np.unique(neuron, return_inverse=True)
        return cls(basis, unique, np.eye(len(unique))[place])


def localise(
    boxed: Mapping[str, BoxedImages],
    studies: LabelledStudies,
    sae: Sae,
    store: ActivationStore,
    directions: Mapping[str, np.ndarray],
    seed: int,
) -> tuple[dict[str, Any], pa.Table]:
    """Scores the heat maps of each concept's best neurons.

    Args:
      boxed: the images of each concept, of some of the studies.
      studies: labelled studies.
      sae: autoencoder of raw activations.
      store: the activations.
      directions: of the other bases than the features. [d_model, neurons] each
      seed: seed of the features that are drawn.

    Returns:
      The part of the summary, and a table with one row per concept, image and map.
    """
    study_ids = store.studies["study_id"].to_pylist()
    rows: list[dict[str, Any]] = []
    for concept, images in boxed.items():
        group = studies.groups.of_study[np.searchsorted(studies.study, images.study)]  # [m]
        readouts = _readouts(studies, studies.labels.concepts.index(concept), seed)
        for name, neuron, scores in _scored_maps(images, group % FOLDS, readouts, sae, store, directions):
            for i, number in enumerate(images.study.tolist()):
                row = {"concept": concept, "study_id": study_ids[number], "map": name, "group": int(group[i])}
                row |= {"neuron": None if neuron is None else int(neuron[i])}
                rows.append(row | {measure: float(getattr(scores, measure)[i]) for measure in MEASURES})
    groups = pa.array([row["group"] for row in rows])
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    return _summary(table.append_column("group", groups), studies.groups), table


def _readouts(studies: LabelledStudies, c: int, seed: int) -> dict[str, WeightedNeurons]:
    """The name and the neurons of each map of the concept number `c`."""
    out = {}
    known, value = studies.labels.known[:, c], studies.labels.value[:, c]
    counted = studies.groups.folds(FOLDS)[:, studies.groups.of_study] & known  # [FOLDS, n]
    for basis, correlation in studies.correlation.items():
        r = correlation[:, :, c]  # [FOLDS, neurons]
        out[basis] = WeightedNeurons.single(basis, r.argmax(1))
        order = np.argsort(-np.abs(r), axis=1, kind="stable")[:, :_TOGETHER]  # [FOLDS, k]
        neurons = np.unique(order)
        places = np.searchsorted(neurons, order)
        x = columns_of(studies.activations[basis], neurons)[:, places].swapaxes(0, 1)  # [FOLDS, n, k]
        fitted, _ = probing.fit_sparse(x, np.broadcast_to(value, counted.shape), counted)
        weights = np.zeros((FOLDS, len(neurons)))
        np.put_along_axis(weights, places, np.maximum(fitted, 0).astype(np.float64), axis=1)
        out[f"{_TOGETHER} {basis}"] = WeightedNeurons(basis, neurons, weights)
    alive = np.flatnonzero(np.any(studies.correlation[FEATURES] != 0, axis=(0, 2)))
    drawn = np.random.default_rng((seed, 2)).permutation(alive)[:_N_RANDOM]
    return out | ({RANDOM_FEATURES: WeightedNeurons.single(FEATURES, drawn)} if len(drawn) else {})


def _scored_maps(
    images: BoxedImages,
    fold: np.ndarray,
    readouts: Mapping[str, WeightedNeurons],
    sae: Sae,
    store: ActivationStore,
    directions: Mapping[str, np.ndarray],
) -> Iterator[tuple[str, np.ndarray | None, MapScores]]:
    """The name, the neuron of each image [m] and the scores of every map, for images of the folds `fold [m]`."""
    own = {
        part.basis: [each.neurons for each in readouts.values() if each.basis == part.basis]
        for part in readouts.values()
    }
    neurons = {basis: np.unique(np.concatenate(parts)) for basis, parts in own.items()}
    maps = neuron_maps(images, neurons, sae, store, directions)
    for name, part in readouts.items():
        chosen = maps[part.basis][np.searchsorted(neurons[part.basis], part.neurons)]  # [k, m, P]
        scores = np.stack([score_maps(np.tensordot(w, chosen, axes=1), images, fold).stacked() for w in part.weights])
        if name == RANDOM_FEATURES:
            yield name, None, MapScores(*scores.mean(0))
        else:
            best = part.neurons[part.weights.argmax(1)][fold] if name == part.basis else None  # [m]
            yield name, best, MapScores(*scores[fold, :, np.arange(len(fold))].T)
    yield UNIFORM, None, score_maps(np.ones_like(images.area), images, fold)
    yield PERFECT, None, score_maps(images.covered + images.inside, images, fold)


def neuron_maps(
    images: BoxedImages,
    neurons: Mapping[str, np.ndarray],
    sae: Sae,
    store: ActivationStore,
    directions: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """The heat maps of neurons.

    Args:
      images: m images of P patches.
      neurons: basis -> neurons. [k] each
      sae: autoencoder of raw activations.
      store: the activations.
      directions: of the other bases than the features. [d_model, neurons] each

    Returns:
      Basis -> activations. float32 [k, m, P] each
    """
    m, n_patches = images.area.shape
    columns = {basis: directions[basis][:, own] for basis, own in neurons.items() if basis != FEATURES}
    parts: dict[str, list[np.ndarray]] = {basis: [] for basis in neurons}
    step = max(1, _BLOCK_ROWS // n_patches)
    for begin in range(0, m, step):
        x = np.concatenate(
            [store.read(first, first + n_patches) for first in images.first[begin : begin + step].tolist()]
        )
        parts[FEATURES].append(np.asarray(sae.encode(jax.numpy.asarray(x)))[:, neurons[FEATURES]])
        for basis, own in columns.items():
            parts[basis].append(x @ own)
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
            "intervals": {
                measure: interval(_number(over[i]), drawn[:, i], (0, 1)) for i, measure in enumerate(MEASURES)
            },
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
