"""Features of concepts or explanations that match a regular expression."""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from maira_jax.errors import UserError
from steer.selection.catalogue import FeatureCatalogue
from steer.selection.rule import SELECTIONS, SelectionInputs, SelectionRule

# What says, earlier in the same part of an explanation, that the feature is for texts that deny what is matched.
_NEGATION = re.compile(r"\b(denie[sd]|no|not|without|absen(t|ce)|negative|rules? out)\b[^,;/.]*$", re.IGNORECASE)


def by_explanation(catalogue: FeatureCatalogue, match: str) -> list[int]:
    """The features that are the best ones of a concept, or have an explanation, that matches `match`; case is ignored.

    First the best ones of concepts, by F1, then the others: those that detect a concept that matches, by F1, and the
    rest by largest activation. An explanation that negates what matches counts only if nothing else matches.

    Raises:
      UserError: `match` is not a regular expression, or matches nothing.
    """
    try:
        pattern = re.compile(match, re.IGNORECASE)
    except re.error as error:
        raise UserError(f"steer.match {match!r} is not a regular expression ({error}): fix it") from error
    largest = {number: row["max_activation"] for number, row in catalogue.features.items()}
    of_concepts = [
        row["feature"] for row in catalogue.concepts if pattern.search(row["concept"]) and largest[row["feature"]] > 0
    ]
    texts = {number: row["explanation"] or "" for number, row in catalogue.features.items()}
    explained = [number for number, text in texts.items() if _affirms(pattern, text)]
    if not of_concepts and not explained:
        explained = [number for number, text in texts.items() if pattern.search(text)]

    def rank(number: int) -> tuple[float, float]:
        row = catalogue.features[number]
        detects = pattern.search(row.get("concept") or "")
        return -row["concept_f1"] if detects else 0.0, -largest[number]

    found = dict.fromkeys((*of_concepts, *sorted(explained, key=rank)))
    if not found:
        raise UserError(f"steer.match {match!r} matches no feature's explanation or concept: choose other words")
    return list(found)


def _affirms(pattern: re.Pattern[str], text: str) -> bool:
    return any(not _NEGATION.search(text[: found.start()]) for found in pattern.finditer(text))


@SELECTIONS.register("explanation")
class ExplanationRule(SelectionRule):
    """The detection score of an explanation that states the concept: how well the text says when the feature fires."""

    proposes = True

    def scores(self, candidates: Mapping[str, Sequence[int]], inputs: SelectionInputs) -> Mapping[str, np.ndarray]:
        found = {}
        for concept in candidates:
            found[concept] = inputs.unknown
            pattern = re.compile(rf"\b{re.escape(concept)}\b", re.IGNORECASE)
            for number, row in inputs.catalogue.features.items():
                if row["detection"] is not None and _affirms(pattern, row["explanation"] or ""):
                    found[concept][number] = row["detection"]
        return found
