"""How well a model grounds: the boxes of its grounded reports, and of single phrases, against the truth."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from maira_jax.generation import grounding
from maira_jax.generation.grounding import Phrase
from maira_jax.generation.report_writer import ReportWriter, write_texts
from maira_jax.inputs.batches import GenerationRequest, reporting_request
from maira_jax.inputs.image import width_height
from maira_jax.inputs.prompt import phrase_grounding_prompt
from maira_jax.reports import radfact
from maira_jax.studies.study import Study


@dataclasses.dataclass(frozen=True)
class GroundingAccuracy:
    """Means over studies.

    Attributes:
      scores: `radfact.MEASURES` of the grounded reports.
      phrase_iou: IoU of the boxes that the model gives for a phrase and the true ones, mean over all phrases of the
        references that have boxes; None without any.
      n_reports, n_phrases: numbers of reports and phrases that were compared.
    """

    scores: dict[str, float | None]
    phrase_iou: float | None
    n_reports: int
    n_phrases: int

    def __str__(self) -> str:
        values = {**self.scores, "phrase_iou": self.phrase_iou}
        rows = [f"  {name.ljust(22)}{'-' if value is None else f'{value:.3f}'}" for name, value in values.items()]
        return "\n".join([f"grounding: {self.n_reports} reports, {self.n_phrases} phrases", *rows])


def grounding_accuracy(
    writer: ReportWriter, studies: Sequence[Study]
) -> tuple[GroundingAccuracy, list[dict[str, Any]]]:
    """Writes a grounded report for every study, locates each of its true phrases, and compares the boxes.

    Args:
      writer: the model.
      studies: studies with `grounded_findings`.

    Returns:
      The accuracy, and one record per study: study_id, grounded (as generated), located (a text for each phrase of the
      reference with boxes).
    """
    references = [_seen(study) for study in studies]
    located = [[phrase for phrase in phrases if phrase.boxes] for phrases in references]
    names = [study.study_id for study in studies]
    reports = write_texts(
        writer, [reporting_request(study, writer.tokenizer, grounded=True) for study in studies], names
    )
    owners = [i for i, phrases in enumerate(located) for _ in phrases]
    wanted = [phrase for phrases in located for phrase in phrases]
    texts = write_texts(
        writer,
        [_locating(studies[i], phrase, writer) for i, phrase in zip(owners, wanted, strict=True)],
        [names[i] for i in owners],
    )
    each = [
        radfact.scores(grounding.parse(text).phrases, phrases)
        for text, phrases in zip(reports, references, strict=True)
    ]
    ious = [
        radfact.iou([box for one in grounding.parse(text).phrases for box in one.boxes or ()], phrase.boxes or ())
        for text, phrase in zip(texts, wanted, strict=True)
    ]
    records = [
        {"study_id": name, "grounded": report, "located": [texts[k] for k, owner in enumerate(owners) if owner == i]}
        for i, (name, report) in enumerate(zip(names, reports, strict=True))
    ]
    mean_iou = float(np.mean(ious)) if ious else None
    return GroundingAccuracy(radfact.mean_scores(each), mean_iou, len(reports), len(ious)), records


def _seen(study: Study) -> tuple[Phrase, ...]:
    assert study.frontal is not None
    return grounding.in_square(grounding.reference(study), *width_height(study.frontal))


def _locating(study: Study, phrase: Phrase, writer: ReportWriter) -> GenerationRequest:
    assert study.frontal is not None
    return GenerationRequest(writer.tokenizer.encode(phrase_grounding_prompt(phrase.text)), (study.frontal,))
