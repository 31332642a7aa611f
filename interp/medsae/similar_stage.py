"""The stage behind `launch.similar`: the codes of all studies, once, and the studies nearest to one of them."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_collections
import pyarrow as pa
import pyarrow.parquet as pq

from interp.exemplars.index_pass.shared_sae import devices_of
from interp.medsae.similar import StudyCodes, nearest, shared_features
from interp.medsae.stage import LabelSection
from interp.medsae.vectors import FEATURES, study_vectors
from maira_jax.errors import UserError
from maira_jax.run import files, processes, storage
from maira_jax.run.config import RunSection, Section, setting
from maira_jax.run.stages.stage import MANIFEST, Stage
from sae.activations.store import HELD_OUT, TRAIN, ActivationStore
from sae.saved import load_sae

_SHARED = 5  # features that are shown of two studies
_INPUTS = ("activations", "sae")


class SimilarSection(Section, name="similar"):
    """Which study others are compared with, by their codes of features, and which of them are shown."""

    study_id: str = setting("", "Id of the study.")
    n: int = setting(10, "At most this many studies are shown.", ge=1)
    split: str | None = setting(
        None, "Only studies of this split are shown; None: of both.", choices=lambda: (TRAIN, HELD_OUT)
    )
    same_patient: bool = setting(False, "Whether other studies of the study's own patient are shown, too.")


def run(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, Any]:
    """Prints the studies nearest to `similar.study_id`, and the features that each shares with it.

    The codes are written to `workdir/similar` when they are first needed, by all processes of the run.

    Returns:
      The counts of the manifest.

    Raises:
      UserError: the section is invalid, an input stage is not finished, or the study is not in the store, has no tokens
        of `label.sections` or no active feature.
    """
    section, sections = SimilarSection.of(config), LabelSection.of(config).sections
    if not section.study_id:
        raise UserError("similar.study_id is empty: name a study with --study_id=ID")
    workdir, mesh = Path(workdir), RunSection.of(config).mesh
    with Stage(workdir, "similar", {"sections": sections}, _INPUTS, {"mesh": mesh}, config) as stage:
        store = ActivationStore.open(workdir / "activations")
        if section.study_id not in store.studies["study_id"].to_pylist():
            raise UserError(
                f"study {section.study_id} is not in {store.directory}: name one that its studies.parquet lists"
            )
        if not stage.finished:
            stage.finish(_write_codes(store, workdir, sections, stage.dir, mesh))
        if processes.is_first():
            names = _names(workdir, stage.manifest["inputs"])
            for line in _lines(section, StudyCodes.read(stage.dir), store.studies, names):
                print(line)
        return stage.manifest["counts"]


def _write_codes(
    store: ActivationStore, workdir: Path, sections: tuple[str, ...], out: Path, mesh: tuple[int, ...]
) -> dict[str, Any]:
    vectors = study_vectors(load_sae(workdir / "sae"), store, sections, out / "vectors", devices_of(mesh), {})
    if vectors is None:
        return {}
    codes = StudyCodes.of(store.studies.take(pa.array(vectors.study)), vectors.activation[FEATURES])
    codes.write(out)
    files.remove(out / "vectors")
    return {"studies": len(codes.norm), "active_features": codes.code.nnz / len(codes.norm)}


def _names(workdir: Path, inputs: Mapping[str, str]) -> dict[int, str]:
    """The name of each explained feature; empty where this autoencoder has not been interpreted."""
    folder = workdir / "interp"
    storage.fetch(folder, (MANIFEST, "features.parquet"))
    manifest = files.read_object(folder / MANIFEST) if (folder / MANIFEST).is_file() else {}
    if {name: manifest.get("inputs", {}).get(name) for name in inputs} != dict(inputs):
        return {}
    table = pq.read_table(folder / "features.parquet", columns=["feature", "name"])
    return {feature: name for feature, name in zip(*table.to_pydict().values(), strict=True) if name}


def _lines(section: SimilarSection, codes: StudyCodes, studies: pa.Table, names: Mapping[int, str]) -> Iterator[str]:
    """The printed table: the study, a head, and a line for each near one and for each feature that both share."""
    labels = dict(zip(studies["study_id"].to_pylist(), studies["labels"].to_pylist(), strict=True))

    def described(row: int) -> str:
        present = [name for name, value in json.loads(labels[codes.study_id[row]]).items() if value]
        return f"{codes.study_id[row]} ({codes.split[row]}): {', '.join(present) or 'no label'}"

    own = codes.row(section.study_id)
    yield described(own)
    whose = "" if section.same_patient else " of other patients"
    yield f"Studies{whose} by the cosine of their codes with its own, and what each shared feature adds to that:"
    rows, similarity = nearest(codes, own, section.n, split=section.split, same_patient=section.same_patient)
    for place, (row, cosine) in enumerate(zip(rows.tolist(), similarity.tolist(), strict=True), start=1):
        features, share = (found[:_SHARED].tolist() for found in shared_features(codes, own, row))
        yield f"{place:4d}  {cosine:.3f}  {described(row)}"
        for feature, part in zip(features, share, strict=True):
            yield f"      {part:.3f}    feature {feature} {names.get(feature, '')}".rstrip()
