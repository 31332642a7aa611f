"""How near a report comes to a reference report, by rules alone."""

from typing import NamedTuple

from maira_jax.reports.changes import cached_parse
from maira_jax.reports.extent import extents, graded_f1
from maira_jax.reports.labeller import chexpert
from maira_jax.reports.text import rouge_l


class ReportQuality(NamedTuple):
    """What a report shares with a reference, each from 0 to 1.

    Attributes:
      words: ROUGE-L, the F1 of the longest common subsequence of words (Lin 2004).
      labels: F1 of the CheXpert observations that the labeller reads as present, "no finding" among them.
      findings: F1 of findings at their places, weighed by size and certainty (see `maira_jax.reports.extent`).
    """

    words: float
    labels: float
    findings: float

    @classmethod
    def of(cls, reference: str, report: str) -> "ReportQuality":
        """The quality of a report, measured against a reference."""
        expected, found = cached_parse(reference).findings, cached_parse(report).findings
        present = [
            {name for name, status in chexpert(findings).items() if status == "present"}
            for findings in (expected, found)
        ]
        total = sum(map(len, present))
        return cls(
            words=rouge_l(reference, report),
            labels=2 * len(present[0] & present[1]) / total if total else 1.0,
            findings=graded_f1(extents(expected), extents(found)),
        )
