"""Studies: one dataclass, and a reader a source."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import ml_collections

from maira_jax.errors import UserError
from maira_jax.studies.readers import iu_xray, manifest, mimic_cxr, nih_cxr14, phantom
from maira_jax.studies.study import Study

SOURCES = ("phantom", "manifest", "mimic_cxr", "iu_xray", "nih_cxr14", "nih_iu")
NIH_FOLDER, IU_FOLDER = "nih-cxr14-mini", "iu-xray-reports"


def load_studies(section: ml_collections.ConfigDict) -> Sequence[Study]:
    """Reads the studies that a config's `studies` section names.

    Fields of the section:
      source: one of `SOURCES`. "nih_iu" is NIH's images with text from their labels, followed by IU's reports
        without images: never a pair of the two.
      path: the manifest, or the data set's folder; for "nih_iu" the folder that holds `nih-cxr14-mini` and
        `iu-xray-reports`. Not read for the phantom.
      n: how many phantom studies; of the others at most so many from the start (of "nih_iu" half from each),
        None for all.
      seed, start, size: of the phantom: the world, the first index (default 0), the images' side (default 112).
      reports, split: of MIMIC-CXR, see `mimic_cxr.read` (default None).

    Raises:
      UserError: the source is unknown, a field is missing or wrong, or the reader refuses the data.
    """
    source, n = section.get("source"), section.get("n")
    if source not in SOURCES:
        raise UserError(f"studies.source={source!r} is unknown: use one of {', '.join(SOURCES)}")
    if n is not None and (not isinstance(n, int) or n < 1):
        raise UserError(f"studies.n={n!r} is not a number of studies: give an integer from 1 up, or None for all")
    if source == "phantom":
        if n is None:
            raise UserError("studies.n is None, but the phantom has no end: say how many studies")
        start = section.get("start", 0)
        return phantom.studies(start, start + n, seed=section.seed, size=section.get("size", phantom.UNITS))
    if not section.get("path"):
        raise UserError(f"studies.path is empty, but studies.source={source!r} reads files: give the path")
    path = Path(section.path).expanduser()
    if source == "manifest":
        return manifest.read(path)[:n]
    if source == "mimic_cxr":
        reports = section.get("reports")
        return mimic_cxr.read(path, reports=Path(reports) if reports else None, split=section.get("split"), n=n)
    if source == "iu_xray":
        return iu_xray.read(path, n)
    if source == "nih_cxr14":
        return nih_cxr14.read(path, n)
    half = None if n is None else max(1, n // 2)
    images = nih_cxr14.read(path / NIH_FOLDER, half)
    return images if n == 1 else [*images, *iu_xray.read(path / IU_FOLDER, n and n - len(images))]


def load_stated(section: ml_collections.ConfigDict) -> dict[str, Mapping[str, frozenset[str]]]:
    """What each sentence of each study states, by study id (see `Study.stated`); empty where nobody knows.

    Args:
      section: of `load_studies`.
    """
    if section.get("source") != "phantom":
        return {}
    small = ml_collections.ConfigDict(section.to_dict() | {"size": 8})  # images are not looked at
    return {study.study_id: study.stated for study in load_studies(small)}
