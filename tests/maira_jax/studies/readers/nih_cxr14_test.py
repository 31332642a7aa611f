"""The reader of NIH ChestX-ray14, on a small folder and on the real images."""

from pathlib import Path

import pytest
from PIL import Image

from maira_jax.errors import UserError
from maira_jax.studies.readers import load_studies, nih_cxr14
from maira_jax.studies.study import Box

_HEADER = "image_id,patient_id,follow_up,age_years,sex,view,labels,prior_image_id,boxes_xywh_fraction\n"


def _folder(tmp_path: Path, *lines: str, images: tuple[str, ...] = ("1_0", "1_1")) -> Path:
    (tmp_path / "images").mkdir(exist_ok=True)
    for image in images:
        (tmp_path / "images" / f"{image}.jpg").write_bytes(b"not read here")
    (tmp_path / nih_cxr14.FILE).write_text(_HEADER + "".join(line + "\n" for line in lines))
    return tmp_path


def test_reads_images_priors_and_labels(tmp_path: Path) -> None:
    folder = _folder(tmp_path, "1_0,1,0,50,M,PA,No Finding,,", "1_1,1,1,50,M,AP,Edema|Effusion,1_0,")
    first, second = nih_cxr14.read(folder)
    assert first.frontal == folder / "images" / "1_0.jpg" == second.prior_frontal
    assert (first.study_id, first.patient_id, first.prior_frontal) == ("nih-1_0", "nih-1", None)
    assert (first.technique, second.technique) == ("PA view of the chest.", "AP view of the chest.")
    assert first.labels["no finding"] and not first.labels["pleural effusion"]
    assert {name for name, value in second.labels.items() if value} == {"oedema", "pleural effusion"}
    assert first.findings_origin == second.findings_origin == "labels"
    assert first.truth is None  # mined labels are not truth
    assert (
        first.findings == "The lungs are clear without consolidation or edema. No pleural effusion or pneumothorax."
        " Heart size is normal."
    )
    assert (
        second.findings == "There is pulmonary edema. No consolidation. There is a pleural effusion. No pneumothorax."
        " Heart size is normal."
    )
    assert len(nih_cxr14.read(folder, n=1)) == 1


def test_reads_boxes_by_concept(tmp_path: Path) -> None:
    boxes = '"[[""Infiltrate"", 0.1, 0.2, 0.3, 0.4], [""Effusion"", 0.5, 0.5, 0.5, 0.5]]"'
    (study,) = nih_cxr14.read(_folder(tmp_path, f"1_0,1,0,50,M,PA,Effusion,,{boxes}"))
    assert study.boxes == (Box("infiltration", 0.1, 0.2, 0.3, 0.4), Box("pleural effusion", 0.5, 0.5, 0.5, 0.5))


def test_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        nih_cxr14.read(tmp_path)
    with pytest.raises(UserError, match="has none of studies.csv, Data_Entry_2017_v2020.csv, Data_Entry_2017.csv"):
        load_studies({"source": "nih_cxr14", "path": str(tmp_path)})
    with pytest.raises(UserError, match="split is 'test', but .*studies.csv has no splits"):
        load_studies({"source": "nih_cxr14", "path": str(_folder(tmp_path)), "split": "test"})
    twice = str(_folder(tmp_path, "1_0,1,0,50,M,PA,Edema,,", "1_0,1,0,50,M,PA,Mass,,"))
    with pytest.raises(UserError, match="lists the study nih-1_0 twice: remove one of its rows"):
        load_studies({"source": "nih_cxr14", "path": twice})
    with pytest.raises(UserError, match="lists no studies"):
        nih_cxr14.read(_folder(tmp_path))
    with pytest.raises(UserError, match="unknown label 'Cold'"):
        nih_cxr14.read(_folder(tmp_path, "1_0,1,0,50,M,PA,Edema|Cold,,"))
    with pytest.raises(UserError, match=r"1_0 has 'No Finding' and other labels \(No Finding\|Edema\)"):
        nih_cxr14.read(_folder(tmp_path, "1_0,1,0,50,M,PA,No Finding|Edema,,"))
    with pytest.raises(UserError, match="1_0 has no patient_id: restore the table"):
        nih_cxr14.read(_folder(tmp_path, "1_0,,0,50,M,PA,Edema,,"))
    with pytest.raises(UserError, match=r"9_9\.jpg does not exist"):
        nih_cxr14.read(_folder(tmp_path, "9_9,1,0,50,M,PA,Edema,,"))
    with pytest.raises(UserError, match=r"8_8\.jpg does not exist"):
        nih_cxr14.read(_folder(tmp_path, "1_0,1,0,50,M,PA,Edema,8_8,"))
    for boxes, says in (
        ("0.1", "not a list"),
        ('"[[""Mass"", 0.9, 0, 0.9, 1]]"', "boxes of 1_0 cannot be read.*not an area"),
        ('"[[""Cold"", 0, 0, 1, 1]]"', "unknown label 'Cold'"),
    ):
        with pytest.raises(UserError, match=says):
            nih_cxr14.read(_folder(tmp_path, f"1_0,1,0,50,M,PA,Edema,,{boxes}"))


def test_reads_the_real_images(shared_data: Path) -> None:
    studies = nih_cxr14.read(shared_data / "nih-cxr14-mini")
    assert len(studies) == 910
    assert len({study.patient_id for study in studies}) == 617
    assert sum(study.prior_frontal is not None for study in studies) == 293
    assert sum(study.labels["pneumonia"] for study in studies) == 410
    assert sum(bool(study.boxes) for study in studies) == 33
    assert {box.name for study in studies for box in study.boxes if not study.labels[box.name]} == set()
    assert isinstance(studies[0].frontal, Path)
    with Image.open(studies[0].frontal) as image:
        assert min(image.size) == 518 and image.mode == "L"
