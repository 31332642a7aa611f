"""Choosing a source from a config, the split by patient, and what a Finding accepts."""

from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from maira_jax.errors import UserError
from maira_jax.run.config import setting
from maira_jax.studies.readers import READERS, StudiesSection, load_stated, load_studies, phantom
from maira_jax.studies.splits import split_of
from maira_jax.studies.study import Finding, Study


def test_phantom_by_section() -> None:
    studies = load_studies(ConfigDict({"source": "phantom", "n": 3, "seed": 4, "start": 2, "size": 56}))
    assert [study.study_id for study in studies] == [f"phantom-4-{i:06d}" for i in (2, 3, 4)]
    assert np.asarray(studies[0].frontal).shape == (56, 56)
    default = load_studies(ConfigDict({"source": "phantom", "n": 1, "seed": 4}))[0]
    assert default.findings == phantom.studies(0, 1, seed=4)[0].findings
    assert np.asarray(default.frontal).shape == (112, 112)


def test_manifest_by_section(tmp_path: Path) -> None:
    path = tmp_path / "studies.jsonl"
    path.write_text("".join(f'{{"study_id": "{i}", "patient_id": "p", "findings": "x"}}\n' for i in range(5)))
    assert len(load_studies(ConfigDict({"source": "manifest", "path": str(path)}))) == 5
    assert len(load_studies(ConfigDict({"source": "manifest", "path": str(path), "n": 2}))) == 2


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"source": "padchest"}, "studies.source is 'padchest': choose from"),
        ({}, "studies.source is None: choose from"),
        ({"source": "phantom"}, "studies.n is None"),
        ({"source": "phantom", "n": 0, "seed": 0}, "studies.n is 0, but must be at least 1"),
        ({"source": "manifest"}, "studies.path is empty"),
        (
            {"source": "manifest", "path": "x", "seed": 1},
            "studies.seed is unknown: the fields of studies are source, n",
        ),
        ({"source": "mimic_cxr", "path": "x", "split": "val"}, "studies.split is 'val': choose from train, validate"),
        ({"source": "mimic_cxr", "path": "/nowhere"}, "mimic-cxr-*-metadata"),
    ],
)
def test_says_which_field_is_wrong(section: dict[str, object], says: str) -> None:
    with pytest.raises(UserError) as error:
        load_studies(ConfigDict(section))
    assert says in str(error.value)


def test_a_reader_is_one_file_and_one_registration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(READERS, "_entries", dict(READERS._entries))

    @READERS.register("toy")
    class ToySection(StudiesSection):
        """Studies of a toy hospital."""

        words: int = setting(3, "Words of each report.", ge=1)

        def load(self) -> list[Study]:
            return [Study(f"{i}", "p", None, findings="word " * self.words) for i in range(self.n or 4)]

    assert len(load_studies({"source": "toy"})) == 4
    assert load_studies({"source": "toy", "n": 1, "words": 2})[0].findings == "word word "
    assert load_stated({"source": "toy"}) == {}
    with pytest.raises(UserError, match="studies.words is 0, but must be at least 1"):
        load_studies({"source": "toy", "words": 0})


def test_what_the_phantoms_sentences_state() -> None:
    section = {"source": "phantom", "n": 2, "seed": 4}
    assert load_stated(section) == {study.study_id: study.stated for study in load_studies(section)}


def test_nih_and_iu_are_never_one_study(shared_data: Path) -> None:
    section = {"source": "nih_iu", "path": str(shared_data)}
    studies = load_studies(ConfigDict(section))
    assert len(studies) == 910 + 3337
    for study in studies:
        assert (study.frontal is None) == (study.findings_origin == "report")
    some = load_studies(ConfigDict({**section, "n": 5}))
    assert [study.study_id.split("-")[0] for study in some] == ["nih", "nih", "iu", "iu", "iu"]
    for source, folder in (("nih_cxr14", "nih-cxr14-mini"), ("iu_xray", "iu-xray-reports")):
        assert len(load_studies(ConfigDict({"source": source, "path": str(shared_data / folder), "n": 4}))) == 4


def test_split_by_patient() -> None:
    patients = [f"p{i}" for i in range(4000)]
    held_out = [patient for patient in patients if split_of(patient, 0.2) == "held_out"]
    assert abs(len(held_out) / len(patients) - 0.2) < 0.03
    assert set(held_out) <= {patient for patient in patients if split_of(patient, 0.3) == "held_out"}
    assert {split_of(patient, 0.0) for patient in patients} == {"train"}
    assert {split_of(patient, 1.0) for patient in patients} == {"held_out"}
    assert held_out != [patient for patient in patients if split_of(patient, 0.2, seed=1) == "held_out"]
    # The same on every machine and for ever: stored activations carry it.
    assert [split_of(f"p{i}", 0.5) for i in range(6)] == ["train", "train", "held_out", "train", "held_out", "held_out"]


@pytest.mark.parametrize(
    "fields",
    [
        {"status": "here"},
        {"status": None},
        {"side": "bilateral"},
        {"size": "mild"},
        {"zone": "apical"},
        {"change": "gone"},
        {"tip": "low"},
        {"change": "resolved"},
    ],
)
def test_a_finding_takes_only_its_words(fields: dict[str, str | None]) -> None:
    with pytest.raises(ValueError, match="is not one of|needs status"):
        Finding(**{"name": "pneumothorax", "status": "present", **fields})  # type: ignore[arg-type]
