"""Readers by name: their fields, their studies, and one more of them in one file."""

from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from maira_jax.errors import UserError
from maira_jax.run.config import setting
from maira_jax.studies.readers import READERS, StudiesSection, load_stated, load_studies, phantom
from maira_jax.studies.study import Study


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
