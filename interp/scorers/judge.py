"""What a judge is: it answers the questions that scorers ask about contexts, and that steering asks about reports."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from interp.exemplars.shown import ImageAt
from interp.explainers.explainer import OpenChatModel, ReadLabels
from maira_jax.run.registry import Registry


@dataclasses.dataclass(frozen=True)
class Question:
    """One explanation and a few contexts, or two reports.

    Attributes:
      explanation: `Explanation.text`.
      lines: the contexts, with or without marks (see `interp.exemplars.shown`).
      images: for each context the image that it is a part of, or None; empty: none is part of an image.
    """

    explanation: str
    lines: tuple[str, ...]
    images: tuple[ImageAt | None, ...] = ()


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The answer to a question.

    Attributes:
      answers: 0 or 1 for each context.
      cost: what it cost in US dollars.
    """

    answers: tuple[int, ...]
    cost: float = 0.0


class Judge(Protocol):
    """Answers questions, a batch at a time; verdicts are in the order of the questions, None where none could be had.

    Attributes:
      name: who judges, for the record.
      versions: names of the prompts or rules that it works by.
    """

    @property
    def name(self) -> str: ...

    @property
    def versions(self) -> tuple[str, ...]: ...

    def detect(self, questions: Iterable[Question]) -> Iterator[Verdict | None]:
        """Whether the feature is active in each context."""

    def fuzz(self, questions: Iterable[Question]) -> Iterator[Verdict | None]:
        """Whether the marked tokens of each context are those on which the feature is active."""

    def find_intruder(self, questions: Iterable[Question]) -> Iterator[Verdict | None]:
        """1 for the context of each question that does not belong; nobody looks at the explanation."""

    def favour(self, questions: Iterable[Question]) -> Iterator[Verdict | None]:
        """1 for the one of two reports, the question's lines, that is more about the explanation; for neither of equal
        ones."""


JUDGES: Registry[Callable[[OpenChatModel, ReadLabels], Judge]] = Registry("interpret.judge")
