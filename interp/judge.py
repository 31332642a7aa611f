"""Judges: they explain features from exemplars and say which unseen examples an explanation fits."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Protocol

from interp import rules
from interp.explain import ExplainTask
from maira_jax.errors import UserError


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
      examples: contexts as `interp.explain.shown_text` writes them.
    """

    explanation: str
    examples: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A judge's answer to a `DetectTask`: for every example whether the feature fires on it, 0 or 1."""

    answers: tuple[int, ...]
    cost: float = 0.0


class Judge(Protocol):
    """Tasks come in batches, so that a judge may work on many at once; answers are in the order of the tasks.

    Attributes:
      name: stands beside every result.
      prompt_version: of the prompts or rules that it works by.
    """

    name: str
    prompt_version: str

    def explain(self, tasks: Sequence[ExplainTask]) -> list[Explanation | None]:
        """An explanation for each task; None where none could be had."""

    def detect(self, tasks: Sequence[DetectTask]) -> list[Verdict | None]:
        """A verdict for each task; None where none could be had."""


class OfflineJudge:
    """A deterministic baseline without a language model.

    It explains a feature by the phrases and sections that best separate its activating examples from the others, and
    detects by testing, word for word, what the explanation's text says. It knows no synonyms and sees no images.
    """

    name = "offline judge (no language model)"
    prompt_version = "offline-rules-1"
    prefix = "Offline judge: "

    def explain(self, tasks: Sequence[ExplainTask]) -> list[Explanation | None]:
        return [Explanation(rule.label, f"{self.prefix}{rule}.") for rule in rules.search(tasks)]

    def detect(self, tasks: Sequence[DetectTask]) -> list[Verdict | None]:
        return [self._detect(task) for task in tasks]

    def _detect(self, task: DetectTask) -> Verdict | None:
        try:
            rule = _parse(task.explanation.removeprefix(self.prefix))
        except ValueError:  # written by another judge
            return None
        return Verdict(tuple(int(rule.holds(example)) for example in task.examples))


@functools.lru_cache(maxsize=4096)
def _parse(sentence: str) -> rules.Rule:
    return rules.Rule.parse(sentence)


def make_judge(name: str) -> Judge:
    """The judge that a config names.

    Raises:
      UserError: there is no such judge.
    """
    if name != "offline":
        raise UserError(f"interpret.judge {name!r} does not exist: the only judge is 'offline'")
    return OfflineJudge()
