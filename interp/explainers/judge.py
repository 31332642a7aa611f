"""Judges: they explain features from exemplars and say which unseen examples an explanation fits."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

from interp.explainers import rules
from interp.explainers.evidence import ExplainTask, ImageAt


@dataclasses.dataclass(frozen=True)
class Explanation:
    """A judge's answer to an `ExplainTask`.

    Attributes:
      label: a few words.
      text: the explanation; scoring sees nothing else.
      cost: of the answer, in US dollars.
    """

    label: str
    text: str
    cost: float = 0.0


@dataclasses.dataclass(frozen=True)
class DetectTask:
    """One detection prompt.

    Attributes:
      explanation: `Explanation.text`.
      examples: contexts as `interp.explainers.evidence.shown_text` writes them.
      images: for each example the image that it is a part of, or None; empty: none is part of an image.
    """

    explanation: str
    examples: tuple[str, ...]
    images: tuple[ImageAt | None, ...] = ()


@dataclasses.dataclass(frozen=True)
class FuzzTask:
    """One fuzzing prompt.

    Attributes:
      explanation: `Explanation.text`.
      examples: contexts as `interp.explainers.evidence.marked` writes them.
    """

    explanation: str
    examples: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class SteerTask:
    """Two reports on one study.

    Attributes:
      explanation: of the feature that was changed.
      original, edited: the report as it is, and as it was written with the feature changed.
    """

    explanation: str
    original: str
    edited: str


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A judge's answer to a `SteerTask`.

    Attributes:
      on_target, off_target: how many differences are about what the explanation describes, and about anything else.
      concept, report, fluency: of the edited report, 0 to 2: how much of the explanation is in it, how far it is a
        report on a study, how it reads. AxBench's three scores, asked in one prompt.
      cost: of the answer, in US dollars.
    """

    on_target: int
    off_target: int
    concept: int
    report: int
    fluency: int
    cost: float = 0.0


Task: TypeAlias = ExplainTask | DetectTask | FuzzTask | SteerTask
# Gives the tasks of many features, a group a feature, anew at each call.
Groups: TypeAlias = Callable[[], Iterable[Sequence[Task]]]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A judge's answer to a `DetectTask` or a `FuzzTask`.

    Attributes:
      answers: for every example 0 or 1: whether the feature fires on it; whether its marked tokens are the right ones.
      cost: of the answer, in US dollars.
    """

    answers: tuple[int, ...]
    cost: float = 0.0


class Judge(Protocol):
    """Tasks come in batches, so that a judge may work on many at once; answers are in the order of the tasks.

    Attributes:
      name: stands beside every result.
      prompt_version: of the prompts or rules that it works by.
      identity: what else decides its answers, as plain values; results of another identity are another result.
    """

    name: str
    prompt_version: str
    identity: Mapping[str, Any]

    def announce(self, sample: Iterable[Sequence[Task]], n_features: int) -> None:
        """Says what all the work is going to be, from the tasks of a few of `n_features` features."""

    def prepare(self, what: str, tasks: Groups, n_features: int) -> None:
        """Takes note of all tasks of a phase, in groups of a feature each, before they are asked batch by batch.

        Raises:
          UserError: the work cannot go on.
        """

    def explain(self, tasks: Sequence[ExplainTask]) -> list[Explanation | None]:
        """An explanation for each task; None where none could be had."""

    def detect(self, tasks: Sequence[DetectTask]) -> list[Verdict | None]:
        """A verdict for each task; None where none could be had."""

    def fuzz(self, tasks: Sequence[FuzzTask]) -> list[Verdict | None]:
        """A verdict for each task; None where none could be had."""

    def usage(self) -> dict[str, Any]:
        """What was asked and spent so far, for the record."""

    def close(self) -> None:
        """Lets go of files."""


class OfflineJudge:
    """A deterministic baseline without a language model.

    It explains a feature by the phrases and sections that best separate its activating examples from the others, and
    detects by testing, word for word, what the explanation's text says. Marks are right to it if they touch a phrase of
    the explanation. It knows no synonyms and sees no images.
    """

    name = "offline judge (no language model)"
    prompt_version = "offline-rules-1"
    identity: Mapping[str, Any] = {}
    prefix = "Offline judge: "

    def announce(self, sample: Iterable[Sequence[Task]], n_features: int) -> None:
        pass

    def prepare(self, what: str, tasks: Groups, n_features: int) -> None:
        pass

    def explain(self, tasks: Sequence[ExplainTask]) -> list[Explanation | None]:
        return [Explanation(rule.label, f"{self.prefix}{rule}.") for rule in rules.search(tasks)]

    def detect(self, tasks: Sequence[DetectTask]) -> list[Verdict | None]:
        return [self._verdict(task, rules.Rule.holds) for task in tasks]

    def fuzz(self, tasks: Sequence[FuzzTask]) -> list[Verdict | None]:
        return [self._verdict(task, rules.Rule.holds_for_marks) for task in tasks]

    def usage(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        pass

    def _verdict(self, task: DetectTask | FuzzTask, test: Callable[[rules.Rule, str], bool]) -> Verdict | None:
        try:
            rule = _parse(task.explanation.removeprefix(self.prefix))
        except ValueError:  # written by another judge
            return None
        return Verdict(tuple(int(test(rule, example)) for example in task.examples))


@functools.lru_cache(maxsize=4096)
def _parse(sentence: str) -> rules.Rule:
    return rules.Rule.parse(sentence)
