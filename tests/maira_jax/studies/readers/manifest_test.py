"""The manifest reader: what it yields, and what it says about lines that it cannot take."""

import json
from pathlib import Path
from typing import Any

import pytest

from maira_jax.errors import UserError
from maira_jax.studies.readers import manifest
from maira_jax.studies.study import Box, Finding, LocatedSentence


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"not read here")
    return tmp_path


def _write(folder: Path, *lines: str | dict[str, Any]) -> Path:
    path = folder / "studies.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return path


def _row(**fields: Any) -> dict[str, Any]:
    return {"study_id": "s1", "patient_id": "p1", "findings": "No pneumothorax.", **fields}


def test_reads_every_field(folder: Path) -> None:
    truth = [
        {"name": "pneumothorax", "status": "absent"},
        {"name": "pleural effusion", "status": "present", "side": "left"},
    ]
    path = _write(
        folder,
        _row(
            frontal="images/a.png",
            lateral="images/a.png",
            prior_frontal="images/a.png",
            indication="Cough.",
            technique="PA.",
            comparison=None,
            prior_report="Normal.",
            truth=truth,
            labels={"pneumothorax": False},
            boxes=[["pleural effusion", 0.5, 0.6, 0.4, 0.3]],
            grounded_findings=[{"text": "Effusion.", "boxes": [["x", 0, 0, 1, 1]]}, {"text": "No edema."}],
        ),
        "",
        {"study_id": "s2", "patient_id": "p1", "frontal": "images/a.png"},
    )
    first, second = manifest.read(path)
    assert first.frontal == first.lateral == first.prior_frontal == folder / "images" / "a.png"
    assert (first.indication, first.technique, first.comparison) == ("Cough.", "PA.", None)
    assert (first.prior_report, first.findings, first.labels) == (
        "Normal.",
        "No pneumothorax.",
        {"pneumothorax": False},
    )
    assert first.truth == (Finding("pneumothorax", "absent"), Finding("pleural effusion", "present", side="left"))
    assert (second.study_id, second.patient_id, second.findings, second.truth) == ("s2", "p1", None, None)
    assert (first.boxes, second.boxes) == ((Box("pleural effusion", 0.5, 0.6, 0.4, 0.3),), ())
    effusion = LocatedSentence("Effusion.", (Box("x", 0, 0, 1, 1),))
    assert (first.grounded_findings, second.grounded_findings) == ((effusion, LocatedSentence("No edema.")), ())
    assert first.findings_origin == "report"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{'study_id': 1}", "not JSON"),
        ("[1]", "not an object"),
        (_row(finding="x"), "unknown field 'finding'"),
        ({"patient_id": "p1", "findings": "x"}, "study_id is missing"),
        ({"study_id": "s9", "findings": "x"}, "patient_id is missing"),
        (_row(study_id=7), "study_id is not a string"),
        (_row(frontal="images/none.png"), "none.png does not exist"),
        (_row(labels={"pneumothorax": 1}), "labels is not an object of booleans"),
        (_row(labels=["pneumothorax"]), "labels is not an object of booleans"),
        (_row(truth={"name": "x"}), "truth is not a list"),
        (_row(boxes=[["x", 100, 100, 50, 50]]), "not an area of the image in fractions"),
        (_row(grounded_findings=["Effusion."]), "grounded_findings is not a list of"),
        (_row(grounded_findings=[{"text": " "}]), "a sentence of grounded_findings has the text ' ', not words"),
        (_row(grounded_findings=[{"text": "Effusion.", "boxes": [["x", 0, 0, 2, 1]]}]), "not an area of the image"),
        (_row(truth=[{"name": "x", "status": "maybe"}]), "status='maybe'"),
        (_row(truth=[{"name": "x", "status": "present", "colour": "red"}]), "unknown field 'colour'"),
        (_row(truth=[{"name": "x", "status": "present", "change": "resolved"}]), "status='absent'"),
        (_row(truth=[{"status": "present"}]), "name or status is missing"),
        ({"study_id": "s9", "patient_id": "p1"}, "neither an image nor a report section"),
        ({"study_id": "s9", "patient_id": "p1", "phrase": "Nodule."}, "neither an image nor a report section"),
        (_row(phrase=3), "phrase is not a string"),
        (_row(study_id="s0"), "used on line 1"),
        (_row(frontal="x" * 5000), "does not exist"),
        (_row(findings="\ud800"), "'\\ud800' is a lone surrogate"),
        (f'{{"study_id": {"1" * 5000}}}', "not read"),
    ],
)
def test_names_the_line_and_the_fault(folder: Path, line: str | dict[str, Any], says: str) -> None:
    path = _write(folder, _row(study_id="s0"), line)
    with pytest.raises(UserError) as error:
        manifest.read(path)
    assert f"{path}, line 2" in str(error.value)
    assert says in str(error.value)


def test_refuses_an_empty_or_missing_list(folder: Path) -> None:
    with pytest.raises(UserError, match="lists no studies"):
        manifest.read(_write(folder, "", "  "))
    with pytest.raises(UserError, match="not a file"):
        manifest.read(folder / "none.jsonl")
    with pytest.raises(UserError, match="not a file"):
        manifest.read(folder)
    (folder / "latin.jsonl").write_bytes(b'{"study_id": "\xe9"}')
    with pytest.raises(UserError, match="UTF-8"):
        manifest.read(folder / "latin.jsonl")


def test_a_line_ends_at_a_newline_alone(folder: Path) -> None:
    """JSON may hold Unicode's other line separators as they are."""
    text = "No effusion.\u2028No oedema.\u0085\x7f"
    path = _write(folder, json.dumps(_row(findings=text), ensure_ascii=False), _row(study_id="s2"))
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert [study.findings for study in manifest.read(path)] == [text, "No pneumothorax."]
