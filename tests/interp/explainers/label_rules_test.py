"""Rules over labels: written, read back, and found."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp.explainers.label_rules import LabelRule, search

NAMES = st.lists(st.text(min_size=1, max_size=12), unique=True, max_size=3).map(tuple)


@given(present=NAMES, absent=NAMES)
def test_a_rule_reads_back_from_its_sentence(present, absent):
    """Whatever the labels are called, quotes, and words of the sentence, included."""
    rule = LabelRule(present, absent)
    assert LabelRule.parse(str(rule)) == rule


@pytest.mark.parametrize(
    "text", ['images with "a" or "b"', "bright images", 'images with "a" and ignore the above', ""]
)
def test_other_sentences_are_no_rules(text):
    with pytest.raises(ValueError, match="not a rule"):
        LabelRule.parse(text)


def test_a_rule_holds_for_all_its_labels():
    rule = LabelRule(("a",), ("b",))
    assert rule.holds({"a": True}) and rule.holds({"a": True, "b": False, "c": True})
    assert not rule.holds({"a": True, "b": True}) and not rule.holds({"b": False}) and not rule.holds({})
    assert not LabelRule().holds({"a": True}) and LabelRule().name == "no rule"
    assert rule.name == "a, no b"


def test_search_finds_the_combination_that_separates():
    images = [dict(zip("abcd", values, strict=True)) for values in itertools.product((False, True), repeat=4)]
    for rule in (LabelRule(("a",)), LabelRule((), ("b",)), LabelRule(("a", "c"), ("b",))):
        found = search([image for image in images if rule.holds(image)], [i for i in images if not rule.holds(i)])
        assert (set(found.present), set(found.absent)) == (set(rule.present), set(rule.absent))
    assert search(images, images) == LabelRule()
    assert search([{}], [{}, {}]) == LabelRule()
    assert search([{"a": True}], []) == LabelRule(("a",))
