"""Measures of a text alone: edit distance, repetition, degeneration."""

import random
import re
from functools import cache

import pytest

from maira_jax.phantom.world.latents import sample
from maira_jax.phantom.world.write import write_sections
from maira_jax.reports.text import degenerate, edit_distance, is_prose, marked_difference, repetition, rouge_l

CLEAR = "No consolidation or edema. No pleural effusion or pneumothorax. Heart size is normal. No pacemaker."
LEFT = CLEAR.replace("No pleural effusion or pneumothorax.", "Small left pleural effusion. No pneumothorax.")


def test_edit_distance_equals_the_definition() -> None:
    def slow(a: tuple[str, ...], b: tuple[str, ...]) -> int:
        @cache
        def distance(i: int, j: int) -> int:
            if not i or not j:
                return i + j
            same = distance(i - 1, j - 1) + (a[i - 1] != b[j - 1])
            return min(same, distance(i - 1, j) + 1, distance(i, j - 1) + 1)

        return distance(len(a), len(b))

    rng = random.Random(0)
    for _ in range(200):
        a, b = (tuple(rng.choices("abcd", k=rng.randrange(12))) for _ in range(2))
        assert edit_distance(list(a), list(b)) == slow(a, b)


def test_rouge_l_equals_the_definition() -> None:
    def slow(a: tuple[str, ...], b: tuple[str, ...]) -> int:
        @cache
        def length(i: int, j: int) -> int:
            if not i or not j:
                return 0
            both = length(i - 1, j - 1) + (a[i - 1] == b[j - 1])
            return max(both, length(i - 1, j), length(i, j - 1))

        return length(len(a), len(b))

    rng = random.Random(1)
    for _ in range(200):
        a, b = (tuple(rng.choices("abcd", k=rng.randrange(1, 12))) for _ in range(2))
        assert rouge_l(" ".join(a), ", ".join(b)) == 2 * slow(a, b) / (len(a) + len(b))
    assert rouge_l("", "...") == 1 and rouge_l("", "a") == rouge_l("a", "") == 0


@pytest.mark.parametrize(
    ("text", "finished", "reason"),
    [
        (LEFT, True, ""),
        (LEFT, False, "unfinished"),
        ("", True, "empty"),
        (" . . ", True, "empty"),
        ("the the the the", True, "repetition"),
        (CLEAR + " Pacemaker in place." * 4, True, "repetition"),
        ("left small left small left small left small effusion", True, "repetition"),
    ],
)
def test_degenerate_text(text: str, finished: bool, reason: str) -> None:
    assert degenerate(text, finished) == reason


def test_what_is_not_finite_is_degenerate() -> None:
    assert degenerate(LEFT, finished=True, finite=False) == "not finite"


def test_repetition_is_the_share_of_runs_said_before() -> None:
    assert repetition(CLEAR) == 0
    assert abs(repetition("a b c d " * 2) - 1 / 5) < 1e-9
    assert repetition("a b") == 0


def test_no_true_report_is_degenerate() -> None:
    latents = sample(0, 500, seed=5)
    for i in range(len(latents)):
        text = write_sections(latents, i, random.Random(i)).findings
        assert not degenerate(text, finished=True)


def test_a_marked_difference_holds_both_reports() -> None:
    for original, edited in ((LEFT, CLEAR), (CLEAR, LEFT), ("", CLEAR), (LEFT, ""), (LEFT, LEFT)):
        marked = marked_difference(original, edited)
        lost = re.sub(r" ?\{\+.*?\+\}", "", marked).replace("[-", "").replace("-]", "")
        gained = re.sub(r" ?\[-.*?-\]", "", marked).replace("{+", "").replace("+}", "")
        assert (lost.split(), gained.split()) == (original.split(), edited.split())
    assert marked_difference("No mass today.", "A mass today.") == "[-No-] {+A+} mass today."


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        (CLEAR, True),
        ("2 lines are seen. No effusion.", True),
        ("no effusion.", False),
        ("No effusion", False),
        ("No effusion.\nNo edema.", False),
        ("No <obj>effusion.", False),
        ("", False),
    ],
)
def test_prose_is_whole_sentences(report: str, expected: bool) -> None:
    assert is_prose(report) == expected
