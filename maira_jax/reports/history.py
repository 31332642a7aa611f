"""History span rate: how much of a report compares the study with an earlier one.

Without an earlier image such words are made up: the fault of report generators that radiologists complain of most. The
measure is lexical, by class of phrase (`vocabulary.history.PHRASES`); its name is that of arXiv 2602.23676.
"""

import functools
import re
from collections.abc import Iterator
from typing import NamedTuple

from maira_jax.reports import labeller
from maira_jax.reports.vocabulary.history import NOT_HISTORY, PHRASES
from maira_jax.reports.vocabulary.pattern import blank

_WORD = re.compile(r"\w+(?:['-]\w+)*")
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9])|\s*\n+\s*")
# What joins two phrases, or a phrase to what it is said of, and goes with it.
_JOINED = re.compile(r"^[\s,]*(?:(?:and|but|is|are|has|have|as|in|of) )*[\s,]*$")
_LEFT_OVER = re.compile(r"[\s,]*\b(?:is|are|has|have|appears?|remains?|and|but|which|in|as|the)?[\s,]*$")


class HistorySpan(NamedTuple):
    """A phrase of a report that compares with an earlier study: its class, and where it begins and ends."""

    kind: str
    start: int
    end: int


def history_spans(report: str) -> list[HistorySpan]:
    """The phrases of a report that compare it with an earlier study, in order; none overlap."""
    text = blank(report.lower(), NOT_HISTORY)
    found = [
        HistorySpan(kind, *match.span())
        for kind, pattern in PHRASES.items()
        for match in pattern.finditer(text)
        if match.end() > match.start()
    ]
    kept: list[HistorySpan] = []
    for span in sorted(found, key=lambda span: span.start - span.end):  # the longest first; the sort is stable
        if all(span.end <= other.start or span.start >= other.end for other in kept):
            kept.append(span)
    return sorted(kept, key=lambda span: span.start)


def history_rates(report: str) -> dict[str, float]:
    """The share of a report's words that stand in history spans of each class; without words 0."""
    words = [match.start() for match in _WORD.finditer(report)]
    counts = dict.fromkeys(PHRASES, 0)
    for span in history_spans(report):
        counts[span.kind] += sum(span.start <= start < span.end for start in words)
    return {kind: count / max(len(words), 1) for kind, count in counts.items()}


cached_rates = functools.lru_cache(maxsize=4096)(history_rates)  # an original report is compared with many steered ones


def history_rate(report: str) -> float:
    """The share of a report's words that stand in history spans of any class."""
    return sum(history_rates(report).values())


def sentences_of(report: str) -> Iterator[str]:
    """The sentences of a report as they are written, with their full stops, to be taken out or put together again.

    Not those of `mentions.sentences`, which are in lower case and end at semicolons and numbers of lists as well: a
    tenth of real reports would be divided otherwise.
    """
    yield from (sentence for sentence in _SENTENCE.split(report.strip()) if sentence)


def without_history(report: str) -> str:
    """A report without its history spans: what it says of the study as it is now.

    A sentence about what is there no longer, or that says nothing but how the study compares, is left out.
    """
    kept = (_without_history(sentence) for sentence in sentences_of(report))
    return " ".join(sentence for sentence in kept if sentence)


def _without_history(sentence: str) -> str:
    spans = history_spans(sentence)
    if not spans:
        return sentence
    if any(span.kind == "resolved" for span in spans):
        return ""
    pieces: list[str] = []
    end = 0
    for span in (*spans, HistorySpan("", len(sentence), len(sentence))):
        piece = sentence[end : span.start]
        pieces.append("" if pieces and _JOINED.match(piece) else piece)
        end = span.end
    text = re.sub(r"\s+", " ", " ".join(_LEFT_OVER.sub("", piece) for piece in pieces)).strip(" ,.")
    if not labeller.extract(text):
        return ""
    return f"{text[:1].upper()}{text[1:]}."
