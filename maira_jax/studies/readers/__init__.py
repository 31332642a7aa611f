"""Readers: studies from each kind of source, one file per reader, chosen by `studies.source`."""

from collections.abc import Mapping, Sequence
from typing import Any

from maira_jax.studies.readers import iu_xray, manifest, mimic_cxr, nih_cxr14, nih_iu, phantom
from maira_jax.studies.readers.registry import READERS, StudiesSection
from maira_jax.studies.study import Study

__all__ = [
    "READERS",
    "StudiesSection",
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
    return _parse(section).load()


def load_stated(section: Mapping[str, Any]) -> Mapping[str, Mapping[str, frozenset[str]]]:
    """What each sentence of each study states, by study id (see `Study.stated`); empty where nobody knows.

    Args:
      section: the same section as for `load_studies`.
    """
    return _parse(section).stated()


def _parse(section: Mapping[str, Any]) -> StudiesSection:
    source: Any = section.get("source")
    return READERS.get(source).parse(section)
