"""Concept coverage: how well the labelled concepts are found by single neurons of each basis, features and controls.

Every basis is asked what features are asked for concepts.parquet: a study's score is the neuron's largest value over
its counted tokens, the neuron and its threshold are those with the best F1 on the train studies, and what is
reported is measured on the held-out ones. Controls have no natural zero, so that every value may be their threshold,
and of raw dimensions and principal components both signs are tried: what is said of features is said in spite of that.
Intervals are bootstrap intervals over the held-out patients, and differences are paired.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa

from interp.controls import CONTROLS
from interp.controls.control import bases
from interp.exemplars.corpus import Corpus
from interp.exemplars.study_peaks import StudyPeaks
from interp.features import concepts
from interp.features.concepts import ConceptFit, StudyLabels
from interp.features.summary import GOOD_F1
from interp.medsae.comparison import difference, interval
from interp.medsae.patient_groups import PatientGroups
from interp.medsae.vectors import FEATURES, StudyVectors, study_vectors
from maira_jax.run.columns import column
from sae.autoencoder import Sae

SCHEMA = pa.schema(
    [
        column("basis", pa.string(), "features, or the control"),
        column("concept", pa.string(), "a label of the studies"),
        column("neuron", pa.int32(), "with the best F1 on the train studies; negatives follow after all directions"),
        column("f1", pa.float64(), "F1 on the held-out studies"),
        column("precision", pa.float64(), "likewise"),
        column("recall", pa.float64(), "likewise"),
    ]
)


def study_peaks_of_bases(
    sae: Sae, corpus: Corpus, sections: tuple[str, ...], folder: Path, devices: Sequence[jax.Device], seed: int
) -> StudyVectors | None:
    """Passes over the store for each study's largest values of features and controls; all processes take part.

    Args:
      sae: the autoencoder that the controls are compared with.
      corpus: the store and its studies.
      sections: whose tokens are counted.
      folder: for what each process finds.
      devices: they share the directions.
      seed: seed of the controls.

    Returns:
      The vectors; None on processes that are not the first.
    """
    found = bases(sae, corpus.store, seed)
    both = {name: np.concatenate([own, -own], axis=1) for name, own in found.items() if CONTROLS.get(name).either_sign}
    return study_vectors(sae, corpus.store, sections, folder, devices, found | both)


@dataclasses.dataclass(frozen=True)
class _OfAllStudies:
    """The peaks of some of n studies as scores that are never negative, and 0 for studies without tokens.

    Attributes:
      peaks: of the studies `study`.
      raised: whether activations have no zero: each neuron's are moved so that all are positive.
    """

    peaks: StudyPeaks
    study: np.ndarray
    n: int
    raised: bool

    @property
    def shape(self) -> tuple[int, int]:
        return self.n, self.peaks.shape[1]

    def __getitem__(self, key: tuple[slice, slice]) -> np.ndarray:
        own = self.peaks[:, key[1]]
        scores = np.zeros((self.n, own.shape[1]), np.float32)  # [n, neurons]
        scores[self.study] = own - own.min(0) + 1 if self.raised else own
        return scores[key[0]]


def measure(
    vectors: StudyVectors, labels: StudyLabels, corpus: Corpus, names: Sequence[str], n_bootstrap: int
) -> tuple[dict[str, Any], pa.Table]:
    """Finds concepts in every basis.

    Args:
      vectors: the peaks of all bases.
      labels: of all studies of the corpus.
      corpus: their split and patients.
      names: the concepts, which enough studies have.
      n_bootstrap: number of resamples.

    Returns:
      The part of the summary, and a table of `SCHEMA`.
    """
    chosen = [labels.concepts.index(name) for name in names]
    labels = StudyLabels(tuple(names), labels.value[:, chosen], labels.known[:, chosen])
    held_out = corpus.held_out
    patients = np.array(corpus.studies["patient_id"].to_pylist())[held_out]
    groups = PatientGroups.of(patients.tolist(), n_bootstrap, 0)
    rows, f1, resampled, widths = [], {}, {}, {}
    for basis, peaks in vectors.activation.items():
        scores = _OfAllStudies(peaks, vectors.study, len(held_out), basis != FEATURES)
        fit = concepts.fit(scores, labels, held_out)
        best = fit.train_f1.argmax(1).tolist()  # [C]
        for c, neuron in enumerate(best):
            found = {name: float(getattr(fit, name)[c, neuron]) for name in ("f1", "precision", "recall")}
            rows.append({"basis": basis, "concept": names[c], "neuron": neuron} | found)
        f1[basis] = np.array([row["f1"] for row in rows[-len(names) :]])
        resampled[basis] = _resampled_f1(scores, fit, best, labels, held_out, groups)
        widths[basis] = peaks.shape[1]
    summary = {"concepts": len(names), "bases": _bases(f1, resampled, widths), "differences": _gains(f1, resampled)}
    return summary, pa.Table.from_pylist(rows, schema=SCHEMA)


def _resampled_f1(
    scores: _OfAllStudies,
    fit: ConceptFit,
    best: Sequence[int],
    labels: StudyLabels,
    held_out: np.ndarray,
    groups: PatientGroups,
) -> np.ndarray:
    """The held-out F1 of each concept's neuron in every resample, NaN without positive studies. [resamples, C]"""
    columns = []
    for c, neuron in enumerate(best):
        known, value = labels.known[held_out, c], labels.value[held_out, c]
        fires = scores[:, neuron : neuron + 1][held_out, 0] > fit.threshold[c, neuron]
        columns.append(np.stack([known & value, known & fires, known & value & fires], axis=1))
    sums = groups.sums(np.stack(columns, axis=1))  # [groups, C, 3]
    true, fired, hits = np.moveaxis(np.tensordot(groups.weights, sums, axes=1), 2, 0)  # [resamples, C] each
    return np.where(true > 0, 2 * hits / np.maximum(true + fired, 1), np.nan)


def _well_found(f1: np.ndarray) -> np.ndarray:
    """How many concepts are found with a good F1. `[..., C] -> [...]`"""
    return (f1 >= GOOD_F1).sum(-1).astype(np.float64)


def _bases(
    f1: Mapping[str, np.ndarray], resampled: Mapping[str, np.ndarray], widths: Mapping[str, int]
) -> dict[str, Any]:
    """Of each basis the number of neurons, of concepts that are found, and the mean F1, with intervals."""
    out: dict[str, Any] = {}
    for basis, own in f1.items():
        found, mean = float(_well_found(own)), float(own.mean())
        out[basis] = {"neurons": widths[basis], "found": int(found), "f1": mean}
        out[basis]["found_interval"] = interval(found, _well_found(resampled[basis]), (0, len(own)))
        out[basis]["f1_interval"] = interval(mean, np.nanmean(resampled[basis], axis=1), (0, 1))
    return out


def _gains(f1: Mapping[str, np.ndarray], resampled: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What features have more than each control: the difference and its paired interval."""
    own, drawn = f1[FEATURES], resampled[FEATURES]
    return {
        f"{FEATURES} minus {basis}": {
            "found": difference(
                float(_well_found(own) - _well_found(other)), _well_found(drawn) - _well_found(resampled[basis])
            ),
            "f1": difference(float((own - other).mean()), np.nanmean(drawn - resampled[basis], axis=1)),
        }
        for basis, other in f1.items()
        if basis != FEATURES
    }
