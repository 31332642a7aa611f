"""How much a report claims: each finding weighed by its size or severity and its certainty, and what two reports share.

A finding's extent is 1 where it is small or mild, 3 where it is large or severe, else 2; half of that where it is
uncertain, and 0 where it is denied or not mentioned. So one number counts a finding that is added, one that grows and
one that is hedged, and a large effusion that is missed counts three times as much as a trace of one.
"""

from collections.abc import Iterable, Mapping

from maira_jax.studies.study import Finding

Place = tuple[str, str, str]  # side, zone and name of a finding; empty where a report does not say

_STEPS = {"small": 1.0, None: 2.0, "moderate": 2.0, "large": 3.0}


def extents(findings: Iterable[Finding]) -> dict[Place, float]:
    """The extent of each finding that is present or uncertain, by its place; of several at one place the largest."""
    found: dict[Place, float] = {}
    for finding in findings:
        if finding.status != "absent" and finding.name != "no finding":
            place = (finding.side or "", finding.zone or "", finding.name)
            extent = _STEPS[finding.size] * (0.5 if finding.status == "uncertain" else 1.0)
            found[place] = max(extent, found.get(place, 0.0))
    return found


def graded_f1(reference: Mapping[Place, float], report: Mapping[Place, float]) -> float:
    """The F1 of what a report claims against a reference, in extents: 1 where both claim the same, or nothing.

    A finding with another size counts for the smaller of the two extents, one at another place not at all.

    Args:
      reference, report: what `extents` gave.
    """
    shared = sum(min(extent, report.get(place, 0.0)) for place, extent in reference.items())
    total = sum(reference.values()) + sum(report.values())
    return 2 * shared / total if total else 1.0
