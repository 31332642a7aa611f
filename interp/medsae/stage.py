"""The label stage: MedSAE's measures of features and of controls, on labelled studies of a store.

The measures compare neurons with the studies' labels, which is why the command is `launch.label`. A *neuron*, as MedSAE
says, is anything with one activation per token: a feature of the autoencoder, or the product of the activations that
it reads with a direction of a control (`interp.controls`). A *basis* is all neurons of one of these kinds; what the
autoencoder gains is the difference between its basis and the others.

A study is one vector, as an image is in MedSAE: its embedding is the mean activation of its tokens in
`label.sections`, and a neuron's activation is the largest over those tokens. With one token per study, such as an image
embedding, both are MedSAE's definitions; with more they are this project's choice. Neurons are chosen and measured on
the same studies, as in MedSAE; `interp/concepts.parquet` has features chosen on some studies and measured on others.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from interp.controls.control import bases
from interp.exemplars.index_pass.shared_sae import devices_of
from interp.explainers.images import studies_of
from interp.features.concepts import StudyLabels
from interp.medsae import comparison, probes
from interp.medsae.boxed_images import boxed_images, frontal_patches
from interp.medsae.localisation import FOLDS, LabelledStudies, localise
from interp.medsae.monosemanticity import NeuronMeasures
from interp.medsae.patient_groups import PatientGroups
from interp.medsae.vectors import study_vectors
from maira_jax.errors import UserError
from maira_jax.inputs.tokens import SECTIONS
from maira_jax.run import files
from maira_jax.run.columns import column
from maira_jax.run.config import RunSection, Section, setting
from maira_jax.run.stages.stage import Stage
from sae.activations.store import ActivationStore
from sae.saved import load_sae

_MIN_IMAGES = 5  # with boxes of a concept, whose heat maps are scored
_PROBE_TRAIN = 0.7  # share of the patients that a probe is fitted on


class LabelSection(Section, name="label"):
    """How features and controls are measured against the studies' labels."""

    sections: tuple[str, ...] = setting(
        ("image",), "A study is represented by the activations of these sections' tokens.", choices=lambda: SECTIONS
    )
    concepts: tuple[str, ...] = setting((), "Labels that are measured; empty: all.")
    bootstrap: int = setting(1000, "Resamples of the patients, from which the 95 % intervals are taken.", ge=1)
    probe_seeds: int = setting(5, "Random splits of the patients that k-sparse probes are fitted and scored on.", ge=1)

    def check(self) -> None:
        if not self.sections:
            raise UserError("label.sections is empty, but must name at least one section: change it")


def run(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, Any]:
    """Measures every feature of `workdir/sae` and every dimension of its activations.

    All processes of the run pass over the store, each for its share of the studies; the first one does the rest.

    Returns:
      The counts of the manifest.

    Raises:
      UserError: the section is invalid, an input stage is not finished, or no study has labels or tokens to measure on.
    """
    section = LabelSection.of(config)
    shared = RunSection.of(config)
    mesh, identity = shared.mesh, {"label": section.deciding(), "seed": shared.seed}
    with Stage(Path(workdir), "label", identity, ("activations", "sae"), {"mesh": mesh}, config) as stage:
        if not stage.finished:
            stage.finish(_run(config, devices_of(mesh), Path(workdir), stage.dir))
        return stage.manifest["counts"]


