"""Reads NIH ChestX-ray14: real images, and text that a template writes from their labels.

The data set has no reports. The findings of these studies are written here from the labels, which were mined
from the real reports and are known to be noisy; `Study.findings_origin` says "labels". A label that is not
listed is taken as absent. Source: Wang et al., "ChestX-ray8", CVPR 2017.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from maira_jax.errors import UserError, first_line
from maira_jax.studies.readers.registry import READERS, FilesSection
from maira_jax.studies.study import Box, Study, parse_boxes
from maira_jax.studies.table import rows

FILE = "studies.csv"
_COLUMNS = ("image_id", "patient_id", "view", "labels", "prior_image_id", "boxes_xywh_fraction")

_CONCEPTS = {
    "Atelectasis": "atelectasis",
    "Cardiomegaly": "cardiomegaly",
    "Consolidation": "consolidation",
    "Edema": "oedema",
    "Effusion": "pleural effusion",
    "Emphysema": "emphysema",
    "Fibrosis": "fibrosis",
    "Hernia": "hernia",
    "Infiltration": "infiltration",
    "Mass": "mass",
    "No Finding": "no finding",
    "Nodule": "nodule",
    "Pleural_Thickening": "pleural thickening",
    "Pneumonia": "pneumonia",
    "Pneumothorax": "pneumothorax",
}
_BOX_CONCEPTS = _CONCEPTS | {"Infiltrate": "infiltration"}  # the boxes' file has this word of its own
_LUNGS = {
    "consolidation": "consolidation",
    "oedema": "pulmonary edema",
    "atelectasis": "atelectasis",
    "infiltration": "a lung infiltrate",
    "pneumonia": "pneumonia",
    "emphysema": "emphysema",
    "fibrosis": "fibrosis",
    "mass": "a lung mass",
    "nodule": "a lung nodule",
}


@READERS.register("nih_cxr14")
class NihCxr14Section(FilesSection):
    """NIH ChestX-ray14; `path` is the folder that holds `studies.csv` and `images/`."""

    def load(self) -> list[Study]:
        return read(self.folder, self.n)


def read(folder: Path, n: int | None = None) -> list[Study]:
    """Reads the studies of a folder, one image per study.

    Args:
      folder: holds `studies.csv` (columns image_id, patient_id, view, labels separated by "|", prior_image_id, the
        patient's newest earlier image or nothing, and boxes_xywh_fraction, radiologists' boxes as JSON or nothing) and
        `images/<image_id>.jpg`.
      n: at most this many studies are read; None: all.

    Raises:
      UserError: the table is missing, empty or ill-formed, has an unknown label or a box that is none, or names an
        image that is not there.
    """
    studies: list[Study] = []
    for row in rows(folder / FILE, _COLUMNS):
        if len(studies) == n:
            break
        studies.append(_study(folder, row))
    if not studies:
        raise UserError(f"{folder / FILE} lists no studies: give the table with its rows")
    return studies


def write_findings(labels: Mapping[str, bool]) -> str:
    """The findings text for a study's labels, concept -> bool."""
    seen = [text for name, text in _LUNGS.items() if labels[name]]
    out = [f"There is {text}." for text in seen]
    if not seen:
        out.append("The lungs are clear without consolidation or edema.")
    else:
        unseen = [text for name, text in (("consolidation", "consolidation"), ("oedema", "edema")) if not labels[name]]
        out += [f"No {' or '.join(unseen)}."] if unseen else []
    if not labels["pleural effusion"] and not labels["pneumothorax"]:
        out.append("No pleural effusion or pneumothorax.")
    else:
        for name in ("pleural effusion", "pneumothorax"):
            out.append(f"There is a {name}." if labels[name] else f"No {name}.")
    if labels["pleural thickening"]:
        out.append("There is pleural thickening.")
    out.append("The heart is enlarged." if labels["cardiomegaly"] else "Heart size is normal.")
    if labels["hernia"]:
        out.append("There is a hiatal hernia.")
    return " ".join(out)


def _study(folder: Path, row: dict[str, str]) -> Study:
    named = set(row["labels"].split("|"))
    if not named <= set(_CONCEPTS):
        unknown = sorted(named - set(_CONCEPTS))[0]
        raise UserError(f"{folder / FILE}: {row['image_id']} has the unknown label {unknown!r}: use the data set's own")
    labels = {concept: label in named for label, concept in _CONCEPTS.items()}
    prior = row["prior_image_id"]
    return Study(
        study_id=f"nih-{row['image_id']}",
        patient_id=f"nih-{row['patient_id']}",
        frontal=_image(folder, row["image_id"]),
        prior_frontal=_image(folder, prior) if prior else None,
        technique=f"{row['view']} view of the chest.",
        comparison="Prior chest radiograph." if prior else None,
        findings=write_findings(labels),
        labels=labels,
        findings_origin="labels",
        boxes=_boxes(folder, row),
    )


def concept_of_box(label: str, path: Path) -> str:
    """The concept that a label of the boxes' table `path` means.

    Raises:
      UserError: the label is not one of the data set's.
    """
    if label not in _BOX_CONCEPTS:
        raise UserError(f"{path}: a box has the unknown label {label!r}: use the data set's own")
    return _BOX_CONCEPTS[label]


def _boxes(folder: Path, row: dict[str, str]) -> tuple[Box, ...]:
    """The boxes of an image, named by the concepts of their labels."""
    text = row["boxes_xywh_fraction"]
    if not text:
        return ()
    try:
        found = parse_boxes(json.loads(text))
    except ValueError as error:
        where = f"{folder / FILE}: the boxes of {row['image_id']}"
        raise UserError(f"{where} cannot be read ({first_line(error)}): restore the table") from error
    return tuple(dataclasses.replace(box, name=concept_of_box(box.name, folder / FILE)) for box in found)


def _image(folder: Path, image_id: str) -> Path:
    path = folder / "images" / f"{image_id}.jpg"
    if not path.is_file():
        raise UserError(f"{path} does not exist, but {folder / FILE} names it: restore the image or remove its row")
    return path
