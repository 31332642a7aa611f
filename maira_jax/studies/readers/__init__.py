"""Readers: studies from each kind of source, one file per reader, chosen by `studies.source`."""

from collections.abc import Mapping, Sequence
from typing import Any

from maira_jax.studies.balanced import balanced_subset
from maira_jax.studies.readers import chexpert, iu_xray, manifest, mimic_cxr, nih_cxr14, nih_iu, phantom
from maira_jax.studies.readers.registry import READERS, StudiesSection
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
      UserError: the source is unknown, a field is missing or wrong, or the reader refuses the data.
    """
    parsed = _parse(section)
    studies = parsed.load()
    return balanced_subset(studies, parsed.balanced) if parsed.balanced else studies


def load_stated(section: Mapping[str, Any]) -> Mapping[str, Mapping[str, frozenset[str]]]:
    """What each sentence of each study states, by study id (see `Study.stated`); empty where nobody knows.

    Args:
      section: the same section as for `load_studies`.
    """
    return _parse(section).stated()


def _parse(section: Mapping[str, Any]) -> StudiesSection:
    source: Any = section.get("source")
    return READERS.get(source).parse(section)
