"""Scorers: which examples they make, what they ask, and what judges without skill come to."""

import numpy as np
import pytest

from interp.exemplars.shown import ImageAt
from interp.explainers.evidence import Example, ExplainTask
from interp.explainers.offline_explainer import NAME, OfflineExplainer
from interp.scorers.detection import DetectionScorer
from interp.scorers.fuzzing import FuzzingScorer
from interp.scorers.intruder import IntruderScorer
from interp.scorers.judge import Question, Verdict
from interp.scorers.offline_judge import OfflineJudge
from interp.scorers.scorer import SCORERS, ScoreTask
from tests.helpers.judge import exemplar_rows


def scorer(kind=DetectionScorer, judge=None, seed=0, min_contexts=10, n_prompt=5):
    return kind(judge, min_contexts=min_contexts, n_prompt=n_prompt, n_bootstrap=100, seed=seed)


def example(text, strength=1.0):
    tokens = tuple(" " + word for word in text.split())
    return Example("findings", tokens, (strength,) * len(tokens))


def test_the_offline_judge_decides_from_the_explanation_alone():
    activating, others = (tuple(map(example, texts)) for texts in (("a tube", "low tube"), ("clear", "heart")))
    (answer,) = OfflineExplainer().explain([ExplainTask(0, activating, others)])
    assert answer.text.startswith("Offline judge: ") and "offline judge" in NAME and answer.cost == 0
    lines = ("findings: The tube.", "findings: The heart.", "indication: Tube?")
    assert list(OfflineJudge().detect([Question(answer.text, lines)])) == [Verdict((1, 0, 1))]
    assert list(OfflineJudge().detect([Question("Features of tubes and lines", lines)])) == [None]


def test_the_offline_judge_knows_an_image_by_the_labels_of_its_study():
    judge = OfflineJudge(read_labels=lambda: {"s1": {"pacemaker": True}, "s2": {"pacemaker": False}})
    images = (ImageAt("s1", 3), ImageAt("s2", 3), None, ImageAt("s3", 3))
    lines = ("image: <image>", "image: <image>", "findings: A pacemaker.", "image: <image>")
    question = Question('Offline judge: text that is part of an image with "pacemaker".', lines, images)
    assert list(judge.detect([question])) == [Verdict((1, 0, 0, 0))]


def test_detection_shows_held_out_contexts_of_all_deciles_shuffled():
    table = exemplar_rows("held_out")
    examples = scorer().examples(7, table)
    assert all("held_out" in line and "top" not in line for line in examples.lines)
    assert examples.truth.sum() == 20 and len(examples.truth) == 40
    assert np.bincount(examples.decile[examples.truth]).tolist() == [2] * 10
    assert 0 < examples.truth[:20].sum() < 20  # shuffled
    assert [len(question.lines) for question in examples.questions("x", 7)] == [7] * 5 + [5]
    assert scorer().examples(7, table).lines == examples.lines
    assert scorer(seed=1).examples(7, table).lines != examples.lines


def test_explanations_of_images_are_scored_by_detection_alone():
    assert [name for name in SCORERS.names() if SCORERS.get(name).scores_images] == ["detection"]


def test_examples_are_balanced_or_refused():
    table = exemplar_rows("held_out", n_random=12)
    examples = scorer().examples(0, table)
    assert examples.truth.sum() == 12 and len(examples.truth) == 24
    for min_contexts, reason in (
        (15, "fewer than 15 of the sampled held-out contexts are non-activating"),
        (25, "active in fewer than 25 held-out contexts"),
    ):
        (result,) = scorer(min_contexts=min_contexts, judge=OfflineJudge()).score([ScoreTask(0, "x", table)])
        assert (result.score, result.reason) == (None, reason)
    images = [row | {"tokens": []} for row in table]
    (result,) = scorer(min_contexts=25, judge=OfflineJudge()).score([ScoreTask(0, "x", images)])
    assert result.reason == "active in fewer than 25 held-out images"


