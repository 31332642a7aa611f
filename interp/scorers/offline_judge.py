"""A judge without a language model: it tests, word for word, the rule that an explanation states."""

import functools
from collections.abc import Callable, Iterable, Iterator

from interp.explainers import offline_explainer
from interp.explainers.explainer import OpenChatModel
from interp.explainers.rules import Rule
from interp.scorers.judge import JUDGES, Question, Verdict


@JUDGES.register("offline")
class OfflineJudge:
    """A deterministic baseline. It reads only explanations that are rules, knows no synonyms and sees no images.

    Marks are right to it if they touch a phrase of the rule.
    """

    name, versions = offline_explainer.NAME, offline_explainer.VERSIONS

    def __init__(self, open_language_model: OpenChatModel | None = None):
        pass

    def detect(self, questions: Iterable[Question]) -> Iterator[Verdict | None]:
        return (_verdict(question, Rule.holds) for question in questions)

    def fuzz(self, questions: Iterable[Question]) -> Iterator[Verdict | None]:
        return (_verdict(question, Rule.holds_for_marks) for question in questions)


def _verdict(question: Question, holds: Callable[[Rule, str], bool]) -> Verdict | None:
    try:
        rule = _parse(question.explanation.removeprefix(offline_explainer.PREFIX))
    except ValueError:  # written by another explainer
        return None
    return Verdict(tuple(int(holds(rule, line)) for line in question.lines))


@functools.lru_cache(maxsize=4096)
def _parse(sentence: str) -> Rule:
    return Rule.parse(sentence)
