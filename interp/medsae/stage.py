"""The label stage: MedSAE's measures of features and of raw dimensions, on all labelled studies of a store.

The measures compare neurons with the studies' labels, which is why the command is `launch.label`. A *neuron*, as MedSAE
says, is anything with one activation per token: a feature of the autoencoder, or a dimension of the activations that
the autoencoder reads. A *basis* is all neurons of one of the two kinds, "features" or "raw dimensions"; what the
autoencoder gains is the difference between its basis and the other.

A study is one vector, as an image is in MedSAE: its embedding is the mean activation of its tokens in
`label.sections`, and a neuron's activation is the largest over those tokens. With one token per study, such as an image
embedding, both are MedSAE's definitions; with more they are this project's choice. Neurons are chosen and measured on
the same studies, as in MedSAE; `interp/concepts.parquet` has features chosen on some studies and measured on others.
"""

import dataclasses
import functools
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from interp.exemplars.contexts import SECTION_NAMES, SECTIONS
from interp.exemplars.index_pass.blocks import read_ahead
from interp.exemplars.index_pass.shared_sae import SharedSae, devices_of, features
from interp.exemplars.study_peaks import StudyPeaks
from interp.features.concepts import StudyLabels
from interp.medsae import monosemanticity
from maira_jax.errors import UserError
from maira_jax.inputs.tokens import Kind
from maira_jax.run import files, processes, storage
from maira_jax.run.config import RunSection, Section, setting
from maira_jax.run.progress import progress
from maira_jax.run.stage import Stage
from sae.activations.store import ActivationStore
from sae.autoencoder import Params, Sae
from sae.saved import load_sae

FEATURES, DIMENSIONS = "features", "raw dimensions"
# Tokens encoded at a time: enough to fill the device, and few enough that [tokens, features] stays small.
_BLOCK_TOKENS = 4096
_READ_ROWS = 1 << 16  # rows of the store from which the wanted ones are read together
_BEHIND = 2  # blocks whose results are not waited for


class LabelSection(Section, name="label"):
    """How features, and raw dimensions of the activations, are measured against the studies' labels."""

    sections: tuple[str, ...] = setting(
        ("image",), "A study is represented by the activations of these sections' tokens.", choices=lambda: SECTIONS
    )
    concepts: tuple[str, ...] = setting((), "Labels that are measured; empty: all.")

    def check(self) -> None:
        if not self.sections:
            raise UserError("label.sections is empty, but must name at least one section: change it")


@dataclasses.dataclass(frozen=True)
class StudyVectors:
    """What represents each of n studies.

    Attributes:
      study: rows of the store's study table: the studies with a token of the sections. int64 [n]
      embedding: the mean activation of those tokens. float32 [n, d_model]
      dimension: each raw dimension's largest activation on those tokens. float32 [n, d_model]
      feature: each feature's largest activation on those tokens. float32 [n, F]
    """

    study: np.ndarray
    embedding: np.ndarray
    dimension: np.ndarray
    feature: StudyPeaks


def run(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, Any]:
    """Measures every feature of `workdir/sae` and every dimension of its activations.

    All processes of the run pass over the store, each for its share of the studies; the first one does the rest.

    Returns:
      The counts of the manifest.

    Raises:
      UserError: the section is invalid, an input stage is not finished, or no study has labels or tokens to measure on.
    """
    section = LabelSection.of(config)
    mesh, identity = RunSection.of(config).mesh, {"label": section.deciding()}
    with Stage(Path(workdir), "label", identity, inputs=("activations", "sae"), computing={"mesh": mesh}) as stage:
        if not stage.finished:
            stage.finish(_run(section, devices_of(mesh), Path(workdir), stage.dir))
        return stage.manifest["counts"]


def _run(section: LabelSection, devices: Sequence[jax.Device], workdir: Path, out: Path) -> dict[str, Any]:
    sae, store = load_sae(workdir / "sae"), ActivationStore.open(workdir / "activations")
    if sae.d_model != store.d_model:
        raise UserError(
            f"{workdir / 'sae'} takes {sae.d_model} dimensions and {workdir / 'activations'} has {store.d_model}: "
            "use the autoencoder that was trained on these activations"
        )
    vectors = study_vectors(sae, store, section.sections, out / "vectors", devices)
    if vectors is None:
        return {}
    labels = _labels(section, store, vectors.study)
    tables, found = [], {}
    for basis, activation in ((FEATURES, vectors.feature), (DIMENSIONS, vectors.dimension)):
        measured = monosemanticity.measure(activation, vectors.embedding, labels)
        found[basis] = monosemanticity.summary(measured, labels.concepts)
        tables.append(_table(basis, measured, labels.concepts))
    with files.atomic_path(out / "neurons.parquet") as path:
        pq.write_table(pa.concat_tables(tables), path)
    files.write_json(
        out / "summary.json", {"studies": len(vectors.study), "sections": section.sections, "bases": found}
    )
    files.remove(out / "vectors")
    return {"studies": len(vectors.study), "concepts": len(labels.concepts)} | {
        f"{name.replace(' ', '_')}_{measure}": part[measure]["mean"] or 0.0
        for name, part in found.items()
        for measure in ("monosemanticity", "entropy_kept")
    }