def test_fuzzing_marks_the_active_tokens_or_as_many_others():
    examples = scorer(FuzzingScorer).examples(0, exemplar_rows("held_out"))
    assert len(examples.lines) == 20 and examples.truth.sum() == 10
    for line, right in zip(examples.lines, examples.truth, strict=True):
        assert line.count("<<") == 1 and ("<<decile>>" in line) == right
    few = scorer(FuzzingScorer).examples(0, exemplar_rows("held_out", n=1))
    assert few == "marks can be moved in fewer than two held-out contexts"


def test_intruders_are_shown_among_four_activating_contexts_each():
    examples = scorer(IntruderScorer).examples(3, exemplar_rows("held_out"))
    assert len(examples.lines) == 25 and examples.truth.reshape(5, 5).sum(1).tolist() == [1] * 5
    assert len({int(row.argmax()) for row in examples.truth.reshape(5, 5)}) > 1  # not always at the same place
    assert all(("random" in line) == out for line, out in zip(examples.lines, examples.truth, strict=True))
    few = scorer(IntruderScorer).examples(3, exemplar_rows("held_out", n=3))
    assert few == "active in fewer than 4 held-out contexts"


def test_intruders_that_stand_out_are_found_and_guessing_scores_a_half():
    rows = [row | {"tokens": [" tube"] if row["kind"] == "decile" else [" rib"]} for row in exemplar_rows("held_out")]
    (found,) = scorer(IntruderScorer, OfflineJudge()).score([ScoreTask(0, "", rows)])
    assert found.score.balanced_accuracy == 1 and found.score.n_examples == 25
    same = [row | {"tokens": [" tube"]} for row in exemplar_rows("held_out", n=200)]
    (found,) = scorer(IntruderScorer, OfflineJudge()).score([ScoreTask(0, "", same)])
    # Of 50 questions one in five is right by chance; 0.375 + 0.625 p has a standard error of 0.035.
    assert found.score.balanced_accuracy == pytest.approx(0.5, abs=0.1)


def favoured(explanation, first, second):
    (verdict,) = OfflineJudge().favour([Question(f"Offline judge: {explanation}.", (first, second))])
    return verdict and verdict.answers


def test_the_offline_judge_favours_the_report_that_states_what_the_explanation_is_about():
    clear, pacemaker = "The lungs are clear.", "The lungs are clear. There is a pacemaker."
    image = 'text that is part of an image with "pacemaker"'
    assert favoured(image, clear, pacemaker) == (0, 1) and favoured(image, pacemaker, clear) == (1, 0)
    assert favoured(image, pacemaker, f"{pacemaker} Pacemaker.") == (0, 0), "a label is stated or not"
    assert favoured(image, clear, "There is no pacemaker.") == (0, 0)
    strongest = 'text that mentions "lungs", or is any part of the image; strongest in images with "pacemaker"'
    assert favoured(strongest, f"{clear} {clear}", pacemaker) == (0, 1), "what it measures counts alone"
    assert favoured("text that is any part of the image", clear, pacemaker) == (0, 0)
    assert favoured('text that mentions "lungs" in the prior report', clear, f"{clear} {clear}") == (0, 1)
    assert favoured('text that mentions "lungs", but without "clear"', clear, "The lungs. Clear.") == (0, 1)
    assert list(OfflineJudge().favour([Question("Pacemakers", (clear, pacemaker))])) == [None]


class HalfDeafJudge:
    """Answers by coin, and not at all to every fourth question."""

    def detect(self, questions):
        rng = np.random.default_rng(0)
        for i, question in enumerate(questions):
            yield None if i % 4 == 3 else Verdict(tuple(rng.integers(0, 2, len(question.lines))), 0.5)


def test_a_judge_without_skill_scores_at_chance_and_failures_are_counted_separately():
    table = exemplar_rows("held_out", n=50)
    found = list(scorer(judge=HalfDeafJudge()).score(ScoreTask(feature, "x", table) for feature in range(60)))
    assert all(r.score.n_failed == 25 and r.score.n_examples == 75 and r.cost == 7.5 for r in found)
    # 60 sets of 75 coins: standard error 0.5 / sqrt(4500) = 0.0075.
    assert np.mean([result.score.balanced_accuracy for result in found]) == pytest.approx(0.5, abs=0.03)
