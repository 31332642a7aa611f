"""Reads CheXpert as Stanford distributes it: frontal images with the labels of 14 classes, without reports.

    ROOT/train.csv, ROOT/valid.csv
    ROOT/train/patient00001/study1/view1_frontal.jpg
    ROOT/valid/patient64541/study1/view1_frontal.jpg

ROOT is `CheXpert-v1.0` or `CheXpert-v1.0-small`, under any name: the first part of the tables' paths is not used.
Source: Irvin et al., "CheXpert", AAAI 2019. The labels of train.csv are mined from reports; those of valid.csv are
radiologists'. The order of a patient's studies in time is not published, so no study has a prior.
"""

import contextlib
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from absl import logging

from maira_jax.errors import UserError
from maira_jax.run import files
from maira_jax.run.config import setting
from maira_jax.studies.readers.registry import READERS, FilesSection
from maira_jax.studies.study import Study
from maira_jax.studies.table import rows

SPLITS = ("train", "valid")
CONCEPTS = {
    "No Finding": "no finding",
    "Enlarged Cardiomediastinum": "enlarged cardiomediastinum",
    "Cardiomegaly": "cardiomegaly",
    "Lung Opacity": "lung opacity",
    "Lung Lesion": "lung lesion",
    "Edema": "oedema",
    "Consolidation": "consolidation",
    "Pneumonia": "pneumonia",
    "Atelectasis": "atelectasis",
    "Pneumothorax": "pneumothorax",
    "Pleural Effusion": "pleural effusion",
    "Pleural Other": "pleural other",
    "Fracture": "fracture",
    "Support Devices": "support devices",
}
_PATH = re.compile(r"(?:.*/)?((?:train|valid)/(patient\d+)/(study\d+)/[^/]+)")
_POSITIVE, _NEGATIVE, _UNCERTAIN = 1.0, 0.0, -1.0
_UNCERTAIN_IS = {"unknown": {}, "present": {_UNCERTAIN: True}, "absent": {_UNCERTAIN: False}}


class ChexpertLabelsSection(FilesSection):
    """Studies whose labels are those of CheXpert's labeller."""

    uncertain: Literal["unknown", "present", "absent"] = setting(
        "unknown", "What a label becomes that the labeller calls uncertain (-1)."
    )


@READERS.register("chexpert")
class ChexpertSection(ChexpertLabelsSection):
    """CheXpert; `path` is the folder of train.csv and valid.csv."""

    split: str | None = setting(None, "Official split of the studies; None: both.", choices=lambda: SPLITS)

    def load(self) -> list[Study]:
        return read(self.folder, split=self.split, uncertain=self.uncertain, n=self.n)


def labels_of(row: Mapping[str, str], uncertain: str) -> dict[str, bool]:
    """The labels of one row of a table with the 14 classes as columns: concept -> whether it is present.

    Args:
      row: column -> 1.0, 0.0, -1.0 (uncertain) or blank (not mentioned: unknown, and not a key).
      uncertain: what an uncertain label becomes: "unknown" (not a key), "present" or "absent".

    Raises:
      ValueError: a label is something else.
    """
    meaning = {_POSITIVE: True, _NEGATIVE: False} | _UNCERTAIN_IS[uncertain]
    given = {name: _value(name, row[column]) for column, name in CONCEPTS.items() if row[column]}
    return {name: meaning[value] for name, value in given.items() if value in meaning}


def _value(name: str, text: str) -> float:
    with contextlib.suppress(ValueError):
        if float(text) in (_POSITIVE, _NEGATIVE, _UNCERTAIN):
            return float(text)
    raise ValueError(f"{name} is {text}, not 1, 0 or -1")


def read(root: Path, *, split: str | None = None, uncertain: str = "unknown", n: int | None = None) -> list[Study]:
    """Reads the studies that have a frontal image on disk, in the order of the tables.

    A study's frontal image is its first PA view, or else its first AP view; its first lateral view comes with it.
    Further views are not read. Studies without a frontal image on disk are left out, with a warning that says how many.

    Args:
      root: the folder of the tables.
      split: one of `SPLITS`, or None for both.
      uncertain: as `labels_of`.
      n: at most this many studies are read; None: all.

    Raises:
      UserError: a table is missing or ill-formed, or no study has a frontal image on disk.
    """
    out: list[Study] = []
    left_out = 0
    there = [name for name in SPLITS if (root / f"{name}.csv").is_file()]
    if split is None and len(there) == 1:
        raise UserError(f"{root} has {there[0]}.csv alone: download the other table, or set studies.split={there[0]}")
    for name in (split,) if split else SPLITS:
        for (patient, study), views in _views(root / f"{name}.csv").items():
            if len(out) == n:
                break
            read_study = _study(root, f"{patient}-{study}", f"chexpert-{patient}", views, uncertain)
            if read_study is None:
                left_out += 1
            else:
                out.append(read_study)
    if left_out:
        logging.warning("%s: %d studies have no frontal image on disk and are left out", root, left_out)
    if not out:
        raise UserError(f"{root} holds no frontal image of these studies: check studies.path and split")
    return out


def _views(table: Path) -> dict[tuple[str, str], list[dict[str, str]]]:
    """(Patient, study) -> the rows of its images; `Path` becomes relative to the folder of the table."""
    found: dict[tuple[str, str], list[dict[str, str]]] = defaultdict(list)
    seen: set[str] = set()
    for row in rows(table, ("Path", "Frontal/Lateral", "AP/PA", *CONCEPTS)):
        match = _PATH.fullmatch(row["Path"])
        if match is None:
            raise UserError(f"{table}: the path {row['Path']!r} names no patient and study: restore the table")
        if match[1] in seen:  # with other labels, perhaps
            raise UserError(f"{table}: {row['Path']} is listed twice: restore the table, or remove one of the rows")
        seen.add(match[1])
        found[match[2], match[3]].append(row | {"Path": match[1]})
    return found


def _study(root: Path, name: str, patient_id: str, views: list[dict[str, str]], uncertain: str) -> Study | None:
    present = [row for row in views if files.is_file(root / row["Path"])]
    frontals = [row for row in present if row["Frontal/Lateral"] == "Frontal"]
    if not frontals:
        return None
    frontal = min(frontals, key=lambda row: row["AP/PA"] != "PA")
    laterals = [root / row["Path"] for row in present if row["Frontal/Lateral"] == "Lateral"]
    try:
        labels = labels_of(frontal, uncertain)
    except ValueError as error:
        raise UserError(
            f"{root}: the labels of {frontal['Path']} cannot be read ({error}): restore the table"
        ) from error
    return Study(
        study_id=f"chexpert-{name}",
        patient_id=patient_id,
        frontal=root / frontal["Path"],
        lateral=laterals[0] if laterals else None,
        technique=f"{frontal['AP/PA']} view of the chest." if frontal["AP/PA"] else None,
        labels=labels,
    )
