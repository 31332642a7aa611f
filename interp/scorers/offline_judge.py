"""A judge without a language model: it tests, word for word, the rule that an explanation states."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator

from interp.exemplars.shown import shown_text, split_shown
from interp.explainers import offline_explainer
from interp.explainers.explainer import OpenChatModel, ReadLabels
from interp.explainers.rules import ANY, SHOWS, STATES, Rule, Seen, stated, words
from interp.scorers.judge import JUDGES, Question, Verdict
from maira_jax.inputs.tokens import SECTION_NAMES, Kind
from maira_jax.reports.mentions import sentences

_FINDINGS = SECTION_NAMES[Kind.FINDINGS]


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

    def find_intruder(self, questions: Iterable[Question]) -> Iterator[Verdict | None]:
        """The context that has least in common with the others, of the first such."""
        for question in questions:
            images = question.images or (None,) * len(question.lines)
            known = [_properties(Seen.of(*shown, self._labels())) for shown in zip(question.lines, images, strict=True)]
            shared = [sum(_likeness(own, other) for other in known) for own in known]
            intruder = shared.index(min(shared))
            yield Verdict(tuple(int(i == intruder) for i in range(len(known))))

    def favour(self, questions: Iterable[Question]) -> Iterator[Verdict | None]:
        """The report that states more of the rule's labels, or has its words in more sentences."""
        for question in questions:
            try:
                rule = _parse(question.explanation.removeprefix(offline_explainer.PREFIX))
            except ValueError:  # written by another explainer
                yield None
            else:
                first, second = (_aboutness(rule, report) for report in question.lines)
                yield Verdict((int(first > second), int(second > first)))

    def _verdict(self, question: Question, holds: Callable[[Rule, Seen], bool]) -> Verdict | None:
        try:
            rule = _parse(question.explanation.removeprefix(offline_explainer.PREFIX))
        except ValueError:  # written by another explainer
            return None
        images = question.images or (None,) * len(question.lines)
        seen = (Seen.of(*shown, self._labels()) for shown in zip(question.lines, images, strict=True))
        return Verdict(tuple(int(holds(rule, each)) for each in seen))


def _properties(seen: Seen) -> frozenset[tuple[str, str]]:
    """What a context has in common with others: its section, words, concepts that it states, labels of its image."""
    section, text = split_shown(seen.line)
    found = {"section": (section,), "word": words(text), "concept": stated(text), "label": seen.shows}
    return frozenset((kind, name) for kind, names in found.items() for name in names)


def _likeness(one: frozenset[tuple[str, str]], other: frozenset[tuple[str, str]]) -> float:
    """The Jaccard index of two sets that are not empty."""
    return len(one & other) / len(one | other)


def _aboutness(rule: Rule, report: str) -> int:
    """How many labels of the rule a report states, and sentences in it have its words; 0 of a rule that any text fits.

    A rule about images speaks of what they show, and so does the report. Where it says with which label the feature is
    strongest, only that counts.
    """
    concepts = {rule.strongest} if rule.strongest else {t.phrase for t in rule.terms if t.how in (STATES, SHOWS)}
    wordings = [dataclasses.replace(t, section=None) for t in rule.terms if t.how not in (ANY, STATES, SHOWS)]
    words_alone = Rule(tuple(wordings) if not rule.strongest else (), rule.without)
    lines = (Seen(shown_text(_FINDINGS, [sentence])) for sentence in sentences(report))
    return len(concepts & stated(report)) + sum(map(words_alone.holds, lines))


@functools.lru_cache(maxsize=4096)
def _parse(sentence: str) -> Rule:
    return Rule.parse(sentence)
