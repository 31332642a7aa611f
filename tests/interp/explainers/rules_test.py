"""Rules as sentences, and their search."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp.exemplars.shown import ImageAt, shown_text
from interp.explainers import rules
from interp.explainers.evidence import Example, ExplainTask
from interp.explainers.rules import AFFIRMS, ANY, DENIES, MENTIONS, SHOWS, STARTS, STATES, Rule, Seen, Term

PHRASES = st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=6)
SECTIONS = st.sampled_from([None, "findings", "prior report", "image"])
TERMS = st.one_of(
    st.builds(
        Term,
        st.sampled_from([MENTIONS, STARTS, AFFIRMS, DENIES, STATES, SHOWS]),
        st.lists(PHRASES, min_size=1, max_size=3).map(" ".join),
        SECTIONS,
    ),
    st.builds(Term, st.just(ANY), st.just(""), st.sampled_from(["findings", "prior report"])),
)


def example(text, section="findings", strength=1.0):
    tokens = tuple(" " + word for word in text.split())
    return Example(section, tokens, (strength,) * len(tokens))


def task(activating, others, feature=0):
    return ExplainTask(feature, tuple(map(example, activating)), tuple(example(text, strength=0.0) for text in others))


@given(
    st.lists(TERMS, max_size=3),
    st.lists(st.lists(PHRASES, min_size=1, max_size=2).map(" ".join), max_size=2),
    st.one_of(st.just(""), PHRASES),
)
def test_every_rule_is_read_back_from_its_sentence(terms, without, strongest):
    rule = Rule(tuple(terms), tuple(without), strongest) if terms else Rule(())
    assert Rule.parse(f"{rule}.") == rule


def test_sentences_read_well():
    rule = Rule((Term(MENTIONS, "pleural effusion", "findings"), Term(STARTS, "no")), ("large", "left"))
    assert str(rule) == (
        'text that mentions "pleural effusion" in the findings, or starts with "no", but without "large" or "left"'
    )
    assert rule.name == '"pleural effusion" / starts "no" without "large" / "left"'


@pytest.mark.parametrize("text", ["pleural effusions", "text that smells", 'text that mentions "a" or "b"'])
def test_other_sentences_are_refused(text):
    with pytest.raises(ValueError, match="not a rule"):
        Rule.parse(text)


def test_rules_hold_for_whole_words_in_order():
    rule = Rule((Term(MENTIONS, "pleural effusion"),), ("no",))
    assert rule.holds(Seen("findings: Small PLEURAL effusion."))
    assert rule.holds(Seen("findings: Nodule, pleural effusion."))  # "no" is a word, not a prefix
    assert not rule.holds(Seen("findings: No pleural effusion."))
    assert not rule.holds(Seen("findings: Effusion, pleural."))
    assert not rule.holds(Seen("findings: Pleural effusions."))
    assert Rule((Term(ANY, "", "image"),)).holds(Seen("image: <image>"))
    assert not Rule((Term(STARTS, "the", "findings"),)).holds(Seen("indication: The chest."))


def test_affirming_and_denying_depend_on_a_negation_before():
    affirms, denies = (Rule((Term(how, "pleural effusion"),)) for how in (AFFIRMS, DENIES))
    for line, yes, no in (
        ("findings: A pleural effusion, no pneumothorax.", True, False),
        ("findings: No pneumothorax or pleural effusion.", False, True),
        ("findings: Pleural effusion without growth of pleural effusion.", True, True),
        ("findings: Normal. Nodes.", False, False),
    ):
        assert (affirms.holds(Seen(line)), denies.holds(Seen(line))) == (yes, no), line


def test_candidates_hold_for_their_line():
    for text in ("No pleural effusion, and not any tube.", "Tube without no.", "no", "<image>"):
        seen = Seen(shown_text("findings", [text]), frozenset({"pacemaker"}))
        assert all(Rule((term,)).holds(seen) for term in rules._candidates(seen))


def test_search_finds_phrase_exception_and_disjunction():
    effusion = ["small pleural effusion", "large pleural effusion today", "a pleural effusion", "the pleural effusion"]
    denied = ["no pleural effusion", "no right pleural effusion", "no left pleural effusion"]
    heart = ["the heart is large", "small heart", "lungs are clear", "a rib", "today clear"]
    tube = ["endotracheal tube ends high", "tube in place", "low tube", "a tube is seen"]
    tasks = [task(effusion, denied + heart), task(effusion + tube, denied + heart), task(["a", "b"], ["a", "b"])]
    found = rules.search(tasks, {})
    assert found[0] == Rule((Term(STATES, "pleural effusion"),))
    assert set(found[1].terms) == {Term(MENTIONS, "tube"), Term(STATES, "pleural effusion")}
    assert found[2] == Rule(())
    # An exception that is no negation.
    (rule,) = rules.search(
        [task(effusion, ["old pleural effusion", "an old pleural effusion", "old heart", "lungs"])], {}
    )
    assert rule == Rule((Term(STATES, "pleural effusion"),), ("old",))
    assert rules.search(tasks, {}) == found


def test_search_uses_the_section_when_words_do_not_help():
    here = tuple(example(text, "technique") for text in ("ap view", "pa view", "portable view"))
    there = tuple(example(text, "findings") for text in ("ap view", "pa view", "portable view"))
    (rule,) = rules.search([ExplainTask(0, here, there)], {})
    assert [term.section for term in rule.terms] == ["technique"] and not rule.without


def test_strong_examples_count_more_than_weak_ones():
    strong, weak = [example("a tube", strength=1.0)] * 2, [example("the heart", strength=0.1)] * 6
    others = tuple(example(text, strength=0.0) for text in ("clear", "lungs", "the lungs", "heart", "a rib", "clear"))
    (rule,) = rules.search([ExplainTask(0, (*strong, *weak), others)], {})
    assert rule.terms[0] == Term(MENTIONS, "a tube")
    (rule,) = rules.search([ExplainTask(0, (*strong[:1], *[example("the heart")] * 6), others)], {})
    assert rule.terms[0] == Term(MENTIONS, "the heart")


def test_search_equals_trying_every_single_term():
    """The first step, against a loop over all candidates: no candidate separates the examples better."""
    rng = np.random.default_rng(0)
    vocabulary = ["heart", "lung", "clear", "no", "small", "left", "right", "effusion", "tube", "the", "is"]

    def sentences(n):
        return [" ".join(rng.choice(vocabulary, rng.integers(2, 6))) for _ in range(n)]

    for _ in range(20):
        one = task(sentences(12), sentences(12))
        (rule,) = rules.search([one], {})

        def separation(candidate, one=one):
            hits = np.mean([candidate.holds(Seen(e.text)) for e in one.activating])
            return hits - np.mean([candidate.holds(Seen(e.text)) for e in one.others])

        lines = [Seen(e.text) for e in (*one.activating, *one.others)]
        candidates = {term for line in lines for term in rules._candidates(line)}
        candidates = [t for t in candidates if sum(Rule((t,)).holds(line) for line in lines) >= 2]
        best = max(separation(Rule((term,))) for term in candidates)
        assert separation(Rule(rule.terms[:1])) == pytest.approx(best)
        assert separation(rule) >= best - 1e-9


def test_a_concept_is_stated_in_any_words_and_shown_by_an_image_of_a_study_with_it():
    stated = ["the heart is enlarged", "cardiomegaly", "there is cardiac enlargement", "an enlarged heart"]
    others = ["no cardiomegaly", "the heart is not enlarged", "the lungs are clear", "an enlarged vessel"]
    (rule,) = rules.search([task(stated, others)], {})
    assert rule == Rule((Term(STATES, "cardiomegaly"),)) and rule.name == "cardiomegaly"
    images = [Example("image", (" <image>",), (1.0,), ImageAt(f"s{i}", 4)) for i in range(8)]
    labels = {f"s{i}": {"pacemaker": i < 4, "cardiomegaly": i % 2 == 0} for i in range(8)}
    (rule,) = rules.search([ExplainTask(0, tuple(images[:4]), tuple(images[4:]))], labels)
    assert rule == Rule((Term(SHOWS, "pacemaker"),)) and rule.name == "pacemaker (image)"
    assert str(rule) == 'text that is part of an image with "pacemaker"'
    (rule,) = rules.search([ExplainTask(0, tuple(images), tuple(map(example, others)))], {})
    assert rule.name == "any image"  # and never by the name of its tokens


def test_a_feature_of_any_image_is_named_by_the_label_in_which_it_is_strongest():
    labels = {f"s{i}": {"pacemaker": i < 5} for i in range(12)}
    images = [Example("image", (" <image>",), (1.0 if i < 5 else 0.2,), ImageAt(f"s{i}", 4)) for i in range(12)]
    others = tuple(example(text, strength=0.0) for text in ("clear lungs", "the heart", "a rib"))
    (rule,) = rules.search([ExplainTask(0, tuple(images), others)], labels)
    assert rule == Rule((Term(ANY, "", "image"),), (), "pacemaker")
    assert rule.name == "pacemaker (image); weaker: any image"
    assert str(rule) == 'text that is any part of the image; strongest in images with "pacemaker"'
    assert rule.holds(Seen("image: <image>")), "where it is active at all, it is active without the label, too"
    inactive = tuple(Example("image", (" <image>",), (0.0,), ImageAt(f"s{i}", 4)) for i in range(5, 12))
    (rule,) = rules.search([ExplainTask(0, tuple(images[:5]), inactive)], labels)
    assert rule == Rule((Term(SHOWS, "pacemaker"),)), "a rule of the label says it already"


def test_marks_are_right_on_the_words_that_state_a_concept():
    rule = Rule((Term(STATES, "cardiomegaly"),))
    for line, right in (
        ("findings: The heart is <<enlarged>>.", True),
        ("findings: The <<heart>> is enlarged.", True),
        ("findings: The heart is enlarged <<today>>.", False),
        ("findings: The heart is not <<enlarged>>.", False),
    ):
        assert rule.holds_for_marks(Seen(line)) == right, line
