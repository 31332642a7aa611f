"""The label stage: MedSAE's measures of features beside raw dimensions, on all labelled studies of a store.

A study is one vector, as an image is in MedSAE: its embedding is the mean activation of its tokens in
`label.sections`, and a neuron's activation is the largest over those tokens. With one token a study, such as an image
embedding, both are MedSAE's definitions; for more they are this project's choice. Neurons are chosen and measured on
the same studies, as there; `interp/concepts.parquet` has features chosen on some studies and measured on others.
"""

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from interp.exemplars.contexts import SECTION_NAMES
from interp.features.concepts import Labels
from interp.medsae import monosemanticity
from maira_jax.errors import UserError
from maira_jax.inputs.tokens import Kind
from maira_jax.run import files
from maira_jax.run.progress import progress
from maira_jax.run.stage import Stage
from sae.activations.store import ActivationStore
from sae.autoencoder import Params, Sae, encode
from sae.saved import load_sae

FEATURES, DIMENSIONS = "features", "raw dimensions"
_READ = 1 << 16  # rows of the store that are looked through at a time


@dataclasses.dataclass(frozen=True)
class LabelConfig:
    """The `label` section; what the fields mean stands in configs/phantom.py."""

    sections: tuple[str, ...]
    concepts: tuple[str, ...]
    block_tokens: int

    @classmethod
    def from_config(cls, config: ml_collections.ConfigDict) -> "LabelConfig":
        """Reads and checks the section.

        Raises:
          UserError: a field is missing, unknown or out of range.
        """
        section = config.label.to_dict()
        try:
            section |= {name: tuple(section[name]) for name in ("sections", "concepts")}
            cfg = cls(**section)
        except (KeyError, TypeError) as error:
            raise UserError(f"the config's label section is wrong ({error}): see configs/phantom.py") from error
        for name in cfg.sections:
            if name not in SECTION_NAMES.values():
                known = ", ".join(sorted(set(SECTION_NAMES.values())))
                raise UserError(f"label.sections names {name!r}: choose from {known}")
        if not cfg.sections or cfg.block_tokens < 1:
            raise UserError("label.sections must name a section and label.block_tokens be at least 1: change them")
        return cfg


@dataclasses.dataclass(frozen=True)
class StudyVectors:
    """Of n studies.

    Attributes:
      study: int64 [n], rows of the store's study table; those with a token of the sections.
      embedding: float32 [n, d_model], mean activation of those tokens.
      dimension: float32 [n, d_model], largest.
      feature: float32 [n, F], largest.
    """

    study: np.ndarray
    embedding: np.ndarray
    dimension: np.ndarray
    feature: np.ndarray


def run(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, Any]:
    """Measures every feature of `workdir/sae` and every dimension of its activations.

    Returns:
      What the manifest counts.

    Raises:
      UserError: the config is invalid, an input stage is not finished, or no study has labels or tokens to measure on.
    """
    cfg = LabelConfig.from_config(config)
    with Stage(Path(workdir), "label", {"label": config.label.to_dict()}, inputs=("activations", "sae")) as stage:
        if not stage.finished:
            stage.finish(_run(cfg, Path(workdir), stage.dir))
        return stage.manifest["counts"]


def _run(cfg: LabelConfig, workdir: Path, out: Path) -> dict[str, Any]:
    sae, store = load_sae(workdir / "sae"), ActivationStore.open(workdir / "activations")
    if sae.d_model != store.d_model:
        raise UserError(
            f"{workdir / 'sae'} takes {sae.d_model} dimensions and {workdir / 'activations'} has {store.d_model}: "
            "use the autoencoder that was trained on these activations"
        )
    vectors = study_vectors(sae, store, cfg.sections, cfg.block_tokens, out / "feature.npy")
    labels = _labels(cfg, store, vectors.study)
    tables, found = [], {}
    for basis, activation in ((FEATURES, vectors.feature), (DIMENSIONS, vectors.dimension)):
        measured = monosemanticity.measure(activation, vectors.embedding, labels)
        found[basis] = monosemanticity.summary(measured, labels.concepts)
        tables.append(_table(basis, measured, labels.concepts))
    with files.atomic_path(out / "neurons.parquet") as path:
        pq.write_table(pa.concat_tables(tables), path)
    files.write_json(out / "summary.json", {"studies": len(vectors.study), "sections": cfg.sections, "bases": found})
    (out / "feature.npy").unlink()
    return {"studies": len(vectors.study), "concepts": len(labels.concepts)} | {
        f"{name.replace(' ', '_')}_{measure}": part[measure]["mean"] or 0.0
        for name, part in found.items()
        for measure in ("monosemanticity", "entropy_kept")
    }


