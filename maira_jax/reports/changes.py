"""What changed between two reports, and which of the changes are on target for a concept."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

from maira_jax.reports import labeller
from maira_jax.reports.extent import extents
from maira_jax.reports.labeller import ParsedReport
from maira_jax.reports.vocabulary.terms import CHEXPERT, DEVICES
from maira_jax.studies.concepts import FINDINGS
from maira_jax.studies.study import SIDES, ZONES, Finding

_ABOUT_ALL_FINDINGS = ("normal study", "no finding")
_ATTRIBUTES = ("size", "change", "tip")
_NAMES = sorted({*FINDINGS, *CHEXPERT, *DEVICES}, key=len, reverse=True)


@dataclasses.dataclass(frozen=True)
class TargetFindings:
    """The findings that a concept is about: a change of one of them is on target, of any other finding off target.

    Attributes:
      name: the finding; "" for a concept about no finding ("communication", "worse"), "*" for one about all findings.
      side: the finding's side, None for both.
      zone: the finding's zone, None for all.
    """

    name: str
    side: str | None = None
    zone: str | None = None

    @classmethod
    def of(cls, concept: str) -> "TargetFindings":
        """The findings of a concept's name, for example of "small left pleural effusion"."""
        if concept in _ABOUT_ALL_FINDINGS:
            return cls("*")
        name = next((name for name in _NAMES if name in concept), "")
        words = concept.replace(name, " ").split() if name else []
        side = next((side for side in SIDES if side in words), None)
        return cls(name, side, next((zone for zone in ZONES if zone in words), None))

    def include(self, finding: Finding) -> bool:
        """Whether the concept is about this finding at this place."""
        return self.name == "*" or (
            finding.name == self.name and self.side in (None, finding.side) and self.zone in (None, finding.zone)
        )


@dataclasses.dataclass(frozen=True)
class ReportChanges:
    """Differences from one report to another.

    Attributes:
      added: findings, at their places, that are present in the second report alone ("left pleural effusion"); one that
        becomes uncertain counts as another finding ("uncertain left pleural effusion").
      removed: findings that are present in the first report alone.
      changed: attributes of findings that are in both ("left pleural effusion size small > large").
      off_target: whether a finding that the concept is not about was added or removed.
      off_target_attributes: whether an attribute of such a finding changed.
      off_target_extent: by how much such findings changed, weighed by size and certainty (`maira_jax.reports.extent`).
      concepts: study-level concepts that changed, with "+" or "-" before the name.
    """

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]
    off_target: bool
    off_target_attributes: bool
    off_target_extent: float
    concepts: tuple[str, ...]

    @property
    def none(self) -> bool:
        """Whether nothing that the labeller recognises has changed."""
        return not (self.added or self.removed or self.changed or self.concepts)


# An original report is compared with many steered ones, and steered reports repeat themselves.
cached_parse = functools.lru_cache(maxsize=4096)(labeller.parse)


def _claims(report: ParsedReport) -> dict[tuple[str, ...], Finding]:
    """The findings that are present or uncertain, by place and name; denied and unmentioned ones are the same."""
    found = {}
    for finding in report.findings:
        if finding.status != "absent" and finding.name != "no finding":
            status = "uncertain" if finding.status == "uncertain" else None
            key = tuple(part for part in (status, finding.side, finding.zone, finding.name) if part)
            found[key] = finding
    return found


def _moved(first: ParsedReport, second: ParsedReport, on_target: Callable[[Finding], bool]) -> float:
    """The sum of the changes in extent of all findings that are not on target."""
    before, after = extents(first.findings), extents(second.findings)
    total = 0.0
    for side, zone, name in sorted({*before, *after}):
        if not on_target(Finding(name, "present", side or None, zone=zone or None)):
            total += abs(after.get((side, zone, name), 0.0) - before.get((side, zone, name), 0.0))
    return total


def compare(original: str, steered: str, concept: str, other_concepts: Sequence[str] = ()) -> ReportChanges:
    """Compares two reports.

    Args:
      original: the first report.
      steered: the second report.
      concept: the concept that was meant to change, or "" for none.
      other_concepts: further concepts that were meant to change with it.
    """
    first, second = cached_parse(original), cached_parse(steered)
    before, after = _claims(first), _claims(second)
    targets = [TargetFindings.of(name) for name in (concept, *other_concepts)]

    def on_target(finding: Finding) -> bool:
        return any(target.include(finding) for target in targets)

    added, removed = sorted(after.keys() - before.keys()), sorted(before.keys() - after.keys())
    moved = [after[key] for key in added] + [before[key] for key in removed]
    changed, off_target_attributes = [], False
    for key in sorted(before.keys() & after.keys()):
        for attribute in _ATTRIBUTES:
            old, new = getattr(before[key], attribute), getattr(after[key], attribute)
            if old != new:
                changed.append(f"{' '.join(key)} {attribute} {old} > {new}")
                off_target_attributes |= not on_target(before[key])
    was, now = first.concepts, second.concepts
    return ReportChanges(
        added=tuple(" ".join(key) for key in added),
        removed=tuple(" ".join(key) for key in removed),
        changed=tuple(changed),
        off_target=not all(on_target(finding) for finding in moved),
        off_target_attributes=off_target_attributes,
        off_target_extent=_moved(first, second, on_target),
        concepts=tuple(f"{'+' if now[name] else '-'}{name}" for name in was if was[name] != now[name]),
    )
