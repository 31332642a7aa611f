"""Rules that say in words which contexts a feature fires on: found by search, written as a sentence, read back.

A rule is a disjunction of terms with exceptions: text that mentions "pleural effusion" in the findings, or mentions
"effusions", but without "no". Terms are about words, about what the labeller of reports reads in the text, and for
images about the study's labels: no rule looks at pixels. A label of images may say as well where the feature is
strongest. The sentence is the rule: whoever scores it has nothing else.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Self, TypeAlias

import numpy as np
import scipy.sparse as sp

from interp.exemplars.shown import MARK_BEGIN, MARK_END, ImageAt, shown_text, split_shown
from interp.explainers.evidence import ExplainTask
from interp.explainers.strongest import strongest_label
from maira_jax.reports import labeller

Labels: TypeAlias = Mapping[str, Mapping[str, bool]]  # of studies, by study id

MENTIONS, STARTS, ANY = "mentions", "starts with", "is any part of"
# Mentions without, and with, a negating word somewhere before.
AFFIRMS, DENIES = "affirms", "denies"
# What the text states by the labeller, however it is worded; and what an image shows by its study's labels.
STATES, SHOWS = "states", "is part of an image with"
_NOTHING = "nothing sets its texts apart"
_STRONGEST = "; strongest in images with "
_MAX_TERMS, _MAX_EXCEPTIONS = 3, 2
_MIN_GAIN = 0.05  # of a class of examples, for a further term or exception
_MAX_WORDS = 3  # of a phrase
# Features searched together; bounds the dense [features, candidates] matrices.
_FEATURES = 128

_NEGATIONS = frozenset({"no", "not", "without", "never"})
_NEGATION = re.compile(f" (?:{'|'.join(sorted(_NEGATIONS))}) ")
_WORD = re.compile(r"<[^<>\s]+>|[a-z0-9]+(?:[-'/.][a-z0-9]+)*")
_MARKS = re.compile(f"{re.escape(MARK_BEGIN)}|{re.escape(MARK_END)}")
_TERM = re.compile(
    rf'(?:({MENTIONS}|{STARTS}|{AFFIRMS}|{DENIES}|{STATES}|{SHOWS}) "([^"]+)"(?: in the ([a-z ]+))?|'
    rf"({ANY}) the ([a-z ]+))$"
)
_QUOTED = re.compile(r'"([^"]+)"')


@functools.lru_cache(maxsize=1 << 16)
def words(text: str) -> tuple[str, ...]:
    """Lower-case words without punctuation, and without tokens such as <image>."""
    return tuple(word for word in _WORD.findall(text.lower()) if word[0] != "<")


@functools.lru_cache(maxsize=1 << 16)
def stated(text: str) -> frozenset[str]:
    """The concepts that the labeller of reports reads in a text."""
    return frozenset(name for name, holds in labeller.concepts(text).items() if holds)


@dataclasses.dataclass(frozen=True)
class Seen:
    """What rules see of a context.

    Attributes:
      line: its section and words, as `interp.exemplars.shown.shown_text` writes it.
      shows: of an image the labels of its study; empty for text.
    """

    line: str
    shows: frozenset[str] = frozenset()

    @classmethod
    def of(cls, line: str, image: ImageAt | None, labels: Labels) -> Self:
        """A context that is a part of an image, or of a text (None)."""
        known = labels.get(image.study_id, {}) if image is not None else {}
        return cls(line, frozenset(name for name, holds in known.items() if holds))


@dataclasses.dataclass(frozen=True)
class Term:
    """One condition on a context.

    Attributes:
      how: `MENTIONS`, `STARTS`, `AFFIRMS`, `DENIES`, `STATES`, `SHOWS` or `ANY`.
      phrase: words with single spaces, or the name of a concept; empty for `ANY`.
      section: the section that the phrase must be in, or None for any.
    """

    how: str
    phrase: str
    section: str | None = None

    def __str__(self) -> str:
        if self.how == ANY:
            return f"{ANY} the {self.section}"
        return f'{self.how} "{self.phrase}"' + (f" in the {self.section}" if self.section else "")

    def holds(self, seen: Seen) -> bool:
        """Whether it holds for a context."""
        section, text = split_shown(seen.line)
        if self.section is not None and self.section != section:
            return False
        if self.how == ANY:
            return True
        if self.how in (STATES, SHOWS):
            return self.phrase in (stated(text) if self.how == STATES else seen.shows)
        padded = _padded(text)
        phrase = f" {self.phrase} "
        if self.how == STARTS:
            return padded.startswith(phrase)
        if self.how == MENTIONS:
            return phrase in padded
        negation = _NEGATION.search(padded)
        at = negation.start() if negation else len(padded)
        return 0 <= padded.find(phrase) < at if self.how == AFFIRMS else padded.rfind(phrase) > at


@dataclasses.dataclass(frozen=True)
class Rule:
    """Any of `terms`, and none of the words `without`; a rule without terms holds nowhere.

    Attributes:
      terms: the conditions.
      without: the exceptions.
      strongest: the label of images in which the feature is strongest, or "". A rule holds in spite of it.
    """

    terms: tuple[Term, ...]
    without: tuple[str, ...] = ()
    strongest: str = ""

    def __str__(self) -> str:
        if not self.terms:
            return _NOTHING
        exceptions = " or ".join(f'"{phrase}"' for phrase in self.without)
        sentence = "text that " + ", or ".join(map(str, self.terms)) + f", but without {exceptions}" * bool(exceptions)
        return sentence + f'{_STRONGEST}"{self.strongest}"' * bool(self.strongest)

    @property
    def name(self) -> str:
        """A short name."""
        if not self.terms:
            return "no rule"
        names = [self._short(term) for term in self.terms]
        sections = {term.section for term in self.terms}
        where = f" ({next(iter(sections))})" if len(sections) == 1 and self.terms[0].how != ANY else ""
        exceptions = " / ".join(f'"{phrase}"' for phrase in self.without)
        name = " / ".join(names) + where.replace(" (None)", "") + (f" without {exceptions}" if exceptions else "")
        return f"{self.strongest} (image); weaker: {name}" if self.strongest else name

    @staticmethod
    def _short(term: Term) -> str:
        if term.how == ANY:
            return f"any {term.section}"
        if term.how in (STATES, SHOWS):
            return term.phrase + " (image)" * (term.how == SHOWS)
        return {AFFIRMS: "affirmed ", DENIES: "denied ", STARTS: "starts "}.get(term.how, "") + f'"{term.phrase}"'

    @classmethod
    def parse(cls, sentence: str) -> Self:
        """Reads a rule back from what `str` gave.

        Raises:
          ValueError: the sentence is no rule.
        """
        sentence = sentence.strip().rstrip(".")
        if sentence == _NOTHING:
            return cls(())
        if not sentence.startswith("text that "):
            raise ValueError(f"not a rule: {sentence!r}")
        body, _, strongest = sentence.removeprefix("text that ").partition(_STRONGEST)
        body, _, exceptions = body.partition(", but without ")
        terms = []
        for part in body.split(", or "):
            match = _TERM.match(part)
            if match is None:
                raise ValueError(f"not a rule: {sentence!r}")
            how, phrase, section, any_part, whole = match.groups()
            terms.append(Term(ANY, "", whole) if any_part else Term(how, phrase, section))
        return cls(tuple(terms), tuple(_QUOTED.findall(exceptions)), strongest.strip('"'))

    def holds(self, seen: Seen) -> bool:
        """Whether the rule holds for a context."""
        padded = _padded(split_shown(seen.line)[1])
        return any(term.holds(seen) for term in self.terms) and not any(
            f" {phrase} " in padded for phrase in self.without
        )

    def holds_for_marks(self, seen: Seen) -> bool:
        """Whether it holds for a context (as `evidence.marked` writes it) because of a marked word."""
        section, text = split_shown(seen.line)
        plain, inside = "", []
        for i, run in enumerate(_MARKS.split(text)):  # outside and inside the marks in turn
            plain += run
            inside += [i % 2 == 1] * len(run)
        unmarked = dataclasses.replace(seen, line=shown_text(section, [plain]))
        if not self.holds(unmarked):
            return False
        rest = "".join(letter for letter, mark in zip(plain, inside, strict=True) if not mark)
        found = [(match.group(), any(inside[match.start() : match.end()])) for match in _WORD.finditer(plain.lower())]
        return any(
            term.phrase not in stated(rest)  # the marked words are those that state it
            if term.how == STATES
            else term.how in (ANY, SHOWS) or _marked(term.phrase.split(), found)
            for term in self.terms
            if term.holds(unmarked)
        )


def _padded(text: str) -> str:
    """The words of a text, joined and padded with single spaces."""
    return f" {' '.join(words(text))} "


def _marked(phrase: list[str], found: Sequence[tuple[str, bool]]) -> bool:
    """Whether the phrase is somewhere in words with a mark on one of its words."""
    n = len(phrase)
    return any(
        [word for word, _ in found[i : i + n]] == phrase and any(mark for _, mark in found[i : i + n])
        for i in range(len(found) - n + 1)
    )


def search(tasks: Sequence[ExplainTask], labels: Labels) -> list[Rule]:
    """The rule for each task, by greedy search; `labels` are those of studies whose images are among the examples.

    Each step adds the term or the exception that raises true positive rate minus false positive rate most, while that
    gains 5 % of a class and two of its examples. All features of a batch are searched at once, by sparse products.
    """
    rules: list[Rule] = []
    for begin in range(0, len(tasks), _FEATURES):
        rules += _search_batch(tasks[begin : begin + _FEATURES], labels)
    return rules


def _candidates(seen: Seen) -> dict[Term, None]:
    """Every term that holds for a context, phrases of up to three words."""
    section, text = split_shown(seen.line)
    found = {Term(ANY, "", section): None}  # a dict, because the order of a set differs from process to process
    found |= {
        Term(how, name): None for how, names in ((STATES, stated(text)), (SHOWS, seen.shows)) for name in sorted(names)
    }
    sequence = words(text)
    negation = next((i for i, word in enumerate(sequence) if word in _NEGATIONS), len(sequence))
    for n in range(1, _MAX_WORDS + 1):
        for i in range(len(sequence) - n + 1):
            phrase = " ".join(sequence[i : i + n])
            if not i <= negation < i + n:
                found[Term(AFFIRMS if i < negation else DENIES, phrase)] = None
            for where in (None, section):
                found[Term(MENTIONS, phrase, where)] = None
                if i == 0:
                    found[Term(STARTS, phrase, where)] = None
    return found


def _incidence(lines: Sequence[Seen], times: np.ndarray) -> tuple[sp.csr_matrix, list[Term]]:
    """Which candidate holds for which line, [lines, candidates], and the candidates.

    Candidates that hold for a single example are left out; `times` [lines] says how many examples read like each line.
    """
    number: dict[Term, int] = {}
    rows, columns = [], []
    for row, line in enumerate(lines):
        for term in _candidates(line):
            rows.append(row)
            columns.append(number.setdefault(term, len(number)))
    holds = sp.csr_matrix((np.ones(len(rows), np.float32), (rows, columns)), shape=(len(lines), len(number)))
    kept = np.flatnonzero(times @ holds >= 2)
    terms = list(number)
    return holds[:, kept].tocsr(), [terms[i] for i in kept]


def _preference(terms: Sequence[Term]) -> np.ndarray:
    """Breaks ties.

    Concepts before words, and the general before the special; anywhere before in one section, mentioned before narrower
    ways, long phrases before short ones.
    """
    return np.array(
        [
            2e-4 - 2e-5 * len(term.phrase.split())
            if term.how in (STATES, SHOWS)
            else -2e-4 * (term.section is not None) - 1e-4 * (term.how != MENTIONS) + 2e-5 * len(term.phrase.split())
            for term in terms
        ],
        np.float32,
    )


def _search_batch(tasks: Sequence[ExplainTask], labels: Labels) -> list[Rule]:
    lines = [
        [Seen.of(example.text, example.image, labels) for example in (*task.activating, *task.others)] for task in tasks
    ]
    unique = sorted({line for group in lines for line in group}, key=lambda seen: (seen.line, sorted(seen.shows)))
    place = {line: i for i, line in enumerate(unique)}
    doc = np.array([place[line] for group in lines for line in group], np.int64)  # [examples]
    holds, terms = _incidence(unique, np.bincount(doc, minlength=len(unique)))  # [lines, candidates]
    if not terms:
        return [Rule(()) for _ in tasks]
    preference = _preference(terms)
    may_except = np.array([term.how == MENTIONS and term.section is None for term in terms])
    owner = np.repeat(np.arange(len(tasks)), [len(group) for group in lines])  # [examples]
    weight = np.concatenate([_weights(task) for task in tasks]).astype(np.float32)
    # The minimal gain: of activating examples for a term, of the others for an exception. [tasks, 2]
    worth = np.maximum([[2 / max(len(task.activating), 1), 2 / max(len(task.others), 1)] for task in tasks], _MIN_GAIN)
    chosen: list[list[Term]] = [[] for _ in tasks]
    without: list[list[str]] = [[] for _ in tasks]
    covered, excepted = np.zeros(len(doc), bool), np.zeros(len(doc), bool)
    searching = np.ones(len(tasks), bool)

    def gains(mask: np.ndarray) -> np.ndarray:
        per_line = sp.csr_matrix((weight[mask], (owner[mask], doc[mask])), shape=(len(tasks), len(unique)))
        return (per_line @ holds).toarray()

    while searching.any():
        add = gains(~covered & ~excepted) + preference
        drop = np.where(may_except, -preference - gains(covered & ~excepted), -np.inf)  # short exceptions
        add[[len(group) >= _MAX_TERMS for group in chosen]] = -np.inf
        drop[
            [not terms_ or len(group) >= _MAX_EXCEPTIONS for terms_, group in zip(chosen, without, strict=True)]
        ] = -np.inf
        best = np.stack([add.argmax(1), drop.argmax(1)], axis=1)
        value = np.stack([add.max(1), drop.max(1)], axis=1)
        which = value.argmax(1)
        # The first term only has to be better than nothing; each later step must pay for its words.
        min_gain = np.where([bool(group) for group in chosen], worth[np.arange(len(tasks)), which] * 0.999, 1e-3)
        searching &= value.max(1) > min_gain
        candidate = best[np.arange(len(tasks)), which]
        for task in np.flatnonzero(searching):
            if which[task] == 0:
                chosen[task].append(terms[candidate[task]])
            else:
                without[task].append(terms[candidate[task]].phrase)
        hit = np.asarray(holds[doc, candidate[owner]]).ravel() > 0
        covered |= hit & (searching & (which == 0))[owner]
        excepted |= hit & (searching & (which == 1))[owner]
    return [
        _rule(task, [seen.shows for seen in group], found, exceptions)
        for task, group, found, exceptions in zip(tasks, lines, chosen, without, strict=True)
    ]


def _rule(task: ExplainTask, shows: Sequence[frozenset[str]], terms: Sequence[Term], without: Sequence[str]) -> Rule:
    """The rule of what was found, which begins with the label that the feature measures where one is known."""
    label = strongest_label(task, shows) if terms else ""
    own = [term for term in terms if term.how == SHOWS and term.phrase == label]
    rest = [term for term in terms if term not in own]
    return Rule((*own, *rest), tuple(without), "" if own else label)


def _weights(task: ExplainTask) -> np.ndarray:
    """What each example adds to true positive rate minus false positive rate when the rule holds for it.

    Activating examples count in proportion to their strength: what a feature fires on weakly is mostly noise, and rules
    that hold for it too have more words, say less, and hardly score better.
    """
    strength = np.array([max(example.activations) for example in task.activating])
    others = np.full(len(task.others), -1 / max(len(task.others), 1))
    return np.concatenate([strength / max(strength.sum(), 1e-12), others])
