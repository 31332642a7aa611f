"""Reports as notebooks show them, and what differs between two of them."""

import dataclasses
import difflib

from markupsafe import Markup

from maira_jax.generation import grounding
from maira_jax.generation.grounding import Phrase
from maira_jax.generation.overlay import COLOURS
from maira_jax.inputs.image import to_grey, width_height
from maira_jax.reports import changes
from maira_jax.reports.changes import ReportChanges
from maira_jax.studies.study import Study
from steer.session import html


def word_changes(before: str, after: str) -> list[tuple[str, str]]:
    """How one text becomes another, word by word: runs of words, each "same", "removed" or "added"."""
    first, second = before.split(), after.split()
    runs = []
    for tag, i, j, k, m in difflib.SequenceMatcher(None, first, second, autojunk=False).get_opcodes():
        if tag == "equal":
            runs.append(("same", " ".join(first[i:j])))
            continue
        runs += [(name, " ".join(words)) for name, words in (("removed", first[i:j]), ("added", second[k:m])) if words]
    return runs


@dataclasses.dataclass(frozen=True)
class Report:
    """What the model wrote of a study.

    Attributes:
      study: the study.
      text: the findings, without boxes.
      phrases: of a grounded report, its findings with their boxes in fractions of the current frontal image.
      finished: whether the model ended it by itself; if not, it ran into the largest number of tokens.
    """

    study: Study
    text: str
    phrases: tuple[Phrase, ...] = ()
    finished: bool = True

    @classmethod
    def of(cls, study: Study, text: str, finished: bool, grounded: bool = False) -> "Report":
        """The report that a generated text is; of a grounded one, with its boxes on the original image."""
        if not grounded:
            return cls(study, text, (), finished)
        assert study.frontal is not None
        size, parsed = width_height(study.frontal), grounding.parse(text)
        phrases = tuple(
            Phrase(one.text, one.boxes and tuple(grounding.adjust_to_original(box, *size) for box in one.boxes))
            for one in parsed.phrases
        )
        return cls(study, parsed.plain, phrases, finished)

    def compare(self, other: "Report", concept: str = "") -> "ReportDifference":
        """What differs in another report, `concept` being what was meant to change."""
        return ReportDifference(self, other, concept)

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        end = "" if self.finished else " (cut off)"
        return f"Report of study {self.study.study_id}{end}:\n{self.text}"

    def _repr_html_(self) -> Markup:
        title = html.heading(f"Report of study {self.study.study_id}" + ("" if self.finished else " (cut off)"))
        if not self.phrases:
            picture = html.x_ray(to_grey(self.study.frontal)) if self.study.frontal is not None else html.EMPTY
            return title + picture + html.paragraph(self.text)
        assert self.study.frontal is not None
        located = [phrase for phrase in self.phrases if phrase.boxes]
        colours = {id(phrase): COLOURS[i % len(COLOURS)] for i, phrase in enumerate(located)}
        boxes = [(colours[id(phrase)], phrase.text, box) for phrase in located for box in phrase.boxes or ()]
        lines = html.join(
            Markup('<li style="color:{}">{}</li>').format(colours.get(id(phrase), "inherit"), phrase.text)
            for phrase in self.phrases
        )
        return title + html.x_ray(to_grey(self.study.frontal), boxes=boxes) + Markup("<ul>{}</ul>").format(lines)


@dataclasses.dataclass(frozen=True)
class ReportDifference:
    """Two reports of one study, and what differs.

    Attributes:
      before: the first report; after steering, the one that nothing was edited in.
      after: the second report.
      concept: the concept that was meant to change, or "".
      title: what was done, in words.
    """

    before: Report
    after: Report
    concept: str = ""
    title: str = ""

    @property
    def changes(self) -> ReportChanges:
        """The findings that were added, removed or changed, as the labeller reads both reports."""
        return changes.compare(self.before.text, self.after.text, self.concept)

    @property
    def words(self) -> list[tuple[str, str]]:
        """Runs of words, each with "same", "removed" or "added" before it."""
        return word_changes(self.before.text, self.after.text)

    def _findings(self) -> str:
        found = self.changes
        parts = (("added", found.added), ("removed", found.removed), ("changed", found.changed))
        return "; ".join(f"{name}: {', '.join(texts)}" for name, texts in parts if texts) or "no finding changed"

    def __repr__(self) -> str:
        marks = {"same": "{}", "removed": "[-{}-]", "added": "{{+{}+}}"}
        text = " ".join(marks[name].format(words) for name, words in self.words)
        return "\n".join(filter(None, (self.title, text, self._findings())))

    def _repr_html_(self) -> Markup:
        text = html.marked_changes(self.words)
        located = html.join(report._repr_html_() for report in (self.before, self.after) if report.phrases)
        words = html.paragraph(text) + html.paragraph(self._findings())
        return html.heading(self.title or "Two reports") + words + located
