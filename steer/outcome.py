"""What one steered report did: the words are defined in `steer.evaluate`."""

from collections.abc import Mapping, Sequence
from typing import Any

from maira_jax.reports.changes import cached_parse, compare
from maira_jax.reports.history import cached_rates
from maira_jax.reports.text import degenerate, edit_distance, is_prose, repetition, words_of

ADDED, REMOVED = "added", "removed"


def outcome(
    original: str,
    steered: str,
    concept: str,
    strength: float,
    *,
    finished: bool,
    finite: bool = True,
    other_concepts: Sequence[str] = (),
) -> dict[str, Any]:
    """What differs between a steered report and the unsteered one: the columns of `steer.evaluate.SCHEMA` about that.

    Args:
      original, steered: the reports.
      concept: the concept that is steered; "" for none.
      strength: how strongly; the sign says whether it is to be added or removed.
      finished: whether the steered one ended by itself.
      finite: whether its logits were finite.
      other_concepts: that are meant to change, too.
    """
    found = compare(original, steered, concept, other_concepts)
    before, after = words_of(original), words_of(steered)
    was, now = cached_parse(original).concepts.get(concept), cached_parse(steered).concepts.get(concept)
    steered_for = bool(strength) and was is not None  # a concept that the labeller knows
    wanted = strength > 0
    return {
        "intended": "" if not steered_for else ADDED if wanted else REMOVED,
        "eligible": steered_for and was != wanted,
        "on_target": steered_for and was != wanted and now == wanted,
        "off_target": found.off_target,
        "off_target_attributes": found.off_target_attributes,
        "off_target_extent": found.off_target_extent,
        "no_change": found.none,
        "identical": original == steered,
        "degenerate": degenerate(steered, finished, finite),
        "added": list(found.added),
        "removed": list(found.removed),
        "changed": list(found.changed),
        "concepts": list(found.concepts),
        "edit_distance": edit_distance(before, after),
        "repetition": repetition(steered),
        "words": max(len(before), len(after)),
        "length": len(after) / max(len(before), 1),
        "format_kept": is_prose(steered) or not is_prose(original),
        "history": sum(cached_rates(steered).values()),
        "history_before": sum(cached_rates(original).values()),
    } | {f"history_{kind}": rate for kind, rate in cached_rates(steered).items()}


def reward(row: Mapping[str, Any]) -> int:
    """What a strength, or a feature, is chosen by: 1 on target, less 1 off target; -1 for a degenerate report."""
    return -1 if row["degenerate"] else int(row["on_target"]) - int(row["off_target"])
