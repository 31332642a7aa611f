"""A judge without a language model: it tests, word for word, the rule that an explanation states."""

import functools
from collections.abc import Callable, Iterable, Iterator

from interp.explainers import offline_explainer
from interp.explainers.explainer import OpenChatModel, ReadLabels
from interp.explainers.rules import Rule, Seen
from interp.scorers.judge import JUDGES, Question, Verdict


@JUDGES.register("offline")
class OfflineJudge:
    """A deterministic baseline. It reads only explanations that are rules, and of images it knows their labels alone.

    Marks are right to it if they touch a phrase of the rule, or are on the words that state its concept.
    """

    name, versions = offline_explainer.NAME, offline_explainer.VERSIONS

    def __init__(self, open_language_model: OpenChatModel | None = None, read_labels: ReadLabels = dict):
        self._labels = functools.cache(read_labels)

    def detect(self, questions: Iterable[Question]) -> Iterator[Verdict | None]:
        return (self._verdict(question, Rule.holds) for question in questions)

    def fuzz(self, questions: Iterable[Question]) -> Iterator[Verdict | None]:
        return (self._verdict(question, Rule.holds_for_marks) for question in questions)

    def _verdict(self, question: Question, holds: Callable[[Rule, Seen], bool]) -> Verdict | None:
        try:
            rule = _parse(question.explanation.removeprefix(offline_explainer.PREFIX))
        except ValueError:  # written by another explainer
            return None
        images = question.images or (None,) * len(question.lines)
        seen = (Seen.of(*shown, self._labels()) for shown in zip(question.lines, images, strict=True))
        return Verdict(tuple(int(holds(rule, each)) for each in seen))


@functools.lru_cache(maxsize=4096)
def _parse(sentence: str) -> Rule:
    return Rule.parse(sentence)
