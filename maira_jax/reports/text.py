"""Properties of reports by their text alone: differences in words, repetition, and whether one is degenerate."""

import difflib
import re
from collections import Counter

import numpy as np

_RUN_WORDS = 4  # words in a run whose repetitions are counted
_MAX_PERIOD = 12  # words of the longest loop that is looked for


def words_of(report: str) -> list[str]:
    """The words and punctuation marks of a report, in lower case."""
    return re.findall(r"\w+|[^\w\s]", report.lower())


def edit_distance(first: list[str], second: list[str]) -> int:
    """Smallest number of insertions, deletions and replacements of words that turn one list into the other."""
    ids: dict[str, int] = {}
    a = np.array([ids.setdefault(word, len(ids)) for word in first], np.int64)
    b = np.array([ids.setdefault(word, len(ids)) for word in second], np.int64)
    steps = np.arange(len(b) + 1)
    row = steps.copy()
    for i, word in enumerate(a):
        best = np.minimum(row[1:] + 1, row[:-1] + (b != word))
        row = np.concatenate([[i + 1], best])
        row = np.minimum.accumulate(row - steps) + steps  # all insertions at once
    return int(row[-1])


def rouge_l(first: str, second: str) -> float:
    """ROUGE-L of two reports: the F1 of their longest common subsequence of words; 1 of two without words."""
    ids: dict[str, int] = {}
    a, b = (
        np.array([ids.setdefault(word, len(ids)) for word in words_of(text) if word.isalnum()], np.int64)
        for text in (first, second)
    )
    if not len(a) or not len(b):
        return float(len(a) == len(b))
    row = np.zeros(len(b) + 1, np.int64)  # the longest one with each beginning of b
    for word in a:
        longer = np.maximum(row[1:], row[:-1] + (b == word))
        row = np.maximum.accumulate(np.concatenate([[0], longer]))
    return 2 * int(row[-1]) / (len(a) + len(b))


def marked_difference(original: str, edited: str) -> str:
    """The edited report in plain text, word by word: what it lost is in [-these-], and what it gained in {+these+}."""
    before, after = original.split(), edited.split()
    pieces: list[str] = []
    for what, low, high, start, stop in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        lost, gained = " ".join(before[low:high]), " ".join(after[start:stop])
        if what == "equal":
            pieces.append(gained)
        else:
            pieces += [f"[-{lost}-]"] * bool(lost) + [f"{{+{gained}+}}"] * bool(gained)
    return " ".join(pieces)


def repetition(report: str) -> float:
    """Share of the report's runs of four words that occur earlier in it; 0 with fewer than five words."""
    runs = _runs(words_of(report))
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def is_prose(report: str) -> bool:
    """Whether a report is whole sentences, as MAIRA-2 writes findings: it begins with a capital letter or a digit, ends
    with a full stop, and has neither line breaks nor mark-up."""
    return re.fullmatch(r"[A-Z0-9][^\n<>]*\.", report.strip()) is not None


def degenerate(report: str, finished: bool, finite: bool = True) -> str:
    """Why a generated text is not a report, or "" if it is one.

    Args:
      report: the text.
      finished: whether generation ended with the end token.
      finite: whether the model's logits were finite throughout.

    Returns:
      "not finite"; "empty": there are no words; "repetition": a run of words is repeated three times in succession, or
      a run of four words makes up a third of the text; "unfinished"; or "".
    """
    if not finite:
        return "not finite"
    words = words_of(report)
    if not any(word.isalnum() for word in words):
        return "empty"
    if _loops(words):
        return "repetition"
    runs = Counter(_runs(words))
    if runs and max(runs.values()) >= 4 and max(runs.values()) * _RUN_WORDS * 3 >= len(words):
        return "repetition"
    return "" if finished else "unfinished"


def _loops(words: list[str]) -> bool:
    """Whether some words follow themselves twice: for a single word, whether it occurs four times in succession."""
    for period in range(1, _MAX_PERIOD + 1):
        length = 0
        for word, later in zip(words, words[period:], strict=False):
            length = length + 1 if word == later else 0
            if length >= max(3, 2 * period):
                return True
    return False


def _runs(words: list[str]) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + _RUN_WORDS]) for i in range(len(words) - _RUN_WORDS + 1)]