def _labels(cfg: LabelConfig, store: ActivationStore, study: np.ndarray) -> Labels:
    labels = Labels.from_json(store.studies["labels"].take(pa.array(study)).to_pylist())
    missing = set(cfg.concepts) - set(labels.concepts)
    if missing:
        raise UserError(f"label.concepts names {sorted(missing)[0]!r}, which no study is labelled with")
    chosen = [c for c, name in enumerate(labels.concepts) if not cfg.concepts or name in cfg.concepts]
    if not chosen:
        raise UserError(f"no study of {store.directory} has labels and tokens of label.sections: harvest others")
    return Labels(tuple(labels.concepts[c] for c in chosen), labels.value[:, chosen], labels.known[:, chosen])


def study_vectors(sae: Sae, store: ActivationStore, sections: tuple[str, ...], block: int, path: Path) -> StudyVectors:
    """One vector a study, from one pass over the store.

    Args:
      sae: of raw activations.
      store: the activations.
      sections: tokens of these are counted; those of users' own arrays, which have no section, always are.
      block: tokens encoded at a time.
      path: a file that `feature` is kept in, because it grows with studies x features.
    """
    kinds = [int(kind) for kind in Kind if SECTION_NAMES[kind] in sections]
    tokens = store.tokens
    kind = tokens["kind"].to_numpy()
    rows = np.flatnonzero(np.isin(kind, kinds) | (kind < 0))
    if not len(rows):
        raise UserError(f"{store.directory} has no tokens of the sections {', '.join(sections)}: name others")
    study, number = np.unique(tokens["study"].to_numpy()[rows], return_inverse=True)
    n, d = len(study), sae.d_model
    feature = files.array_on_disk(path, np.float32, (n, sae.n_features))
    dimension, total = np.full((n, d), -np.inf, np.float32), np.zeros((n, d))
    threshold = jnp.asarray(sae.threshold, jnp.float32)
    for begin, x in _blocks(store, rows, block):
        own = number[begin : begin + block]
        first = own[0]
        slot = np.full(block, block)  # padding: out of range, and dropped
        slot[: len(own)] = own - first
        part = slice(first, own[-1] + 1)
        largest, raw = _largest(sae.params, threshold, x, slot, sae.top_k)
        count = part.stop - part.start
        feature[part] = np.maximum(feature[part], np.asarray(largest)[:count])
        dimension[part] = np.maximum(dimension[part], np.asarray(raw)[:count])
        np.add.at(total, own, x[: len(own)])
    return StudyVectors(study, (total / np.bincount(number)[:, None]).astype(np.float32), dimension, feature)


def _blocks(store: ActivationStore, rows: np.ndarray, block: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (place in `rows`, activations float32 [block, d_model] padded with zeros)."""
    for begin in progress(range(0, len(rows), block), unit="block", desc="label"):
        wanted = rows[begin : begin + block]
        x = np.zeros((block, store.d_model), np.float32)
        for low in range(int(wanted[0]), int(wanted[-1]) + 1, _READ):
            here = np.flatnonzero((wanted >= low) & (wanted < low + _READ))
            if len(here):
                start, stop = int(wanted[here[0]]), int(wanted[here[-1]]) + 1
                x[here] = store.read(start, stop)[wanted[here] - start]
        yield begin, x


@functools.partial(jax.jit, static_argnames="top_k")
def _largest(
    params: Params, threshold: jax.Array, x: jax.Array, slot: jax.Array, top_k: int | None
) -> tuple[jax.Array, jax.Array]:
    """x: [block, d_model], slot: [block] -> each slot's largest features [block, F] and dimensions [block, d_model]."""
    largest = functools.partial(jax.ops.segment_max, segment_ids=slot, num_segments=len(x), indices_are_sorted=True)
    return largest(encode(params, x, threshold, top_k)), largest(x)


def _table(basis: str, found: monosemanticity.Measures, concepts: tuple[str, ...]) -> pa.Table:
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
