"""The reader of NIH ChestX-ray14's own files, on a few made rows in their formats."""

from pathlib import Path

import pytest

from maira_jax.errors import UserError
from maira_jax.studies.readers import load_studies, nih_release
from maira_jax.studies.study import Box

_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient {},View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]{}\n"
)
# The table of 2017 says "Gender", and its lines end in a comma; that of 2020 says "Sex".
_NEWER, _OLDER = (_HEADER.format("Sex", ""), ""), (_HEADER.format("Gender", ","), ",")
_ROWS = (
    "00000007_002.png,Cardiomegaly|Effusion,2,7,58,M,PA,2682,2749,0.143,0.143",
    "00000007_000.png,No Finding,0,7,57,M,PA,2682,2749,0.143,0.143",
    "00000007_001.png,Mass,1,7,57,M,AP,2500,2048,0.168,0.168",
    "00000009_000.png,Infiltration|Pleural_Thickening,0,9,80,F,AP,2500,2048,0.171,0.171",
    "00000011_000.png,Hernia,0,11,33,F,PA,2500,2048,0.171,0.171",
)
_BOXES = (
    "Image Index,Finding Label,Bbox [x,y,w,h],,,\n"
    "00000009_000.png,Infiltrate,256,512,128.0,64.0,,,\n"
    "00000007_002.png,Cardiomegaly,204.8,102.4,819.2,512,,,\n"
    "00000007_002.png,Effusion,0,0,512,512,,,\n"
)


def _release(root: Path, header: str = _NEWER[0], end: str = "", name: str = nih_release.TABLES[0]) -> Path:
    (root / name).write_text(header + "".join(f"{row}{end}\n" for row in _ROWS))
    (root / nih_release.BOXES).write_text(_BOXES)
    (root / "train_val_list.txt").write_text("00000007_000.png\n00000007_001.png\n00000007_002.png\n")
    (root / "test_list.txt").write_text("00000009_000.png\r\n00000011_000.png")
    for folder, images in {"images_001/images": (_ROWS[:2]), "images_002/images": _ROWS[3:4]}.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for row in images:
            (root / folder / row.split(",")[0]).write_bytes(b"not read here")
    return root


@pytest.mark.parametrize(
    ("header", "end", "name"), [(*_NEWER, nih_release.TABLES[0]), (*_OLDER, nih_release.TABLES[1])]
)
def test_reads_what_is_on_disk(tmp_path: Path, header: str, end: str, name: str) -> None:
    root = _release(tmp_path, header, end, name)
    second, first, other = nih_release.read(root)
    assert (second.study_id, second.patient_id) == ("nih-00000007_002", "nih-7")
    assert second.frontal == root / "images_001/images/00000007_002.png"
    assert second.prior_frontal == first.frontal  # 001 lies between them, and is not on disk
    assert (second.technique, second.comparison) == ("PA view of the chest.", "Prior chest radiograph.")
    assert (first.prior_frontal, first.comparison) == (None, None)
    assert {name for name, value in second.labels.items() if value} == {"cardiomegaly", "pleural effusion"}
    assert second.findings is not None and "The heart is enlarged." in second.findings
    assert second.findings_origin == "labels" and second.truth is None
    assert [box.name for box in second.boxes] == ["cardiomegaly", "pleural effusion"]
    assert other.boxes == (Box("infiltration", 0.25, 0.5, 0.125, 0.0625),)
    assert first.boxes == ()


def test_splits_are_the_official_lists(tmp_path: Path) -> None:
    section = {"source": "nih_cxr14", "path": str(_release(tmp_path))}
    assert [study.study_id for study in load_studies(section | {"split": "test"})] == ["nih-00000009_000"]
    assert [study.patient_id for study in load_studies(section | {"split": "train_val"})] == ["nih-7"] * 2
    assert len(load_studies(section | {"n": 1})) == 1
    with pytest.raises(UserError, match="split is 'valid': choose from train_val, test"):
        load_studies(section | {"split": "valid"})


def test_images_may_lie_together_and_boxes_be_absent(tmp_path: Path) -> None:
    root = _release(tmp_path)
    (root / "images").mkdir()
    (root / "images" / "00000011_000.png").write_bytes(b"not read here")
    (root / nih_release.BOXES).unlink()
    studies = nih_release.read(root)
    assert studies[-1].frontal == root / "images" / "00000011_000.png"
    assert not any(study.boxes for study in studies)


def test_says_what_is_wrong(tmp_path: Path) -> None:
    root = _release(tmp_path)
    boxes, table = root / nih_release.BOXES, root / nih_release.TABLES[0]
    for line, says in (
        ("a.png,Mass,900,0,200,10,,,", "a box of a.png is none.*not an area"),
        ("a.png,Mass,x,0,200,10,,,", "a box of a.png is none.*'x'"),
        ("a.png,Cold,0,0,200,10,,,", "unknown label 'Cold'"),
        ("a.png,Mass,0", "fewer fields than columns"),
    ):
        boxes.write_text(_BOXES + line + "\n")
        with pytest.raises(UserError, match=says):
            nih_release.read(root)
    boxes.unlink()
    (root / "test_list.txt").unlink()
    with pytest.raises(UserError, match=r"test_list\.txt does not exist"):
        nih_release.read(root, "test")
    for old, new, says in ((",2,7,", ",?,7,", "no number"), ("Effusion", "Cold", "unknown label 'Cold'")):
        _release(tmp_path)
        table.write_text(table.read_text().replace(old, new))
        with pytest.raises(UserError, match=says):
            nih_release.read(root)
    for image in root.glob("images_*/images/*"):
        image.unlink()
    with pytest.raises(UserError, match="holds no image of Data_Entry_2017_v2020.csv"):
        nih_release.read(root)
