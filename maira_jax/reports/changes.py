"""What differs between two reports, and which of the differences were meant."""

import dataclasses
import functools
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from maira_jax.phantom.world.latents import FINDINGS
from maira_jax.reports.labeller import ParsedReport, parse
from maira_jax.reports.vocabulary.terms import CHEXPERT, DEVICES
from maira_jax.studies.study import SIDES, ZONES, Finding

_EVERYTHING = ("normal study", "no finding")
_ATTRIBUTES = ("size", "change", "tip")
_LOOP_WORDS = 4


@dataclasses.dataclass(frozen=True)
class Scope:
    """The findings that a concept is about; a change of any other finding is off-target.

    Attributes:
      name: the finding, "" when the concept is about none ("communication", "worse"), "*" for all.
      side, zone: where, None for anywhere.
    """

    name: str
    side: str | None = None
    zone: str | None = None

    @classmethod
    def of(cls, concept: str) -> "Scope":
        """Reads a concept's name, for example "small left pleural effusion"."""
        if concept in _EVERYTHING:
            return cls("*")
        names = sorted({*FINDINGS, *CHEXPERT, *DEVICES}, key=len, reverse=True)
        name = next((n for n in names if n in concept), "")
        words = concept.replace(name, " ").split() if name else []
        side = next((side for side in SIDES if side in words), None)
        return cls(name, side, next((zone for zone in ZONES if zone in words), None))

    def covers(self, finding: Finding) -> bool:
        """Whether a finding, where it is, is what the concept is about."""
        return self.name == "*" or (
            finding.name == self.name and self.side in (None, finding.side) and self.zone in (None, finding.zone)
        )


@dataclasses.dataclass(frozen=True)
class Changes:
    """Differences from one report to another.

    Attributes:
      appeared, vanished: findings, at their places, that are present in one and not in the other
        ("left pleural effusion"); from or to uncertain counts ("uncertain left pleural effusion").
      changed: attributes of findings that are in both ("left pleural effusion size small > large").
      off_target: a finding outside the scope appeared or vanished.
      off_target_attributes: an attribute of a finding outside the scope changed.
      concepts: study-level concepts that changed, with "+" or "-" before the name.
    """

    appeared: tuple[str, ...]
    vanished: tuple[str, ...]
    changed: tuple[str, ...]
    off_target: bool
    off_target_attributes: bool
    concepts: tuple[str, ...]

    @property
    def none(self) -> bool:
        """Whether nothing that the reader of `maira_jax.reports.labeller` understands has changed."""
        return not (self.appeared or self.vanished or self.changed or self.concepts)


#: Reads a report; sweeps compare the same original with many others, and repeat themselves.
reading = functools.lru_cache(maxsize=4096)(parse)


def _claims(said: ParsedReport) -> dict[tuple[str, ...], Finding]:
    """What a report says to be there, present or uncertain; denials and silence are the same."""
    found = {}
    for finding in said.findings:
        if finding.status != "absent" and finding.name != "no finding":
            place = (finding.side, finding.zone, finding.name)
            doubt = "uncertain" if finding.status == "uncertain" else None
            found[tuple(part for part in (doubt, *place) if part)] = finding
    return found


def compare(original: str, steered: str, concept: str, also: Sequence[str] = ()) -> Changes:
    """Compares two reports, with `concept` (or "" for none), and what `also` names, as what was meant to change."""
    first, second = reading(original), reading(steered)
    before, after = _claims(first), _claims(second)
    scopes = [Scope.of(name) for name in (concept, *also)]

    def meant(finding: Finding) -> bool:
        return any(scope.covers(finding) for scope in scopes)

    appeared, vanished = sorted(after.keys() - before.keys()), sorted(before.keys() - after.keys())
    moved = [after[key] for key in appeared] + [before[key] for key in vanished]
    changed, off_attributes = [], False
    for key in sorted(before.keys() & after.keys()):
        for attribute in _ATTRIBUTES:
            old, new = getattr(before[key], attribute), getattr(after[key], attribute)
            if old != new:
                changed.append(f"{' '.join(key)} {attribute} {old} > {new}")
                off_attributes |= not meant(before[key])
    was, now = first.concepts, second.concepts
    return Changes(
        appeared=tuple(" ".join(key) for key in appeared),
        vanished=tuple(" ".join(key) for key in vanished),
        changed=tuple(changed),
        off_target=not all(meant(finding) for finding in moved),
        off_target_attributes=off_attributes,
        concepts=tuple(f"{'+' if now[name] else '-'}{name}" for name in was if was[name] != now[name]),
    )


def words_of(report: str) -> list[str]:
    """A report's words and marks, lower case."""
    return re.findall(r"\w+|[^\w\s]", report.lower())


def edit_distance(first: list[str], second: list[str]) -> int:
    """Fewest insertions, deletions and replacements of words that turn one list into the other."""
    ids: dict[str, int] = {}
    a = np.array([ids.setdefault(word, len(ids)) for word in first], np.int64)
    b = np.array([ids.setdefault(word, len(ids)) for word in second], np.int64)
    steps = np.arange(len(b) + 1)
    row = steps.copy()
    for i, word in enumerate(a):
        best = np.minimum(row[1:] + 1, row[:-1] + (b != word))
        row = np.concatenate([[i + 1], best])
        row = np.minimum.accumulate(row - steps) + steps  # insertions, all at once
    return int(row[-1])


def repetition(report: str) -> float:
    """Share of a report's runs of four words that it has said before; 0 for fewer than five words."""
    words = words_of(report)
    runs = [tuple(words[i : i + _LOOP_WORDS]) for i in range(len(words) - _LOOP_WORDS + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def degenerate(report: str, finished: bool, finite: bool = True) -> str:
    """Why a report is no report, or "" if it is one.

    "not finite": it was not chosen by finite numbers. "empty": it has no words. "unfinished": it did not end by itself.
    "repetition": a run of words is said again at once three times over, or a run of four words makes up a third of the
    text.
    """
    if not finite:
        return "not finite"
    words = words_of(report)
    if not any(word.isalnum() for word in words):
        return "empty"
    for length in range(1, 13):
        same = [words[i] == words[i + length] for i in range(len(words) - length)]
        run = 0
        for equal in same:
            run = run + 1 if equal else 0
            if run >= 2 * length and run >= 3:
                return "repetition"
    runs = Counter(tuple(words[i : i + _LOOP_WORDS]) for i in range(len(words) - _LOOP_WORDS + 1))
    if runs and max(runs.values()) >= 4 and max(runs.values()) * _LOOP_WORDS * 3 >= len(words):
        return "repetition"
    return "" if finished else "unfinished"
