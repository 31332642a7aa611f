"""The offline judge: rules as sentences, their search, and detection scoring."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp.exemplars import selection
from interp.explainers import rules
from interp.explainers.evidence import Example, ExplainTask, assemble, shown_text
from interp.explainers.judge import DetectTask, OfflineJudge, Verdict
from interp.explainers.rules import AFFIRMS, ANY, DENIES, MENTIONS, STARTS, Rule, Term
from interp.scorers import detection, statistics

PHRASES = st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=6)
SECTIONS = st.sampled_from([None, "findings", "prior report", "image"])
TERMS = st.one_of(
    st.builds(
        Term,
        st.sampled_from([MENTIONS, STARTS, AFFIRMS, DENIES]),
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


def test_example_marks_runs_of_strong_tokens_and_lists_strengths():
    shown = Example("findings", (" Small", " pleural", " effus", "ion", "."), (0.0, 0.31, 0.9, 1.0, 0.05))
    assert shown.text == "findings: Small pleural effusion."
    assert shown.marked() == "findings: Small <<pleural effusion>>."
    assert shown.strengths == (0, 4, 9, 10, 1)
    assert Example("image", ("<image>",), (1.0,)).marked() == "image: <<‹image›>>"


@given(st.lists(TERMS, max_size=3), st.lists(st.lists(PHRASES, min_size=1, max_size=2).map(" ".join), max_size=2))
def test_every_rule_is_read_back_from_its_sentence(terms, without):
    rule = Rule(tuple(terms), tuple(without) if terms else ())
    assert Rule.parse(f"{rule}.") == rule


def test_sentences_read_well():
    rule = Rule((Term(MENTIONS, "pleural effusion", "findings"), Term(STARTS, "no")), ("large", "left"))
    assert str(rule) == (
        'text that mentions "pleural effusion" in the findings, or starts with "no", but without "large" or "left"'
    )
    assert rule.label == '"pleural effusion" / starts "no" without "large" / "left"'


@pytest.mark.parametrize("text", ["pleural effusions", "text that smells", 'text that mentions "a" or "b"'])
def test_other_sentences_are_refused(text):
    with pytest.raises(ValueError, match="not a rule"):
        Rule.parse(text)


def test_rules_hold_for_whole_words_in_order():
    rule = Rule((Term(MENTIONS, "pleural effusion"),), ("no",))
    assert rule.holds("findings: Small PLEURAL effusion.")
    assert rule.holds("findings: Nodule, pleural effusion.")  # "no" is a word, not a prefix
    assert not rule.holds("findings: No pleural effusion.")
    assert not rule.holds("findings: Effusion, pleural.")
    assert not rule.holds("findings: Pleural effusions.")
    assert Rule((Term(ANY, "", "image"),)).holds("image: <image>")
    assert not Rule((Term(STARTS, "the", "findings"),)).holds("indication: The chest.")


def test_affirming_and_denying_depend_on_a_negation_before():
    affirms, denies = (Rule((Term(how, "pleural effusion"),)) for how in (AFFIRMS, DENIES))
    for line, yes, no in (
        ("findings: A pleural effusion, no pneumothorax.", True, False),
        ("findings: No pneumothorax or pleural effusion.", False, True),
        ("findings: Pleural effusion without growth of pleural effusion.", True, True),
        ("findings: Normal. Nodes.", False, False),
    ):
        assert (affirms.holds(line), denies.holds(line)) == (yes, no), line


def test_candidates_hold_for_their_line():
    for text in ("No pleural effusion, and not any tube.", "Tube without no.", "no", "<image>"):
        line = shown_text("findings", [text])
        assert all(Rule((term,)).holds(line) for term in rules._candidates(line))


def test_search_finds_phrase_exception_and_disjunction():
    effusion = ["small pleural effusion", "large pleural effusion today", "a pleural effusion", "the pleural effusion"]
    denied = ["no pleural effusion", "no right pleural effusion", "no left pleural effusion"]
    heart = ["the heart is large", "small heart", "lungs are clear", "a rib", "today clear"]
    tube = ["endotracheal tube ends high", "tube in place", "low tube", "a tube is seen"]
    tasks = [task(effusion, denied + heart), task(effusion + tube, denied + heart), task(["a", "b"], ["a", "b"])]
    found = rules.search(tasks)
    assert found[0] == Rule((Term(AFFIRMS, "pleural effusion"),))
    assert set(found[1].terms) == {Term(MENTIONS, "tube"), Term(AFFIRMS, "pleural effusion")}
    assert found[2] == Rule(())
    # An exception that is no negation.
    (rule,) = rules.search([task(effusion, ["old pleural effusion", "an old pleural effusion", "old heart", "lungs"])])
    assert rule == Rule((Term(MENTIONS, "pleural effusion"),), ("old",))
    assert rules.search(tasks) == found


def test_search_uses_the_section_when_words_do_not_help():
    here = tuple(example(text, "technique") for text in ("ap view", "pa view", "portable view"))
    there = tuple(example(text, "findings") for text in ("ap view", "pa view", "portable view"))
    (rule,) = rules.search([ExplainTask(0, here, there)])
    assert [term.section for term in rule.terms] == ["technique"] and not rule.without


def test_strong_examples_count_more_than_weak_ones():
    strong, weak = [example("a tube", strength=1.0)] * 2, [example("the heart", strength=0.1)] * 6
    others = tuple(example(text, strength=0.0) for text in ("clear", "lungs", "the lungs", "heart", "a rib", "clear"))
    (rule,) = rules.search([ExplainTask(0, (*strong, *weak), others)])
    assert rule.terms[0] == Term(MENTIONS, "a tube")
    (rule,) = rules.search([ExplainTask(0, (*strong[:1], *[example("the heart")] * 6), others)])
    assert rule.terms[0] == Term(MENTIONS, "the heart")


def test_search_equals_trying_every_single_term():
    """The first step, against a loop over all candidates: no candidate separates the examples better."""
    rng = np.random.default_rng(0)
    vocabulary = ["heart", "lung", "clear", "no", "small", "left", "right", "effusion", "tube", "the", "is"]

    def sentences(n):
        return [" ".join(rng.choice(vocabulary, rng.integers(2, 6))) for _ in range(n)]

    for _ in range(20):
        one = task(sentences(12), sentences(12))
        (rule,) = rules.search([one])

        def separation(candidate, one=one):
            hits = np.mean([candidate.holds(e.text) for e in one.activating])
            return hits - np.mean([candidate.holds(e.text) for e in one.others])

        lines = [e.text for e in (*one.activating, *one.others)]
        candidates = {term for line in lines for term in rules._candidates(line)}
        candidates = [t for t in candidates if sum(Rule((t,)).holds(line) for line in lines) >= 2]
        best = max(separation(Rule((term,))) for term in candidates)
        assert separation(Rule(rule.terms[:1])) == pytest.approx(best)
        assert separation(rule) >= best - 1e-9


def test_offline_judge_scores_from_the_explanation_alone():
    judge = OfflineJudge()
    (answer,) = judge.explain([task(["a tube", "low tube"], ["clear", "heart"])])
    assert answer.text.startswith("Offline judge: ") and "offline judge" in judge.name and answer.cost == 0
    lines = ("findings: The tube.", "findings: The heart.", "indication: Tube?")
    assert OfflineJudge().detect([DetectTask(answer.text, lines)]) == [Verdict((1, 0, 1))]
    assert judge.detect([DetectTask("Features of tubes and lines", lines)]) == [None]


def rows(split, kind, count, decile=None):
    return [
        {
            "split": split, "kind": kind, "decile": i % 10 if decile else None, "section": "findings",
            "tokens": [f" {split}", f" {kind}", f" {i}"], "activations": [0.0, 1.0 * (kind != "random"), 0.0],
            "study_id": f"s{i}", "position": i, "max_activation": 1.0 * (kind != "random"), "peak": 1,
        }
        for i in range(count)
    ]  # fmt: skip


def test_explainer_and_scorer_see_different_splits():
    table = [
        row
        for split in ("train", "held_out")
        for row in rows(split, "top", 3) + rows(split, "decile", 20, True) + rows(split, "random", 20)
    ]
    shown = assemble(7, table, 20)
    assert all("train" in e.text and "top" not in e.text for e in (*shown.activating, *shown.others))
    assert (len(shown.activating), len(shown.others)) == (20, 20)
    examples = detection.detection_set(7, table, 10, seed=0)
    assert all("held_out" in line and "top" not in line for line in examples.lines)
    assert examples.truth.sum() == 20 and len(examples.truth) == 40
    assert np.bincount(examples.decile[examples.truth]).tolist() == [2] * 10
    assert 0 < examples.truth[:20].sum() < 20  # shuffled
    prompts = examples.tasks("x", 7)
    assert [len(prompt.examples) for prompt in prompts] == [7] * 5 + [5]
    assert detection.detection_set(7, table, 10, seed=0).lines == examples.lines
    assert detection.detection_set(7, table, 10, seed=1).lines != examples.lines


def test_detection_set_is_balanced_or_refused():
    table = rows("held_out", "decile", 20, True) + rows("held_out", "random", 12)
    examples = detection.detection_set(0, table, 10, seed=0)
    assert examples.truth.sum() == 12 and len(examples.truth) == 24
    assert detection.detection_set(0, table, 15, seed=0) == "silent in fewer than 15 of the sampled held-out contexts"
    assert detection.detection_set(0, table, 25, seed=0) == "active in fewer than 25 held-out contexts"


def test_score_against_counting():
    truth = np.array([True] * 6 + [False] * 6)
    decile = np.array([0, 0, 1, 9, 9, 9] + [-1] * 6)
    answers = np.array([1, 0, 1, 1, 1, -1, 0, 0, 0, 1, -1, 0])
    kind = np.array(
        [selection.DECILE] * 6 + [selection.RANDOM] * 3 + [selection.NEAREST, selection.NEAREST, selection.STUDY]
    )
    study = np.array([0, 0, 1, 2, 3, 4, 0, 5, 6, 7, 7, 4])
    found = statistics.score(truth, decile, kind, study, answers, 500, 0)
    assert found.against_random == pytest.approx((4 / 5 + 1) / 2)
    assert found.against_hard == pytest.approx((4 / 5 + 1 / 2) / 2)
    assert found.by_negative == {"random": 1.0, "nearest": 0.0, "same study": 1.0}
    for name, (low, high) in found.intervals.items():
        assert low <= getattr(found, name) <= high, name
    assert found.recall == 4 / 5 and found.precision == 4 / 5 and found.f1 == 0.8
    assert found.accuracy == 8 / 10 and found.balanced_accuracy == pytest.approx((4 / 5 + 4 / 5) / 2)
    assert found.by_decile[:2] == (0.5, 1.0) and found.by_decile[9] == 1.0 and found.by_decile[5] is None
    assert (found.n_examples, found.n_failed) == (10, 2)


class HalfDeafJudge:
    """Answers by coin, and not at all to every fourth prompt."""

    name, prompt_version = "coin", "1"

    def explain(self, tasks):
        return [None for _ in tasks]

    def detect(self, tasks):
        rng = np.random.default_rng(0)
        return [
            None if i % 4 == 3 else Verdict(tuple(rng.integers(0, 2, len(t.examples))), 0.5)
            for i, t in enumerate(tasks)
        ]


def test_a_judge_without_skill_scores_at_chance_and_failures_are_counted_apart():
    table = rows("held_out", "decile", 50, True) + rows("held_out", "random", 50)
    sets = [detection.detection_set(feature, table, 10, seed=0) for feature in range(60)]
    found = detection.run(HalfDeafJudge(), sets, ["x"] * 60, 5, 100, 0)
    assert all(score.n_failed == 25 and score.n_examples == 75 and cost == 7.5 for score, cost in found)
    # 60 sets of 75 coins: standard error 0.5 / sqrt(4500) = 0.0075.
    assert np.mean([score.balanced_accuracy for score, _ in found]) == pytest.approx(0.5, abs=0.03)


def test_intervals_cover_the_truth_and_widen_with_dependence():
    """Of 200 sets from a judge whose balanced accuracy is 0.7, about 95 % have 0.7 in their interval.

    In a second round the examples of a study are answered alike: only whole studies tell how much that costs.
    """
    rng = np.random.default_rng(0)
    n, studies = 120, 30
    truth = np.arange(n) % 2 == 0
    study = np.arange(n) // 4
    kind = np.where(truth, selection.DECILE, selection.RANDOM)
    for alike in (False, True):
        covered, width = 0, []
        for _ in range(200):
            luck = rng.random(studies)[study] if alike else rng.random(n)
            answers = np.where(luck < 0.7, truth, ~truth).astype(int)
            found = statistics.score(truth, np.where(truth, 3, -1), kind, study, answers, 400, 0)
            low, high = found.intervals["balanced_accuracy"]
            covered += low <= 0.7 <= high
            width.append(high - low)
        assert 0.88 <= covered / 200 <= 0.99
        # Twice as wide: four examples a study count as one.
        assert np.mean(width) == pytest.approx(0.33 if alike else 0.165, rel=0.15)


def test_measures_equal_their_definitions_on_random_answers():
    rng = np.random.default_rng(1)
    truth, answers = rng.random(80) < 0.5, rng.integers(-1, 2, 80)
    kind = np.where(truth, selection.DECILE, rng.integers(selection.RANDOM, len(selection.KINDS), 80))
    found = statistics.score(truth, np.where(truth, 0, -1), kind, rng.integers(0, 20, 80), answers, 50, 0)
    kept = answers >= 0
    yes, true = answers[kept] == 1, truth[kept]
    assert found.accuracy == pytest.approx((yes == true).mean())
    assert found.precision == pytest.approx(true[yes].mean()) and found.recall == pytest.approx(yes[true].mean())
    assert found.f1 == pytest.approx(2 * (yes & true).sum() / (yes.sum() + true.sum()))
    assert found.balanced_accuracy == pytest.approx((yes[true].mean() + (~yes[~true]).mean()) / 2)
    hard = kind[kept] > selection.RANDOM
    assert found.against_hard == pytest.approx((yes[true].mean() + (~yes[~true & hard]).mean()) / 2)
