"""RadFact's measures of grounded reports, with the labeller in place of a language model.

A phrase of one report is *entailed* by the other report if all that it states is stated there, and *spatially entailed*
if, besides, more than half of its boxes' area lies in the boxes of the phrases that entail it. Generated phrases
against the reference give precisions, phrases of the reference against the generated report recalls.

Source: Bannur et al. 2024, "MAIRA-2: Grounded Radiology Report Generation", and its program, RadFact. There a language
model decides what is entailed; here two statements are compared as `labeller.extract` reads them, which needs no
judge, gives the same number each time, and knows the labeller's findings alone. Areas are exact, not counted in pixels.
"""

import dataclasses
import functools
from collections.abc import Iterable, Sequence

import numpy as np

from maira_jax.generation.grounding import Phrase, PhraseBox
from maira_jax.reports import labeller
from maira_jax.studies.study import Finding

MEASURES = (
    "logical_precision", "logical_recall",
    "grounding_precision", "grounding_recall",
    "spatial_precision", "spatial_recall",
)  # fmt: skip
# Of boxes that are entailed, exclusive: exactly half, however it is rounded, is not enough.
_MIN_PRECISION = 0.5 + 1e-9
_ATTRIBUTES = ("side", "zone", "size", "tip", "change")
_PLACE = ("side", "zone")

# Generated reports repeat the phrases of others.
_findings = functools.lru_cache(maxsize=65536)(labeller.extract)


@dataclasses.dataclass(frozen=True)
class EntailedPhrases:
    """How many phrases of a report another report entails.

    Attributes:
      phrases: number of phrases that state something which the labeller knows.
      entailed: those that are entailed.
      located: those with boxes.
      entailed_located: those with boxes that are entailed.
      spatially_entailed: those that are spatially entailed.
    """

    phrases: int
    entailed: int
    located: int
    entailed_located: int
    spatially_entailed: int


def entailed_phrases(report: Iterable[Phrase], evidence: Sequence[Phrase]) -> EntailedPhrases:
    """Counts the phrases of a report that the phrases of another one entail."""
    phrases = entailed = located = entailed_located = spatially = 0
    for phrase in report:
        stated = _findings(phrase.text)
        if not stated:
            continue
        supporting = [[other for other in evidence if _supports(other, finding)] for finding in stated]
        is_entailed = all(supporting)
        phrases, entailed = phrases + 1, entailed + is_entailed
        if phrase.boxes:
            places = [box for others in supporting for other in others for box in other.boxes or ()]
            located, entailed_located = located + 1, entailed_located + is_entailed
            spatially += is_entailed and share_inside(phrase.boxes, places) > _MIN_PRECISION
    return EntailedPhrases(phrases, entailed, located, entailed_located, spatially)


def _supports(phrase: Phrase, finding: Finding) -> bool:
    return any(_entails(other, finding) for other in _findings(phrase.text))


def _entails(known: Finding, claim: Finding) -> bool:
    """Whether one finding follows from another: what is present stays so in fewer words, absent at fewer places."""
    if (known.name, known.status) != (claim.name, claim.status):
        return False
    for name in _ATTRIBUTES:
        given, asked = getattr(known, name), getattr(claim, name)
        general = given if claim.status == "absent" and name in _PLACE else asked
        if given != asked and general is not None:
            return False
    return True


def scores(generated: Sequence[Phrase], reference: Sequence[Phrase]) -> dict[str, float | None]:
    """RadFact's six measures of one grounded report, by the names of `MEASURES`.

    Logical: entailed phrases, of all. Grounding: spatially entailed phrases, of the entailed ones with boxes. Spatial:
    spatially entailed phrases, of all with boxes. None where there is no such phrase.
    """
    out = {}
    for name, counts in (
        ("precision", entailed_phrases(generated, reference)),
        ("recall", entailed_phrases(reference, generated)),
    ):
        out[f"logical_{name}"] = _ratio(counts.entailed, counts.phrases)
        out[f"grounding_{name}"] = _ratio(counts.spatially_entailed, counts.entailed_located)
        out[f"spatial_{name}"] = _ratio(counts.spatially_entailed, counts.located)
    return out


def mean_scores(each: Sequence[dict[str, float | None]]) -> dict[str, float | None]:
    """The mean of each measure over the reports that have it, as RadFact reports it; None where none has."""
    out: dict[str, float | None] = {}
    for name in MEASURES:
        known = [value for one in each if (value := one[name]) is not None]
        out[name] = sum(known) / len(known) if known else None
    return out


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def share_inside(boxes: Sequence[PhraseBox], others: Sequence[PhraseBox]) -> float:
    """The share of the boxes' area that other boxes cover ("pixel precision"); 0 without an area."""
    area, _, both = _areas(boxes, others)
    return both / area if area else 0.0


def iou(boxes: Sequence[PhraseBox], others: Sequence[PhraseBox]) -> float:
    """Intersection over union of the areas of two sets of boxes; 0 without an area."""
    first, second, both = _areas(boxes, others)
    union = first + second - both
    return both / union if union else 0.0


def _areas(boxes: Sequence[PhraseBox], others: Sequence[PhraseBox]) -> tuple[float, float, float]:
    """The areas that two sets of boxes cover, and that they cover both. A model may write corners in any order."""
    edges = np.array([dataclasses.astuple(box) for box in (*boxes, *others)]).reshape(-1, 2, 2)  # [boxes, corners, xy]
    low, high = edges.min(axis=1), edges.max(axis=1)  # [boxes, xy]
    xs, ys = np.unique(edges[..., 0]), np.unique(edges[..., 1])
    across = (low[:, :1] <= xs[:-1]) & (xs[1:] <= high[:, :1])  # [boxes, x cells]
    down = (low[:, 1:] <= ys[:-1]) & (ys[1:] <= high[:, 1:])  # [boxes, y cells]
    inside = across[:, :, None] & down[:, None, :]  # [boxes, x cells, y cells]
    cells = np.diff(xs)[:, None] * np.diff(ys)  # [x cells, y cells]
    first, second = inside[: len(boxes)].any(axis=0), inside[len(boxes) :].any(axis=0)
    return float(cells[first].sum()), float(cells[second].sum()), float(cells[first & second].sum())
