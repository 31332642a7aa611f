"""What every reader yields: a study with its images, its report sections and what is known about it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TypeAlias

import numpy as np

ImageSource: TypeAlias = Path | np.ndarray
"""A file that Pillow can read, or a uint8 array [height, width]."""

STATUSES = ("present", "absent", "uncertain")
SIDES = ("left", "right")
SIZES = ("small", "moderate", "large")
ZONES = ("upper", "mid", "lower")
CHANGES = ("new", "worse", "improved", "unchanged", "resolved")
TIPS = ("satisfactory", "malpositioned")

_ALLOWED = {
    "status": STATUSES,
    "side": SIDES,
    "size": SIZES,
    "zone": ZONES,
    "change": CHANGES,
    "tip": TIPS,
}


@dataclass(frozen=True)
class Finding:
    """One statement of a report, or one thing known to be true of a study.

    A bilateral finding is two `Finding`s. Sides are the patient's, never the viewer's.

    Attributes:
      name: what it is, lower case, e.g. "cardiomegaly", "pleural effusion", "endotracheal tube".
      status: one of `STATUSES`.
      side: one of `SIDES`, or None where it has no side or none was given.
      size: one of `SIZES` (a "mild" or "severe" finding is "small" or "large").
      zone: one of `ZONES` of the lung.
      change: one of `CHANGES` against the prior study; "resolved" only with status "absent".
      tip: one of `TIPS`, for tubes and lines.
      hedge: of an uncertain finding the words that leave it open, lower case ("may represent").

    Raises:
      ValueError: a field is not one of its allowed values, a finding that is not absent is
        "resolved", or one that is not uncertain is hedged.
    """

    name: str
    status: str
    side: str | None = None
    size: str | None = None
    zone: str | None = None
    change: str | None = None
    tip: str | None = None
    hedge: str | None = None

    def __post_init__(self) -> None:
        for name, allowed in _ALLOWED.items():
            value = getattr(self, name)
            if value not in allowed and not (value is None and name != "status"):
                raise ValueError(f"{name}={value!r} is not one of {', '.join(allowed)}")
        if self.change == "resolved" and self.status != "absent":
            raise ValueError("change='resolved' needs status='absent'")
        if self.hedge is not None and self.status != "uncertain":
            raise ValueError("a hedge needs status='uncertain'")


FINDING_FIELDS = tuple(f.name for f in fields(Finding))

_SENTENCE = {"text", "boxes"}  # keys of a sentence of grounded findings
_ROUNDING = 1e-3  # tables round their fractions, so that a box at the border may end just outside


@dataclass(frozen=True)
class Box:
    """Where a finding is in the frontal image, as a radiologist or a program marked it.

    Attributes:
      name: the label's concept, as in `Study.labels`, e.g. "pneumonia".
      x, y: left and upper border, as fractions of the full image's width and height, from its upper left corner.
      width, height: as fractions of the full image's width and height.

    Raises:
      ValueError: the name is empty, a number is not finite, or the box is empty or leaves the image.
    """

    name: str
    x: float
    y: float
    width: float
    height: float

    def __post_init__(self) -> None:
        numbers = (self.x, self.y, self.width, self.height)
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"a box has the name {self.name!r}, which is not a label")
        if not all(isinstance(value, int | float) and math.isfinite(value) for value in numbers):
            raise ValueError(f"the box of {self.name!r} is {numbers}, not four finite numbers")
        right, bottom = self.x + self.width, self.y + self.height
        if min(self.width, self.height) <= 0 or min(self.x, self.y) < 0 or max(right, bottom) > 1 + _ROUNDING:
            raise ValueError(
                f"the box of {self.name!r} is x, y, width, height = {numbers}, not an area of the image in fractions"
            )


def parse_boxes(value: object) -> tuple[Box, ...]:
    """Boxes from what JSON gives for them: a list of `[label, x, y, width, height]`, as `Box`.

    Raises:
      ValueError: it is something else, or as `Box`.
    """
    if not isinstance(value, list) or not all(isinstance(item, list) and len(item) == 5 for item in value):
        raise ValueError("boxes is not a list of [label, x, y, width, height]")
    return tuple(Box(*item) for item in value)


@dataclass(frozen=True)
class LocatedSentence:
    """One sentence of the findings, and where what it describes is seen in the frontal image.

    Attributes:
      text: the sentence.
      boxes: all places; empty where the sentence describes nothing that can be seen at a place.

    Raises:
      ValueError: the sentence is empty.
    """

    text: str
    boxes: tuple[Box, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.text, str) or not self.text.strip():
            raise ValueError(f"a sentence of grounded_findings has the text {self.text!r}, not words")


def parse_grounded_findings(value: object) -> tuple[LocatedSentence, ...]:
    """Sentences from what JSON gives for them: a list of `{"text": ..., "boxes": [[label, x, y, width, height], ...]}`.

    Raises:
      ValueError: it is something else, or as `LocatedSentence` and `Box`.
    """
    if not isinstance(value, list) or not all(isinstance(item, dict) and set(item) <= _SENTENCE for item in value):
        raise ValueError('grounded_findings is not a list of {"text": sentence, "boxes": boxes}')
    return tuple(LocatedSentence(item.get("text", ""), parse_boxes(item.get("boxes", []))) for item in value)


@dataclass(frozen=True)
class Study:
    """One imaging study. Any image or section may be missing; a study may be text only.

    Attributes:
      study_id: unique within its source.
      patient_id: all studies of a patient share it; splits are made by it.
      frontal: the current frontal image.
      lateral: the current lateral image.
      prior_frontal: the frontal image of the patient's previous study.
      indication: why the study was asked for.
      technique: how it was taken.
      comparison: the studies that it was compared with.
      prior_report: the report of the previous study.
      findings: the text that the model writes.
      phrase: a finding to locate in the current frontal image.
      truth: what is known to be true, absent findings included; None where nothing is known.
      labels: study-level concepts; a concept that is not a key is unknown.
      findings_origin: "report" when a radiologist wrote `findings`; "phantom" and "labels" when a
        program wrote it, from the phantom's latents or from a data set's labels.
      stated: sentence of the report or the prior report -> everything that it states; empty where nobody knows.
      boxes: where findings are in `frontal`; none is known where it is empty, and none is complete.
      grounded_findings: the findings sentence by sentence, each with its boxes in `frontal`; empty where nobody
        located them.
    """

    study_id: str
    patient_id: str
    frontal: ImageSource | None
    lateral: ImageSource | None = None
    prior_frontal: ImageSource | None = None
    indication: str | None = None
    technique: str | None = None
    comparison: str | None = None
    prior_report: str | None = None
    findings: str | None = None
    phrase: str | None = None
    truth: tuple[Finding, ...] | None = None
    labels: Mapping[str, bool] = field(default_factory=dict)
    findings_origin: str = "report"
    stated: Mapping[str, frozenset[str]] = field(default_factory=dict)
    boxes: tuple[Box, ...] = ()
    grounded_findings: tuple[LocatedSentence, ...] = ()
