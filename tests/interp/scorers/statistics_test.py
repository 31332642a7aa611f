"""Scores of yes-or-no answers, and their intervals over studies."""

import numpy as np
import pytest

from interp.exemplars import selection
from interp.scorers import statistics


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
