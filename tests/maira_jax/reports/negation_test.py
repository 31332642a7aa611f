"""Denied, present, hedged and unmentioned findings, by construct: hand-written sentences in negations.txt."""

import re
from pathlib import Path

import pytest

from maira_jax.reports.labeller import extract

STATUS = {"-": "absent", "+": "present", "?": "uncertain", "0": None}
_LINE = re.compile(r"([-+?0]) (?:\[([a-z ]+)\] )?(.+)")


def suite() -> dict[str, list[tuple[str, str, str]]]:
    """Construct -> its sentences, each with the sign of its status and its finding."""
    found: dict[str, list[tuple[str, str, str]]] = {}
    for line in (Path(__file__).parent / "negations.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            construct = found.setdefault(line.removeprefix("## "), [])
        elif match := _LINE.match(line):
            construct.append((match[1], match[2] or "pneumothorax", match[3].replace("\\n", "\n")))
    return found


SUITE = suite()


def status_of(finding: str, text: str) -> str | None:
    statuses = {each.status for each in extract(text) if each.name == finding}
    return next((status for status in ("present", "uncertain", "absent") if status in statuses), None)


@pytest.mark.parametrize("construct", SUITE)
def test_status_by_construct(construct: str) -> None:
    wrong = [
        (sentence, status, STATUS[sign])
        for sign, finding, sentence in SUITE[construct]
        if (status := status_of(finding, sentence)) != STATUS[sign]
    ]
    assert not wrong


def test_the_suite_denies_in_three_hundred_ways() -> None:
    denied = {sentence for sentences in SUITE.values() for sign, _, sentence in sentences if sign == "-"}
    assert len(denied) >= 300 and len(SUITE) >= 12


def test_a_hedge_is_kept_with_its_finding() -> None:
    (finding,) = extract("The lucency may represent a small pneumothorax.")
    assert (finding.status, finding.hedge) == ("uncertain", "may represent")
    (finding,) = extract("A small pneumothorax cannot be entirely excluded.")
    assert finding.hedge == "cannot be entirely excluded"
    assert all(finding.hedge is None for finding in extract("No effusion. Small pneumothorax."))
