"""The CheXpert reader, on a few made rows in the format of its tables."""

from pathlib import Path

import pytest

from maira_jax.errors import UserError
from maira_jax.studies.readers import chexpert, load_studies

_HEADER = (
    "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,"
    "Edema,Consolidation,Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices\n"
)
_TRAIN = (
    "train/patient00001/study1/view1_frontal.jpg,Female,68,Frontal,AP,1.0,,,,,,,,,0.0,,,,1.0",
    "train/patient00002/study2/view1_frontal.jpg,Female,87,Frontal,AP,,,-1.0,1.0,,-1.0,-1.0,,-1.0,,-1.0,,1.0,",
    "train/patient00002/study2/view2_lateral.jpg,Female,87,Lateral,,,,-1.0,1.0,,-1.0,-1.0,,-1.0,,-1.0,,1.0,",
    "train/patient00002/study2/view3_frontal.jpg,Female,87,Frontal,PA,,,-1.0,1.0,,-1.0,-1.0,,-1.0,,-1.0,,1.0,",
    "train/patient00002/study1/view1_lateral.jpg,Female,83,Lateral,,,,,1.0,,,-1.0,,,,,,1.0,",
    "train/patient00003/study1/view1_frontal.jpg,Male,41,Frontal,AP,,,,,,1.0,,,,0.0,,,,",
)
_VALID = ("valid/patient64541/study1/view1_frontal.jpg,Male,73,Frontal,AP,0.0,1.0,1.0,1.0" + ",0.0" * 10,)


def _release(root: Path, name: str = "CheXpert-v1.0-small", absent: str = "patient00003") -> Path:
    for split, lines in (("train", _TRAIN), ("valid", _VALID)):
        (root / f"{split}.csv").write_text(_HEADER + "".join(f"{name}/{line}\n" for line in lines))
        for line in lines:
            path = root / line.split(",")[0]
            path.parent.mkdir(parents=True, exist_ok=True)
            if absent not in line:
                path.write_bytes(b"not read here")
    return root


@pytest.mark.parametrize("name", ["CheXpert-v1.0-small", "CheXpert-v1.0"])
def test_reads_studies_with_a_frontal_image(tmp_path: Path, name: str) -> None:
    root = _release(tmp_path, name)
    first, second, third = chexpert.read(root)
    assert (first.study_id, first.patient_id) == ("chexpert-patient00001-study1", "chexpert-patient00001")
    assert first.frontal == root / "train/patient00001/study1/view1_frontal.jpg"
    assert (first.lateral, first.prior_frontal, first.findings) == (None, None, None)
    assert first.technique == "AP view of the chest."
    folder = root / "train/patient00002/study2"
    assert (second.frontal, second.lateral) == (folder / "view3_frontal.jpg", folder / "view2_lateral.jpg")
    assert third.study_id == "chexpert-patient64541-study1"
    assert len(third.labels) == 14 and sum(third.labels.values()) == 3


def test_blank_is_unknown_and_uncertain_goes_by_the_policy(tmp_path: Path) -> None:
    section = {"source": "chexpert", "path": str(_release(tmp_path)), "split": "train"}
    first, second = load_studies(section)
    assert first.labels == {"no finding": True, "pneumothorax": False, "support devices": True}
    assert second.labels == {"lung opacity": True, "fracture": True}
    uncertain = ("cardiomegaly", "oedema", "consolidation", "atelectasis", "pleural effusion")
    for policy, value in (("present", True), ("absent", False)):
        found = load_studies(section | {"uncertain": policy})
        assert found[0].labels == first.labels
        assert found[1].labels == {**second.labels, **dict.fromkeys(uncertain, value)}


def test_split_and_count(tmp_path: Path) -> None:
    root = _release(tmp_path)
    assert [study.patient_id for study in chexpert.read(root, split="valid")] == ["chexpert-patient64541"]
    assert len(chexpert.read(root, n=1)) == 1
    (root / "valid.csv").unlink()
    assert len(chexpert.read(root, split="train")) == 2
    with pytest.raises(UserError, match=r"has train\.csv alone: .* set studies\.split=train"):
        chexpert.read(root)


def test_says_what_is_wrong(tmp_path: Path) -> None:
    root = _release(tmp_path, absent="patient")
    with pytest.raises(UserError, match="holds no frontal image"):
        chexpert.read(root)
    with pytest.raises(UserError, match="uncertain is 'maybe': choose from 'unknown', 'present' or 'absent'|uncertain"):
        load_studies({"source": "chexpert", "path": str(root), "uncertain": "maybe"})
    _release(root)
    table = root / "train.csv"
    for old, new, says in (
        (",1.0,,,,,,,,,0.0", ",2.0,,,,,,,,,0.0", "no finding is 2.0, not 1, 0 or -1"),
        (",1.0,,,,,,,,,0.0", ",yes,,,,,,,,,0.0", "no finding is yes, not 1, 0 or -1"),
        ("patient00003/", "patient00001/", "train/patient00001/study1/view1_frontal.jpg is listed twice: restore"),
        ("patient00001/", "someone/", "names no patient and study"),
        ("Support Devices", "Devices", "no column 'Support Devices'"),
    ):
        _release(root)
        table.write_text(table.read_text().replace(old, new))
        with pytest.raises(UserError, match=says):
            chexpert.read(root)
