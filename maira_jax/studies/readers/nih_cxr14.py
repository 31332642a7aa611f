"""Reads NIH ChestX-ray14: real images, and text that a template writes from their labels.

The data set has no reports. The findings of these studies are written here from the labels, which were mined
from the real reports and are known to be noisy; `Study.findings_origin` says "labels". A label that is not
listed is taken as absent. Source: Wang et al., "ChestX-ray8", CVPR 2017. The data set's own files are read by
`nih_release`; here it is a smaller table with boxes in fractions, priors named, and images of any size.
"""

import dataclasses
from pathlib import Path

from maira_jax.errors import UserError, first_line
from maira_jax.run import files
from maira_jax.run.config import setting
from maira_jax.studies.readers import nih_release
from maira_jax.studies.readers.nih_labels import concept_of_box, concepts_of, write_findings
from maira_jax.studies.readers.registry import READERS, FilesSection
from maira_jax.studies.study import Box, Study, parse_boxes
from maira_jax.studies.table import rows

FILE = "studies.csv"
_COLUMNS = ("image_id", "patient_id", "view", "labels", "prior_image_id", "boxes_xywh_fraction")


@READERS.register("nih_cxr14")
class NihCxr14Section(FilesSection):
    """NIH ChestX-ray14; `path` is its folder as it is distributed, or a folder with `studies.csv` and `images/`."""

    split: str | None = setting(
        None,
        "Official split of the patients of the data set as it is distributed; None: all.",
        choices=lambda: nih_release.SPLITS,
    )

    def load(self) -> list[Study]:
        if not (self.folder / FILE).exists():
            return nih_release.read(self.folder, self.split, self.n)
        if self.split is not None:
            raise UserError(f"studies.split is {self.split!r}, but {self.folder / FILE} has no splits: leave it out")
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


def _study(folder: Path, row: dict[str, str]) -> Study:
    if not row["patient_id"]:  # all such images would be one patient's
        raise UserError(f"{folder / FILE}: {row['image_id']} has no patient_id: restore the table")
    labels = concepts_of(row["labels"], row["image_id"], folder / FILE)
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


def _boxes(folder: Path, row: dict[str, str]) -> tuple[Box, ...]:
    """The boxes of an image, named by the concepts of their labels."""
    text = row["boxes_xywh_fraction"]
    if not text:
        return ()
    try:
        found = parse_boxes(files.parse_json(text))
    except ValueError as error:
        where = f"{folder / FILE}: the boxes of {row['image_id']}"
        raise UserError(f"{where} cannot be read ({first_line(error)}): restore the table") from error
    return tuple(dataclasses.replace(box, name=concept_of_box(box.name, folder / FILE)) for box in found)


def _image(folder: Path, image_id: str) -> Path:
    path = folder / "images" / f"{image_id}.jpg"
    if not files.is_file(path):
        raise UserError(f"{path} does not exist, but {folder / FILE} names it: restore the image or remove its row")
    return path
