"""Readers: studies from each kind of source, one file per reader, chosen by `studies.source`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from maira_jax.errors import UserError
from maira_jax.studies.balanced import balanced_subset
from maira_jax.studies.readers import chexpert, iu_xray, manifest, mimic_cxr, nih_cxr14, nih_iu, phantom
from maira_jax.studies.readers.registry import READERS, FilesSection, StudiesSection
from maira_jax.studies.study import Study

__all__ = [
    "READERS",
    "StudiesSection",
    "chexpert",
    "iu_xray",
    "load_stated",
    "load_studies",
    "manifest",
    "mimic_cxr",
    "nih_cxr14",
    "nih_iu",
    "phantom",
]


def load_studies(section: Mapping[str, Any]) -> Sequence[Study]:
    """Reads the studies that a configuration's `studies` section names.

    Args:
      section: `source`, the name of a reader, and the fields that this reader declares.

    Raises:
      UserError: the source is unknown, a field is missing or wrong, the reader refuses the data, or two studies have
        the same id.
    """
    parsed = _parse(section)
    studies = parsed.load()
    if isinstance(parsed, FilesSection):
        _refuse_repeated(studies, parsed.folder)
    return balanced_subset(studies, parsed.balanced) if parsed.balanced else studies


def _refuse_repeated(studies: Sequence[Study], path: Path) -> None:
    """Raises UserError where a study is there twice: all results are told by the studies' ids."""
    seen: set[str] = set()
    for study in studies:
        if study.study_id in seen:
            raise UserError(f"{path} lists the study {study.study_id} twice: remove one of its rows")
        seen.add(study.study_id)


def load_stated(section: Mapping[str, Any]) -> Mapping[str, Mapping[str, frozenset[str]]]:
    """What each sentence of each study states, by study id (see `Study.stated`); empty where nobody knows.

    Args:
      section: the same section as for `load_studies`.
    """
    return _parse(section).stated()


def _parse(section: Mapping[str, Any]) -> StudiesSection:
    source: Any = section.get("source")
    return READERS.get(source).parse(section)
