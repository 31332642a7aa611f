"""Reads MIMIC-CXR as PhysioNet distributes it: MIMIC-CXR-JPG's images and tables, MIMIC-CXR's reports.

    ROOT/mimic-cxr-2.0.0-metadata.csv.gz  (any version, also without .gz)
    ROOT/mimic-cxr-2.0.0-split.csv.gz
    ROOT/mimic-cxr-2.0.0-chexpert.csv.gz
    ROOT/files/p10/p10000032/s50414267/<dicom id>.jpg
    REPORTS/files/p10/p10000032/s50414267.txt

Source: Johnson et al., "MIMIC-CXR-JPG", 2019. The de-identification mark `___` is kept.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from absl import logging

from maira_jax.errors import UserError
from maira_jax.run import files
from maira_jax.run.config import setting
from maira_jax.studies.readers.chexpert import CONCEPTS, ChexpertLabelsSection, labels_of
from maira_jax.studies.readers.registry import READERS
from maira_jax.studies.sections import split_sections
from maira_jax.studies.study import Study
from maira_jax.studies.table import rows

SPLITS = ("train", "validate", "test")
_FRONTAL = ("PA", "AP")  # the first is preferred
_LATERAL = ("LATERAL", "LL")


@READERS.register("mimic_cxr")
class MimicCxrSection(ChexpertLabelsSection):
    """MIMIC-CXR; `path` is MIMIC-CXR-JPG's folder."""

    reports: str | None = setting(None, "Folder that holds the reports' `files/`; None: `path`.")
    split: str | None = setting(None, "Official split of the studies; None: all.", choices=lambda: SPLITS)

    def load(self) -> list[Study]:
        reports = Path(self.reports).expanduser() if self.reports else None
        return read(self.folder, reports=reports, split=self.split, uncertain=self.uncertain, n=self.n)


@dataclass
class _MimicStudy:
    """What the tables say of one study."""

    subject: str
    study: str
    taken: tuple[str, float] = ("", 0.0)  # date as YYYYMMDD, time as HHMMSS.mmm
    views: dict[str, str] = field(default_factory=dict)  # view position -> DICOM id

    def image(self, root: Path, positions: tuple[str, ...]) -> Path | None:
        for position in positions:
            if position in self.views:
                return root / self.folder / f"{self.views[position]}.jpg"
        return None

    @property
    def folder(self) -> Path:
        return Path("files", f"p{self.subject[:2]}", f"p{self.subject}", f"s{self.study}")


def read(
    root: Path,
    *,
    reports: Path | None = None,
    split: str | None = None,
    uncertain: str = "unknown",
    n: int | None = None,
) -> list[Study]:
    """Reads the studies that have a frontal image on disk, by subject and time.

    The prior is the same patient's previous study that has a frontal image on disk. The labels are those of
    CheXpert's labeller. Studies whose frontal image was not downloaded are left out, with a warning that says how many.

    Args:
      root: MIMIC-CXR-JPG's folder.
      reports: the folder that holds the reports' `files/`; None: `root`.
      split: one of `SPLITS`, or None for all.
      uncertain: as `chexpert.labels_of`.
      n: at most this many studies are read; None: all.

    Raises:
      UserError: a table is missing or ill-formed, or no study has a frontal image or none has
        a report.
    """
    by_subject = _metadata(root)
    wanted = _split(root, split) if split else None
    labels = _labels(root, uncertain)
    reports = reports or root
    out: list[Study] = []
    left_out = 0
    for subject in sorted(by_subject):
        prior: _MimicStudy | None = None
        for row in sorted(by_subject[subject], key=lambda row: row.taken):
            if len(out) == n:
                break
            frontal = row.image(root, _FRONTAL)
            if frontal is None or not files.is_file(frontal):
                left_out += 1
                continue
            if wanted is None or row.study in wanted:
                out.append(_study(root, reports, row, prior, labels.get(row.study, {})))
            prior = row
    if left_out:
        logging.warning("%s: %d studies have no frontal image on disk and are left out", root, left_out)
    if not out:
        raise UserError(f"{root / 'files'} holds no frontal image of these studies: check studies.path and split")
    if not any(study.findings for study in out):
        raise UserError(
            f"{reports / 'files'} holds no report with findings for these studies: unpack mimic-cxr-reports there"
            " or set studies.reports"
        )
    return out


def _study(root: Path, reports: Path, row: _MimicStudy, prior: _MimicStudy | None, labels: dict[str, bool]) -> Study:
    sections = _sections(reports, row)
    before = _sections(reports, prior) if prior else {}
    lateral = row.image(root, _LATERAL)
    return Study(
        study_id=f"s{row.study}",
        patient_id=f"p{row.subject}",
        frontal=row.image(root, _FRONTAL),
        lateral=lateral if lateral and files.is_file(lateral) else None,
        prior_frontal=prior.image(root, _FRONTAL) if prior else None,
        indication=sections.get("indication"),
        technique=sections.get("technique"),
        comparison=sections.get("comparison"),
        prior_report=before.get("findings") or before.get("impression"),
        findings=sections.get("findings"),
        labels=labels,
    )


def _sections(reports: Path, row: _MimicStudy) -> dict[str, str]:
    path = reports / row.folder.with_suffix(".txt")
    if not files.is_file(path):
        return {}  # a study without a report can still be described by the model
    return split_sections(path.read_text(encoding="utf-8", errors="replace"))


def _table(root: Path, name: str) -> Path:
    found = sorted([*root.glob(f"mimic-cxr-*-{name}.csv.gz"), *root.glob(f"mimic-cxr-*-{name}.csv")])
    if not found:
        raise UserError(f"{root} has no mimic-cxr-*-{name}.csv.gz: give MIMIC-CXR-JPG's folder in studies.path")
    return found[-1]  # the newest version


def _metadata(root: Path) -> dict[str, list[_MimicStudy]]:
    """Subject -> studies, each with the first image (by DICOM id) of every view position."""
    path = _table(root, "metadata")
    studies: dict[str, _MimicStudy] = {}
    images = rows(path, ("dicom_id", "subject_id", "study_id", "ViewPosition", "StudyDate", "StudyTime"))
    for image in sorted(images, key=lambda image: image["dicom_id"]):
        row = studies.setdefault(image["study_id"], _MimicStudy(image["subject_id"], image["study_id"]))
        try:
            row.taken = (image["StudyDate"], float(image["StudyTime"]))
        except ValueError as error:
            raise UserError(f"{path}: image {image['dicom_id']} has no StudyTime: restore the file") from error
        row.views.setdefault(image["ViewPosition"], image["dicom_id"])
    by_subject: dict[str, list[_MimicStudy]] = defaultdict(list)
    for row in studies.values():
        by_subject[row.subject].append(row)
    return by_subject


def _split(root: Path, split: str) -> set[str]:
    table = rows(_table(root, "split"), ("study_id", "split"))
    return {row["study_id"] for row in table if row["split"] == split}


def _labels(root: Path, uncertain: str) -> dict[str, dict[str, bool]]:
    path = _table(root, "chexpert")
    found = {}
    for row in rows(path, ("study_id", *CONCEPTS)):
        try:
            found[row["study_id"]] = labels_of(row, uncertain)
        except ValueError as error:
            raise UserError(f"{path}: study {row['study_id']}: {error}: restore the file") from error
    return found
