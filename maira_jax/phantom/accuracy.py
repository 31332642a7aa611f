"""How true generated reports are: what they state against what is known of each study."""

import dataclasses
from collections.abc import Sequence

from maira_jax.reports.labeller import extract
from maira_jax.studies.study import Finding, Study

MEASURES = ("presence", "found", "denied", "side", "size", "zone", "tip", "comparison", "invented")
_HELP = """presence: stated present where it is, absent where it is not (silence is wrong)
found / denied: presence where it is present / absent
side: all sides right, and none too many; size, zone, tip: of each place where the finding is
comparison: new, worse, improved, unchanged or resolved; invented: no prior study, yet a comparison
A missed finding has all its attributes wrong, and so does one whose attribute is not stated."""


@dataclasses.dataclass
class ReportCard:
    """Counts of right answers.

    Attributes:
      rows: finding -> measure -> (right, asked). "all" pools the findings. In "invented" the first
        number is the comparisons made up, so less is better there.
      reports: how many reports were read.
    """

    rows: dict[str, dict[str, tuple[int, int]]]
    reports: int

    def rate(self, finding: str, measure: str) -> float | None:
        """Share of right answers; None where nothing was asked."""
        right, asked = self.rows[finding].get(measure, (0, 0))
        return right / asked if asked else None

    def lowest(self, measure: str) -> float:
        """The rate of the finding that does worst (1.0 where no finding has the measure)."""
        rates = [self.rate(name, measure) for name in self.rows if name != "all"]
        return min((rate for rate in rates if rate is not None), default=1.0)

    def __str__(self) -> str:
        width = max(len(name) for name in self.rows) + 2
        lines = ["".ljust(width) + "".join(measure.rjust(17) for measure in MEASURES)]
        for name, row in self.rows.items():
            cells = []
            for measure in MEASURES:
                right, asked = row.get(measure, (0, 0))
                cells.append(f"{right / asked:.1%} of {asked}".rjust(17) if asked else "-".rjust(17))
            lines.append(name.ljust(width) + "".join(cells))
        return "\n".join([f"{self.reports} reports", *lines, _HELP])


def report_card(studies: Sequence[Study], reports: Sequence[str]) -> ReportCard:
    """Compares what reports state (`maira_jax.reports.labeller.extract`) with `Study.truth`.

    For each finding of the truth, with `asked` in brackets:

    * presence (every study): the report states that the finding is present, on any side, where it
      is present on one, and states that it is absent where it is absent. A finding that is not
      mentioned, or hedged, is wrong.
    * found (studies that have it) and denied (studies that do not): presence, split.
    * side (studies that have a finding with sides): the set of sides stated is the true one.
    * size, zone, tip (each true place that has the attribute): the report states the finding at
      this place with this value. The place of a zone is its side.
    * comparison (each place with a true change, resolved ones included): the report states it
      there. A resolved finding must be denied at that place as resolved.
    * invented (each present place in studies where no change is known): a change is stated.

    Args:
      studies: with `truth`; those without are left out.
      reports: one text a study.
    """
    counts: dict[str, dict[str, list[int]]] = {}
    known = [(s, r) for s, r in zip(studies, reports, strict=True) if s.truth is not None]
    for study, report in known:
        assert study.truth is not None
        stated = extract(report)
        compared = any(fact.change for fact in study.truth)
        for name in dict.fromkeys(fact.name for fact in study.truth):
            facts = [fact for fact in study.truth if fact.name == name]
            said = [finding for finding in stated if finding.name == name]
            for measure, right in _answers(facts, said, compared):
                for row in (name, "all"):
                    cell = counts.setdefault(row, {}).setdefault(measure, [0, 0])
                    cell[0] += right
                    cell[1] += 1
    rows = {name: {m: (c[0], c[1]) for m, c in row.items()} for name, row in counts.items()}
    if "all" in rows:
        rows["all"] = rows.pop("all")
    return ReportCard(rows, len(known))


def _answers(facts: list[Finding], said: list[Finding], compared: bool) -> list[tuple[str, bool]]:
    """(measure, right) for one finding of one study."""
    true = [fact for fact in facts if fact.status == "present"]
    claimed = [finding for finding in said if finding.status == "present"]
    denied = any(finding.status == "absent" for finding in said)
    hedged = any(finding.status == "uncertain" for finding in said)
    right = bool(claimed) if true else denied and not claimed and not hedged
    answers = [("presence", right), ("found" if true else "denied", right)]
    if any(fact.side for fact in true):
        answers.append(("side", {f.side for f in true} == {f.side for f in claimed}))
    for fact in true:
        there = [f for f in claimed if f.side == fact.side and fact.zone in (None, f.zone)]
        if fact.zone:
            answers.append(("zone", bool(there)))
        for measure, field in (("size", "size"), ("tip", "tip"), ("comparison", "change")):
            value = getattr(fact, field)
            if value:
                answers.append((measure, any(getattr(f, field) == value for f in there)))
        if not compared:
            answers.append(("invented", any(f.change for f in there)))
    for fact in facts:
        if fact.change == "resolved":
            gone = [f for f in said if (f.side, f.zone) == (fact.side, fact.zone)]
            answers.append(("comparison", any(f.change == "resolved" for f in gone)))
    return answers
