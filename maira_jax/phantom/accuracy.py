"""How accurate generated reports are: the findings that they mention, against what is true of each study."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from maira_jax.checkpoint import convert
from maira_jax.generation.report_writer import ReportWriter, write_reports
from maira_jax.inputs.image import ImageConfig
from maira_jax.inputs.tokens import Tokenizer
from maira_jax.model import maira2
from maira_jax.model.config import Maira2Config
from maira_jax.reports.labeller import extract
from maira_jax.studies.study import Finding, Study

MEASURES = ("presence", "found", "denied", "side", "size", "zone", "tip", "comparison", "invented")
_EXPLANATION = """presence: mentioned as present where it is, and as absent where it is not (no mention is wrong)
found / denied: presence where it is present / absent
side: exactly the right sides; size, zone, tip: at each place where the finding is
comparison: new, worse, improved, unchanged or resolved; invented: a comparison where there is no prior study
A missed finding has all its attributes wrong, and so does one whose attribute is not mentioned."""
_BATCH_SIZE = 50


@dataclasses.dataclass(frozen=True)
class AccuracyTable:
    """Counts of right answers, by finding and measure.

    Attributes:
      rows: finding -> measure -> (right answers, questions); "all" pools the findings. The first number of "invented"
        counts invented comparisons, so that less is better.
      n_reports: number of reports that were compared.
    """

    rows: dict[str, dict[str, tuple[int, int]]]
    n_reports: int

    def rate(self, finding: str, measure: str) -> float | None:
        """Share of right answers; None where there was no question."""
        right, asked = self.rows[finding].get(measure, (0, 0))
        return right / asked if asked else None

    def __str__(self) -> str:
        width = max(len(name) for name in self.rows) + 2
        lines = ["".ljust(width) + "".join(measure.rjust(17) for measure in MEASURES)]
        for name, row in self.rows.items():
            cells = []
            for measure in MEASURES:
                right, asked = row.get(measure, (0, 0))
                cells.append(f"{right / asked:.1%} of {asked}".rjust(17) if asked else "-".rjust(17))
            lines.append(name.ljust(width) + "".join(cells))
        return "\n".join([f"{self.n_reports} reports", *lines, _EXPLANATION])


def checkpoint_writer(directory: Path, max_new_tokens: int) -> ReportWriter:
    """A writer of greedy texts of at most `max_new_tokens` tokens, from a checkpoint in the Hugging Face layout."""
    cfg = Maira2Config.from_dir(directory)
    return ReportWriter(
        maira2.unstacked(convert.to_flax(directory, cfg, np.dtype(np.float32))),
        cfg,
        Tokenizer.from_dir(directory),
        ImageConfig.from_dir(directory),
        batch_size=_BATCH_SIZE,
        max_new_tokens=max_new_tokens,
    )


def accuracy_of_writer(
    writer: ReportWriter, studies: Sequence[Study]
) -> tuple[AccuracyTable, list[dict[str, str | None]]]:
    """Writes a report for every study and compares the reports with the truth.

    Args:
      writer: the model.
      studies: studies whose `truth` is known.

    Returns:
      The table, and one record per study: study_id, written, reference.
    """
    reports = write_reports(writer, studies)
    records = [
        {"study_id": study.study_id, "written": report, "reference": study.findings}
        for study, report in zip(studies, reports, strict=True)
    ]
    return accuracy_of_reports(studies, reports), records


def accuracy_of_reports(studies: Sequence[Study], reports: Sequence[str]) -> AccuracyTable:
    """Compares the findings of reports (`maira_jax.reports.labeller.extract`) with `Study.truth`.

    For each finding of the truth, with the questions in brackets:

    * presence (every study): the report has the finding as present, on any side, where it is present on one, and as
      absent where it is absent. A finding that is not mentioned, or hedged, is wrong.
    * found (studies that have it) and denied (studies that do not): presence, split.
    * side (studies that have a finding with sides): the report's set of sides is the true one.
    * size, zone, tip (each true place that has the attribute): the report has the finding at this place with this
      value. The place of a zone is its side.
    * comparison (each place with a true change, resolved ones included): the report has the change there. A resolved
      finding must be absent at that place, as resolved.
    * invented (each present place in studies where no change is known): the report has a change there.

    Args:
      studies: the studies; those without `truth` are left out.
      reports: one report per study.
    """
    counts: dict[str, dict[str, list[int]]] = {}
    known = [(study, report) for study, report in zip(studies, reports, strict=True) if study.truth is not None]
    for study, report in known:
        assert study.truth is not None
        reported = extract(report)
        has_changes = any(finding.change for finding in study.truth)
        for name in dict.fromkeys(finding.name for finding in study.truth):
            true = [finding for finding in study.truth if finding.name == name]
            claimed = [finding for finding in reported if finding.name == name]
            for measure, right in _answers(true, claimed, has_changes):
                for row in (name, "all"):
                    cell = counts.setdefault(row, {}).setdefault(measure, [0, 0])
                    cell[0] += right
                    cell[1] += 1
    rows = {name: {m: (c[0], c[1]) for m, c in row.items()} for name, row in counts.items()}
    if "all" in rows:
        rows["all"] = rows.pop("all")
    return AccuracyTable(rows, len(known))


def _answers(true: list[Finding], reported: list[Finding], has_changes: bool) -> list[tuple[str, bool]]:
    """(measure, whether it is right) for one finding of one study.

    Args:
      true: what is true of the finding, at each place.
      reported: what the report says of it.
      has_changes: whether the truth of the study has any change.
    """
    present = [finding for finding in true if finding.status == "present"]
    claimed = [finding for finding in reported if finding.status == "present"]
    denied = any(finding.status == "absent" for finding in reported)
    hedged = any(finding.status == "uncertain" for finding in reported)
    right = bool(claimed) if present else denied and not claimed and not hedged
    answers = [("presence", right), ("found" if present else "denied", right)]
    if any(finding.side for finding in present):
        answers.append(("side", {f.side for f in present} == {f.side for f in claimed}))
    for finding in present:
        there = [f for f in claimed if f.side == finding.side and finding.zone in (None, f.zone)]
        if finding.zone:
            answers.append(("zone", bool(there)))
        for measure, field in (("size", "size"), ("tip", "tip"), ("comparison", "change")):
            value = getattr(finding, field)
            if value:
                answers.append((measure, any(getattr(f, field) == value for f in there)))
        if not has_changes:
            answers.append(("invented", any(f.change for f in there)))
    for finding in true:
        if finding.change == "resolved":
            there = [f for f in reported if (f.side, f.zone) == (finding.side, finding.zone)]
            answers.append(("comparison", any(f.change == "resolved" for f in there)))
    return answers
