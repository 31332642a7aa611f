"""Reads NIH ChestX-ray14 as the NIH Clinical Center distributes it.

    ROOT/Data_Entry_2017_v2020.csv  (or the older Data_Entry_2017.csv)
    ROOT/BBox_List_2017.csv         radiologists' boxes; without it no study has boxes
    ROOT/train_val_list.txt, ROOT/test_list.txt
    ROOT/images_001/images/*.png ... ROOT/images_012/images/*.png, or all of them in ROOT/images/

Text and labels are as in `nih_cxr14`: no radiologist wrote the one, and the other are mined from reports.
"""

from collections import defaultdict
from pathlib import Path

from absl import logging

from maira_jax.errors import UserError
from maira_jax.run import files
from maira_jax.studies.readers.nih_labels import concept_of_box, concepts_of, write_findings
from maira_jax.studies.study import Box, Study
from maira_jax.studies.table import rows

TABLES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")  # the first is preferred: it corrects the patients' ages
BOXES = "BBox_List_2017.csv"
SPLITS = {"train_val": "train_val_list.txt", "test": "test_list.txt"}
_COLUMNS = ("Image Index", "Finding Labels", "Follow-up #", "Patient ID", "View Position")
_BOX_COLUMNS = ("Image Index", "Finding Label", "Bbox [x", "y", "w", "h]")  # the header has a comma in "[x,y,w,h]"
_SIDE = 1024  # pixels: all images of the data set are squares of this size, to which the boxes refer


def read(root: Path, split: str | None = None, n: int | None = None) -> list[Study]:
    """Reads the images that are on disk, one per study, in the order of the table.

    The prior is the same patient's image on disk with the next lower follow-up number, of whatever split; the
    official splits divide no patient. Images that were not downloaded are left out, with a warning that says how many.

    Args:
      root: the folder of the table.
      split: one of `SPLITS`, or None for all.
      n: at most this many studies are read; None: all.

    Raises:
      UserError: a table or the split's list is missing or ill-formed, has an unknown label or a box that is none, or no
        image is on disk.
    """
    table = _table(root)
    images = _images(root)
    wanted = _listed(root / SPLITS[split]) if split else None
    present = [row for row in rows(table, _COLUMNS) if row["Image Index"] in images]
    chosen = [row for row in present if wanted is None or row["Image Index"] in wanted]
    if not chosen:
        raise UserError(
            f"{root} holds no image of {table.name}{f' in {SPLITS[split]}' if split else ''}: unpack images_001 to "
            "images_012, or images, there"
        )
    boxes, priors = _boxes(root / BOXES), _priors(present, table)
    missing = sum(1 for _ in rows(table, _COLUMNS)) - len(present)
    if missing:
        logging.warning("%s: %d images are not on disk and are left out", root, missing)
    return [_study(row, table, images, priors, boxes) for row in chosen[:n]]


def _study(
    row: dict[str, str],
    table: Path,
    images: dict[str, Path],
    priors: dict[str, str],
    boxes: dict[str, list[Box]],
) -> Study:
    name = row["Image Index"]
    labels = concepts_of(row["Finding Labels"], name, table)
    prior = priors.get(name)
    return Study(
        study_id=f"nih-{Path(name).stem}",
        patient_id=f"nih-{int(row['Patient ID'])}",  # some tables pad the number with zeros
        frontal=images[name],
        prior_frontal=images[prior] if prior else None,
        technique=f"{row['View Position']} view of the chest.",
        comparison="Prior chest radiograph." if prior else None,
        findings=write_findings(labels),
        labels=labels,
        findings_origin="labels",
        boxes=tuple(boxes.get(name, ())),
    )


def _table(root: Path) -> Path:
    for name in TABLES:
        if (root / name).is_file():
            return root / name
    raise UserError(f"{root} has none of studies.csv, {', '.join(TABLES)}: give the data set's folder in studies.path")


def _images(root: Path) -> dict[str, Path]:
    """Name of every image on disk -> its path."""
    folders = sorted([*root.glob("images_*/images"), root / "images"])
    return {path.name: path for folder in folders if folder.is_dir() for path in folder.iterdir()}


def _listed(path: Path) -> set[str]:
    if not path.is_file():
        raise UserError(f"{path} does not exist: download it, or leave studies.split out")
    return set(files.read_text(path).split())


def _priors(present: list[dict[str, str]], table: Path) -> dict[str, str]:
    """Image -> the same patient's image before it."""
    by_patient: dict[int, list[tuple[int, str]]] = defaultdict(list)
    for row in present:
        try:
            by_patient[int(row["Patient ID"])].append((int(row["Follow-up #"]), row["Image Index"]))
        except ValueError as error:
            raise UserError(
                f"{table}: {row['Image Index']} has no number of patient and follow-up: restore the table"
            ) from error
    priors = {}
    for images in by_patient.values():
        images.sort()
        priors.update({now: before for (_, before), (_, now) in zip(images, images[1:], strict=False)})
    return priors


def _boxes(path: Path) -> dict[str, list[Box]]:
    """Image -> its boxes, as fractions of the image."""
    found: dict[str, list[Box]] = defaultdict(list)
    for row in rows(path, _BOX_COLUMNS) if path.is_file() else ():
        name = concept_of_box(row["Finding Label"], path)
        try:
            x, y, width, height = (float(row[column]) / _SIDE for column in _BOX_COLUMNS[2:])
            found[row["Image Index"]].append(Box(name, x, y, width, height))
        except ValueError as error:
            raise UserError(f"{path}: a box of {row['Image Index']} is none ({error}): restore the table") from error
    return found
