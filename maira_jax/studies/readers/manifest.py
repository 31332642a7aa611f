"""Reads a user's own studies from a JSON Lines file.

A line is an object whose keys are the fields of `Study`; `study_id` and `patient_id` are required:

    {"study_id": "s1", "patient_id": "p1", "frontal": "images/s1.png", "indication": "Cough.",
     "findings": "No pneumothorax.", "labels": {"pneumothorax": false},
     "truth": [{"name": "pneumothorax", "status": "absent"}]}

`boxes` is a list of `[label, x, y, width, height]`, in fractions of the frontal image (see `Box`), and
`grounded_findings` a list of `{"text": sentence, "boxes": boxes}`. Image paths are relative to the folder of the
manifest. Empty lines are skipped.
"""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from maira_jax.errors import UserError
from maira_jax.run import files
from maira_jax.studies.readers.registry import READERS, FilesSection
from maira_jax.studies.study import FINDING_FIELDS, Finding, Study, parse_boxes, parse_grounded_findings

_REQUIRED = ("study_id", "patient_id")
_IMAGES = ("frontal", "lateral", "prior_frontal")
_SECTIONS = ("indication", "technique", "comparison", "prior_report", "findings")
_TEXTS = (*_SECTIONS, "phrase", "findings_origin")
_LOCATED = {"boxes": parse_boxes, "grounded_findings": parse_grounded_findings}
_FIELDS = tuple(field.name for field in fields(Study))


@READERS.register("manifest")
class ManifestSection(FilesSection):
    """Your own studies; `path` is a JSON Lines file."""

    def load(self) -> list[Study]:
        return read(self.folder)[: self.n]


def read(path: Path) -> list[Study]:
    """Reads every study of a manifest.

    Raises:
      UserError: the file is missing or holds no study; a line is not a JSON object, lacks a required
        field, has an unknown or ill-typed one, names an image that does not exist, has neither image nor
        text, or repeats a study_id. The line is named.
    """
    if not path.is_file():
        raise UserError(f"{path} is not a file: give the path of a JSON Lines manifest in studies.path")
    lines = files.read_text(path).split("\n")  # splitlines() also cuts at characters that texts may hold
    studies: list[Study] = []
    first_seen: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        study = _study(line, path.parent, where)
        if study.study_id in first_seen:
            raise UserError(
                f"{where}: study_id {study.study_id!r} was used on line {first_seen[study.study_id]}: make ids unique"
            )
        first_seen[study.study_id] = number
        studies.append(study)
    if not studies:
        raise UserError(f"{path} lists no studies: write one JSON object per line, one per study")
    return studies


def _study(line: str, folder: Path, where: str) -> Study:
    try:
        row = files.parse_json(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON ({error.msg}, column {error.colno}): write one object per line") from error
    except ValueError as error:
        raise UserError(f"{where}: not read ({error}): write one object per line") from error
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise UserError(f"{where}: {half!r} is a lone surrogate, which no UTF-8 file can hold: replace it") from error
    if not isinstance(row, dict):
        raise UserError(f"{where}: a {type(row).__name__}, not an object: write one object per line")
    unknown = [name for name in row if name not in _FIELDS]
    if unknown:
        raise UserError(f"{where}: unknown field {unknown[0]!r}: use only {', '.join(_FIELDS)}")
    values: dict[str, Any] = {name: value for name, value in row.items() if value is not None}
    for name in (*_REQUIRED, *_IMAGES, *_TEXTS):
        if not isinstance(values.get(name, ""), str):
            raise UserError(f"{where}: {name} is not a string: put it in double quotes")
    for name in _REQUIRED:
        if not values.get(name):
            raise UserError(f"{where}: {name} is missing: every study needs {' and '.join(_REQUIRED)}")
    for name in _IMAGES:
        if name in values:
            values[name] = folder / values[name]
            if not files.is_file(values[name]):
                raise UserError(f"{where}: {name} image {values[name]} does not exist: correct or remove it")
    if "truth" in values:
        values["truth"] = _truth(values["truth"], where)
    labels = values.get("labels", {})
    if not isinstance(labels, dict) or not all(isinstance(value, bool) for value in labels.values()):
        raise UserError(f'{where}: labels is not an object of booleans: write e.g. {{"pneumothorax": true}}')
    for name, parse in _LOCATED.items():
        if name in values:
            try:
                values[name] = parse(values[name])
            except ValueError as error:
                raise UserError(f"{where}: {error}: correct the value") from error
    values.setdefault("frontal", None)
    if not any(name in values for name in ("lateral", *_SECTIONS)) and values["frontal"] is None:
        raise UserError(f"{where}: neither an image nor a report section: give at least one")
    return Study(**values)


def _truth(value: Any, where: str) -> tuple[Finding, ...]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise UserError(f"{where}: truth is not a list of objects: write one object per finding")
    out = []
    for number, item in enumerate(value, start=1):
        unknown = [name for name in item if name not in FINDING_FIELDS]
        if unknown or not isinstance(item.get("name"), str) or "status" not in item:
            problem = f"unknown field {unknown[0]!r}" if unknown else "name or status is missing"
            raise UserError(f"{where}: truth finding {number}: {problem}: use {', '.join(FINDING_FIELDS)}")
        try:
            out.append(Finding(**item))
        except ValueError as error:
            raise UserError(f"{where}: truth finding {number}: {error}: correct the value") from error
    return tuple(out)