def _run(config: ml_collections.ConfigDict, devices: Sequence[jax.Device], workdir: Path, out: Path) -> dict[str, Any]:
    section, seed = LabelSection.of(config), RunSection.of(config).seed
    sae, store = load_sae(workdir / "sae"), ActivationStore.open(workdir / "activations")
    if sae.d_model != store.d_model:
        raise UserError(
            f"{workdir / 'sae'} takes {sae.d_model} dimensions and {workdir / 'activations'} has {store.d_model}: "
            "use the autoencoder that was trained on these activations"
        )
    directions = bases(sae, store, seed)
    vectors = study_vectors(sae, store, section.sections, out / "vectors", devices, directions)
    if vectors is None:
        return {}
    labels = _labels(section, store, vectors.study)
    patients = store.studies["patient_id"].take(pa.array(vectors.study)).to_pylist()
    groups = PatientGroups.of(patients, section.bootstrap, seed)
    boxed = {}
    if frontal_patches(store) is not None:
        marked = boxed_images(store, studies_of(config.studies, workdir / "activations"), labels.concepts)
        boxed = {concept: images for concept, images in marked.items() if len(images.study) >= _MIN_IMAGES}
    splits = groups.random_splits(section.probe_seeds, _PROBE_TRAIN, seed)
    train = np.concatenate([splits, groups.folds(FOLDS)])
    found = comparison.measure_bases(vectors, labels, groups, train, seed)
    with files.atomic_path(out / "neurons.parquet") as path:
        pq.write_table(pa.concat_tables([_table(basis, found[basis], labels.concepts) for basis in found]), path)
    vectors_of_bases = vectors.activation, vectors.embedding, directions if vectors.is_single else {}
    probing, probes_table = probes.probe_bases(*vectors_of_bases, found, labels, groups, splits, seed)
    with files.atomic_path(out / "probing.parquet") as path:
        pq.write_table(probes_table, path)
    localised: dict[str, Any] = {}
    if boxed:
        correlation = {
            basis: rules[comparison.MEDSAE].train_correlation[len(splits) :] for basis, rules in found.items()
        }
        studies = LabelledStudies(vectors.study, labels, groups, vectors.activation, correlation)
        localised, rows = localise(boxed, studies, sae, store, directions, seed)
        with files.atomic_path(out / "localisation.parquet") as path:
            pq.write_table(rows, path)
    figures = comparison.bases(found, labels.concepts)
    summary = {
        "studies": len(vectors.study),
        "patients": len(set(patients)),
        "sections": section.sections,
        "bases": figures,
        "differences": comparison.differences(found, figures),
        "probing": probing,
        "localisation": localised,
    }
    files.write_json(out / "summary.json", summary)
    files.remove(out / "vectors")
    return {"studies": len(vectors.study), "concepts": len(labels.concepts)}


def _labels(section: LabelSection, store: ActivationStore, study: np.ndarray) -> StudyLabels:
    labels = StudyLabels.from_json(store.studies["labels"].take(pa.array(study)).to_pylist())
    missing = set(section.concepts) - set(labels.concepts)
    if missing:
        raise UserError(f"label.concepts names {sorted(missing)[0]!r}, which no study is labelled with")
    chosen = [c for c, name in enumerate(labels.concepts) if not section.concepts or name in section.concepts]
    if not chosen:
        raise UserError(f"no study of {store.directory} has labels and tokens of label.sections: harvest others")
    return StudyLabels(tuple(labels.concepts[c] for c in chosen), labels.value[:, chosen], labels.known[:, chosen])


def neuron_schema(concepts: Sequence[str]) -> pa.Schema:
    """Columns of neurons.parquet; those of measures by rank end with `_by_rank`."""
    by_concept = pa.struct([(concept, pa.float64()) for concept in concepts])
    fields = [
        column("basis", pa.string(), "features, or the control"),
        column("neuron", pa.int32(), "its number in the basis"),
    ]
    for rule in (comparison.MEDSAE, comparison.BY_RANK):
        suffix, how = ("", "") if rule == comparison.MEDSAE else (f"_{rule}", ", by rank")
        for field in dataclasses.fields(NeuronMeasures):
            meaning, is_by_concept = _NEURON_MEASURES[field.name]
            kind = by_concept if is_by_concept else pa.float64()
            fields.append(column(field.name + suffix, kind, meaning + how))
    return pa.schema([*fields, column("active_by_rank", pa.int64(), "studies on which it is active, by rank")])


# Meaning of each of `NeuronMeasures`, and whether there is one for every label.
_NEURON_MEASURES = {
    "monosemanticity": ("MedSAE's score: similarity of the studies that activate it", False),
    "correlation": ("Pearson's r with each label", True),
    "entropy": ("of the correlations' absolute values, in nats", False),
    "threshold": ("it fires above it", False),
    "precision": ("of its firing as a test for each label", True),
    "recall": ("likewise", True),
    "f1": ("likewise", True),
}


def _table(basis: str, rules: dict[str, comparison.BasisMeasures], concepts: tuple[str, ...]) -> pa.Table:
    """One row per neuron, of `neuron_schema`."""
    n_active = rules[comparison.BY_RANK].n_active
    columns: dict[str, Any] = {"basis": [basis] * len(n_active), "neuron": range(len(n_active))}
    for rule, measured in rules.items():
        suffix = "" if rule == comparison.MEDSAE else f"_{rule}"
        for field in dataclasses.fields(NeuronMeasures):
            values = getattr(measured.measures, field.name)  # [F] or [F, C]
            columns[field.name + suffix] = (
                pa.StructArray.from_arrays([_or_null(own) for own in values.T], concepts)
                if values.ndim == 2
                else _or_null(values)
            )
    columns["active_by_rank"] = n_active
    schema = neuron_schema(concepts)
    return pa.Table.from_arrays([pa.array(columns[field.name], field.type) for field in schema], schema=schema)


def _or_null(values: np.ndarray) -> pa.Array:
    """Numbers [F], with null for what is not finite."""
    return pa.array(values, pa.float64(), mask=~np.isfinite(values))
