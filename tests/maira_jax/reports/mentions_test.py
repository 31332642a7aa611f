"""Sentences, clauses, and the words that belong to each mention."""

import pytest

from maira_jax.reports.mentions import clauses, find_mentions, sentences


def test_sentences_end_at_full_stops_but_not_within_numbers() -> None:
    report = "The tube is 2.5 cm above the carina. 1. No effusion;\nheart  size normal"
    assert list(sentences(report)) == ["the tube is 2.5 cm above the carina", "no effusion", "heart size normal"]


def test_a_conjunction_begins_a_clause() -> None:
    assert clauses("no effusion, but there is oedema") == ["no effusion,", "but there is oedema"]
    assert len(clauses("small " * 250)) == 3


@pytest.mark.parametrize(
    ("clause", "words"),
    [
        ("small effusion and large heart", [("pleural effusion", "small ", ""), ("cardiomegaly", " and ", "")]),
        ("effusion and oedema are new", [("pleural effusion", "", "  are new"), ("oedema", " and ", " are new")]),
        ("left effusion or oedema", [("pleural effusion", "left ", ""), ("oedema", "left  or ", "")]),
        ("effusion is larger, oedema", [("pleural effusion", "", " is larger"), ("oedema", ", ", "")]),
    ],
)
def test_words_belong_to_one_mention_or_are_shared(clause: str, words: list[tuple[str, str, str]]) -> None:
    assert [(m.name, m.before, m.after) for m in find_mentions(clause)] == words
