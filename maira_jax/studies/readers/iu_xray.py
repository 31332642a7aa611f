"""Reads the report table of the Indiana University chest X-ray collection (Open-i): text-only studies.

The de-identification mark `XXXX` is kept: what it replaced is unknown, and MAIRA-2 was trained on such marks.
The images are distributed separately and are not read.
"""

from pathlib import Path

from maira_jax.errors import UserError
from maira_jax.studies.readers.registry import READERS, FilesSection
from maira_jax.studies.study import Study
from maira_jax.studies.table import rows

FILE = "indiana_reports.csv"
_COLUMNS = ("uid", "Problems", "image", "indication", "comparison", "findings")

# The collection's subject headings (MeSH and its own) for the concepts that other sources label too.
_CONCEPTS = {
    "atelectasis": {"Pulmonary Atelectasis"},
    "cardiomegaly": {"Cardiomegaly"},
    "consolidation": {"Consolidation"},
    "emphysema": {"Emphysema", "Pulmonary Emphysema", "Bullous Emphysema"},
    "fibrosis": {"Fibrosis", "Pulmonary Fibrosis"},
    "fracture": {"Fractures, Bone"},
    "hernia": {"Hernia, Hiatal", "Hernia, Diaphragmatic"},
    "lung opacity": {"Opacity"},
    "mass": {"Mass"},
    "no finding": {"normal"},
    "nodule": {"Nodule"},
    "oedema": {"Pulmonary Edema"},
    "pleural effusion": {"Pleural Effusion", "Hydropneumothorax"},
    "pneumonia": {"Pneumonia"},
    "pneumothorax": {"Pneumothorax", "Hydropneumothorax", "Hemopneumothorax"},
}
_UNKNOWN = {"", "No Indexing", "Technical Quality of Image Unsatisfactory"}


@READERS.register("iu_xray")
class IuXraySection(FilesSection):
    """The report table of the Indiana University collection; `path` is the folder that holds it."""

    def load(self) -> list[Study]:
        return read(self.folder, self.n)


def read(folder: Path, n: int | None = None) -> list[Study]:
    """Reads the studies that have a findings section, in the order of the table.

    The labels come from the manual coding (column `Problems`), which lists what is abnormal: a concept that is
    not listed is False. Reports that were not coded have no labels.

    Args:
      folder: holds `indiana_reports.csv`.
      n: at most this many studies are read; None: all.

    Raises:
      UserError: the table is missing or ill-formed, or has no findings.
    """
    studies: list[Study] = []
    for row in rows(folder / FILE, _COLUMNS):
        if len(studies) == n:
            break
        if row["findings"].strip():
            studies.append(_study(row))
    if not studies:
        raise UserError(f"{folder / FILE} has no report with findings: give the file as it is distributed")
    return studies


def _study(row: dict[str, str]) -> Study:
    problems = {problem.strip() for problem in row["Problems"].split(";")}
    labels = {} if problems <= _UNKNOWN else {name: bool(terms & problems) for name, terms in _CONCEPTS.items()}
    texts = {name: " ".join(row[name].split()) or None for name in ("image", "indication", "comparison", "findings")}
    return Study(
        study_id=f"iu-{row['uid']}",
        patient_id=f"iu-{row['uid']}",  # the collection has one study per patient
        frontal=None,
        indication=texts["indication"],
        technique=texts["image"],
        comparison=texts["comparison"],
        findings=texts["findings"],
        labels=labels,
    )