def _labels(section: LabelSection, store: ActivationStore, study: np.ndarray) -> StudyLabels:
    labels = StudyLabels.from_json(store.studies["labels"].take(pa.array(study)).to_pylist())
    missing = set(section.concepts) - set(labels.concepts)
    if missing:
        raise UserError(f"label.concepts names {sorted(missing)[0]!r}, which no study is labelled with")
    chosen = [c for c, name in enumerate(labels.concepts) if not section.concepts or name in section.concepts]
    if not chosen:
        raise UserError(f"no study of {store.directory} has labels and tokens of label.sections: harvest others")
    return StudyLabels(tuple(labels.concepts[c] for c in chosen), labels.value[:, chosen], labels.known[:, chosen])


def study_vectors(
    sae: Sae, store: ActivationStore, sections: tuple[str, ...], folder: Path, devices: Sequence[jax.Device]
) -> StudyVectors | None:
    """Represents each study by one vector, in one pass over the store, in which all processes of the run take part.

    Args:
      sae: autoencoder of raw activations.
      store: the activations.
      sections: tokens of these sections are counted; those of users' own arrays, which have no section, always are.
      folder: where each process writes the vectors of its studies.
      devices: they share the features.

    Returns:
      The vectors; None on processes that are not the first.

    Raises:
      UserError: the store has no tokens of the sections.
    """
    kinds = [int(kind) for kind in Kind if SECTION_NAMES[kind] in sections]
    tokens = store.tokens
    kind = tokens["kind"].to_numpy()
    rows = np.flatnonzero(np.isin(kind, kinds) | (kind < 0))
    if not len(rows):
        raise UserError(f"{store.directory} has no tokens of the sections {', '.join(sections)}: name others")
    study, number = np.unique(tokens["study"].to_numpy()[rows], return_inverse=True)
    share = len(rows) * np.arange(processes.count()) // processes.count()  # rows
    cuts = [*number[share].tolist(), len(study)]  # no study is divided
    begin, stop = cuts[processes.index() : processes.index() + 2]
    folder.mkdir(exist_ok=True)
    if begin < stop:
        _write_vectors(folder, sae, store, rows, number, range(begin, stop), devices)
    storage.send(folder)
    processes.barrier()
    if not processes.is_first():
        return None
    storage.fetch(folder)
    parts = sorted(set(cuts[:-1]))
    embedding, dimension = (
        np.concatenate([np.load(_path(folder, name, begin)) for begin in parts]) for name in ("embedding", "dimension")
    )
    feature = StudyPeaks((len(study), sae.n_features), [(_path(folder, "feature", begin), begin) for begin in parts])
    return StudyVectors(study, embedding, dimension, feature)


def _write_vectors(
    folder: Path,
    sae: Sae,
    store: ActivationStore,
    rows: np.ndarray,
    number: np.ndarray,
    own: range,
    devices: Sequence[jax.Device],
) -> None:
    """Writes the three arrays of the studies `own`, of those that the store's rows `rows [n]` belong to, `number [n]`.

    On disk, because the largest activations of features grow with studies x features.
    """
    shape = {"feature": sae.n_features, "dimension": sae.d_model, "embedding": sae.d_model}
    arrays = {
        name: files.array_on_disk(_path(folder, name, own.start), np.float32, (len(own), width))
        for name, width in shape.items()
    }
    arrays["dimension"][:] = -np.inf
    total = np.zeros((len(own), sae.d_model))
    shared = SharedSae.of(sae, devices)

    def look(sent: tuple[_StudyTokens, tuple[jax.Array, jax.Array]]) -> None:
        part, largest = sent
        for name, found in zip(("feature", "dimension"), largest, strict=True):
            kept = arrays[name][part.studies]
            np.maximum(kept, np.asarray(found)[part.places], out=kept)

    waiting: deque[tuple[_StudyTokens, tuple[jax.Array, jax.Array]]] = deque()
    for part in read_ahead(_blocks(store, rows, number, own)):
        total[part.studies] += part.total[part.places]
        n_slots = 1 << (len(part.total) - 1).bit_length()  # few sizes, so that few programs compile
        largest = _largest(shared.params, shared.threshold, part.x, part.slot, sae.top_k, n_slots)
        waiting.append((part, largest))
        if len(waiting) > _BEHIND:
            look(waiting.popleft())
    for sent in waiting:
        look(sent)
    arrays["embedding"][:] = total / np.bincount(number)[own.start : own.stop, None]
    for array in arrays.values():
        array.flush()


