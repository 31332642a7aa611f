"""The MIMIC-CXR reader on a small tree in the official layout."""

import csv
import gzip
from pathlib import Path

import pytest

from maira_jax.errors import UserError
from maira_jax.studies.readers import chexpert, load_studies, mimic_cxr

_REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___F with new onset ascites  // eval for infection

 TECHNIQUE:   Chest PA and lateral

 COMPARISON:  None.

 FINDINGS:

 There is no focal consolidation, pleural effusion or
 pneumothorax: the heart is normal.

 IMPRESSION:

 No acute cardiopulmonary process.
"""

# dicom, subject, study, view, date, time. Study 3 precedes study 2 in time; subject 20000002's has no frontal.
_IMAGES = [
    ("d1", "10000001", "50000001", "PA", "21800506", "213014.531"),
    ("d0", "10000001", "50000001", "AP", "21800506", "213014.531"),
    ("d2", "10000001", "50000001", "LATERAL", "21800506", "213014.531"),
    ("d3", "10000001", "50000002", "AP", "21800626", "93000.0"),
    ("d4", "10000001", "50000003", "AP", "21800626", "81500.0"),
    ("d5", "20000002", "50000004", "LL", "21810101", "120000.0"),
    ("d6", "20000002", "50000005", "AP", "21810102", "120000.0"),
    ("d7", "20000002", "50000006", "PA", "21810103", "120000.0"),  # not downloaded
]
_SPLIT = {"10000001": "train", "20000002": "test"}


def _gzip_csv(path: Path, header: list[str], table: list[list[str]]) -> None:
    with gzip.open(path, "wt", newline="") as file:
        csv.writer(file).writerows([header, *table])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for dicom, subject, study, *_ in _IMAGES:
        folder = tmp_path / "files" / f"p{subject[:2]}" / f"p{subject}"
        (folder / f"s{study}").mkdir(parents=True, exist_ok=True)
        if dicom != "d7":
            (folder / f"s{study}" / f"{dicom}.jpg").write_bytes(b"not read here")
        (folder / f"s{study}.txt").write_text(_REPORT.replace("No acute", f"{study}: no acute"))
    (tmp_path / "files/p10/p10000001/s50000003.txt").write_text(" IMPRESSION: Only an impression.\n")
    metadata = [
        [dicom, subject, study, view, "3056", date, time] for dicom, subject, study, view, date, time in _IMAGES
    ]
    header = ["dicom_id", "subject_id", "study_id", "ViewPosition", "Rows", "StudyDate", "StudyTime"]
    _gzip_csv(tmp_path / "mimic-cxr-2.0.0-metadata.csv.gz", header, metadata)
    split = [[dicom, study, subject, _SPLIT[subject]] for dicom, subject, study, *_ in _IMAGES]
    _gzip_csv(tmp_path / "mimic-cxr-2.0.0-split.csv.gz", ["dicom_id", "study_id", "subject_id", "split"], split)
    columns = list(chexpert.CONCEPTS)
    values = {"Edema": "1.0", "Pneumothorax": "0.0", "Pneumonia": "-1.0"}
    labels = [["10000001", "50000001", *(values.get(column, "") for column in columns)]]
    _gzip_csv(tmp_path / "mimic-cxr-2.0.0-chexpert.csv.gz", ["subject_id", "study_id", *columns], labels)
    return tmp_path


def test_reads_images_sections_and_labels(root: Path) -> None:
    first = mimic_cxr.read(root)[0]
    folder = root / "files/p10/p10000001/s50000001"
    assert (first.study_id, first.patient_id) == ("s50000001", "p10000001")
    assert first.frontal == folder / "d1.jpg"  # PA before AP
    assert first.lateral == folder / "d2.jpg"
    assert first.prior_frontal is None and first.prior_report is None
    assert first.indication == "___F with new onset ascites // eval for infection"
    assert (first.technique, first.comparison) == ("Chest PA and lateral", "None.")
    assert first.findings is not None
    assert first.findings.startswith("There is no focal consolidation, pleural effusion or pneumothorax: the heart")
    assert "acute" not in first.findings
    assert first.labels == {"oedema": True, "pneumothorax": False}
    (as_present,) = load_studies({"source": "mimic_cxr", "path": str(root), "uncertain": "present", "n": 1})
    assert as_present.labels == {**first.labels, "pneumonia": True}


def test_the_prior_is_the_previous_study_with_a_frontal_image_by_date_and_time(root: Path) -> None:
    by_id = {study.study_id: study for study in mimic_cxr.read(root)}
    assert list(by_id) == ["s50000001", "s50000003", "s50000002", "s50000005"]
    files = root / "files/p10/p10000001"
    assert by_id["s50000003"].prior_frontal == files / "s50000001/d1.jpg"
    assert by_id["s50000003"].prior_report == by_id["s50000001"].findings
    assert by_id["s50000003"].findings is None
    assert by_id["s50000002"].prior_frontal == files / "s50000003/d4.jpg"  # 8:15 before 9:30, by number
    assert by_id["s50000002"].prior_report == "Only an impression."
    assert by_id["s50000005"].prior_frontal is None  # the study before has only a lateral


def test_split_and_count(root: Path) -> None:
    assert [study.study_id for study in mimic_cxr.read(root, split="test")] == ["s50000005"]
    assert len(mimic_cxr.read(root, n=2)) == 2
    assert len(mimic_cxr.read(root, split="train")) == 3


def test_reports_may_lie_elsewhere(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("reports")
    for path in sorted(root.rglob("*.txt")):
        target = elsewhere / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    with pytest.raises(UserError, match=r"holds no report.*studies\.reports"):
        mimic_cxr.read(root)
    assert mimic_cxr.read(root, reports=elsewhere)[0].indication is not None


def test_says_what_is_missing(root: Path) -> None:
    with pytest.raises(UserError, match="holds no frontal image"):
        mimic_cxr.read(root, split="validate")
    table = root / "mimic-cxr-2.0.0-chexpert.csv.gz"
    table.write_bytes(gzip.compress(b"study_id,Edema\n1,1.0\n"))
    with pytest.raises(UserError, match="chexpert.csv.gz has no column 'No Finding'"):
        mimic_cxr.read(root)
    columns = ",".join(chexpert.CONCEPTS)
    table.write_bytes(gzip.compress(f"study_id,{columns}\n50000001,2.0{',' * 13}\n".encode()))
    with pytest.raises(UserError, match="study 50000001: no finding is 2.0, not 1, 0 or -1"):
        mimic_cxr.read(root)
    table.write_bytes(b"plain")
    with pytest.raises(UserError, match="not a readable CSV"):
        mimic_cxr.read(root)
    table.unlink()
    with pytest.raises(UserError, match=r"no mimic-cxr-\*-chexpert"):
        mimic_cxr.read(root)