def _path(folder: Path, name: str, begin: int) -> Path:
    """Where the arrays of the studies from `begin` on are."""
    return folder / f"{name}-{begin:09d}.npy"


@dataclasses.dataclass(frozen=True)
class _StudyTokens:
    """A block of tokens of consecutive studies, of which the process has some.

    Attributes:
      studies: those that it has, counted from its first one.
      places: their places in the block.
      total: the sum of each study's activations in the block. float64 [studies, d_model]
      x: activations, zeros in padding. float32 [_BLOCK_TOKENS, d_model]
      slot: the place of each token's study among them; out of range in padding. int32 [_BLOCK_TOKENS]
    """

    studies: slice
    places: slice
    total: np.ndarray
    x: np.ndarray
    slot: np.ndarray


def _blocks(store: ActivationStore, rows: np.ndarray, number: np.ndarray, chosen: range) -> Iterator[_StudyTokens]:
    """Those blocks of the store's rows `rows [n]` that have tokens of the studies `chosen`.

    The rows belong to the studies `number [n]`, never falling and without gaps. A block is the same for every share of
    the studies, also with tokens of others, and so is what a study's vector is computed from.
    """
    low, high = np.searchsorted(number, (chosen.start, chosen.stop)).tolist()
    for begin in progress(range(low - low % _BLOCK_TOKENS, high, _BLOCK_TOKENS), unit="block", desc="label"):
        wanted, own = rows[begin : begin + _BLOCK_TOKENS], number[begin : begin + _BLOCK_TOKENS]
        x = np.zeros((_BLOCK_TOKENS, store.d_model), np.float32)
        for low in range(int(wanted[0]), int(wanted[-1]) + 1, _READ_ROWS):
            here = np.flatnonzero((wanted >= low) & (wanted < low + _READ_ROWS))
            if len(here):
                start, stop = int(wanted[here[0]]), int(wanted[here[-1]]) + 1
                x[here] = store.read(start, stop)[wanted[here] - start]
        slot = np.full(_BLOCK_TOKENS, _BLOCK_TOKENS, np.int32)
        slot[: len(own)] = own - own[0]
        first = np.flatnonzero(np.diff(own, prepend=-1))  # each study's first token
        total = np.add.reduceat(x[: len(own)], first, axis=0, dtype=np.float64)
        inside = max(own[0], chosen.start), min(own[-1] + 1, chosen.stop)
        studies, places = (slice(*(end - origin for end in inside)) for origin in (chosen.start, own[0]))
        yield _StudyTokens(studies, places, total, x, slot)


@functools.partial(jax.jit, static_argnames=("top_k", "n_slots"))
def _largest(
    params: Params, threshold: jax.Array, x: jax.Array, slot: jax.Array, top_k: int | None, n_slots: int
) -> tuple[jax.Array, jax.Array]:
    """The largest activations of each study of a block of T tokens.

    Args:
      params, threshold, top_k: the autoencoder, as `interp.exemplars.index_pass.shared_sae.features` takes it.
      x: activations. [T, d_model]
      slot: the place of each token's study in the block, never falling; `n_slots` or more in padding. int32 [T]
      n_slots: number of places.

    Returns:
      Each study's largest feature activations [n_slots, F], and its largest raw activations [n_slots, d_model].
    """
    largest = functools.partial(jax.ops.segment_max, segment_ids=slot, num_segments=n_slots, indices_are_sorted=True)
    return largest(features(params, x, threshold, top_k)), largest(x)


def _table(basis: str, found: monosemanticity.NeuronMeasures, concepts: tuple[str, ...]) -> pa.Table:
    def by_concept(values: np.ndarray) -> pa.Array:
        rows = [{c: _number(v) for c, v in zip(concepts, row, strict=True)} for row in values]
        return pa.array(rows, pa.struct([(c, pa.float64()) for c in concepts]))

    n = len(found.entropy)
    columns = {"basis": pa.array([basis] * n), "neuron": pa.array(np.arange(n, dtype=np.int32))}
    for name in ("monosemanticity", "entropy", "threshold"):
        columns[name] = pa.array([_number(value) for value in getattr(found, name)], pa.float64())
    for name in ("correlation", "precision", "recall", "f1"):
        columns[name] = by_concept(getattr(found, name))
    return pa.table(columns)


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
