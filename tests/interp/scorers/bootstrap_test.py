"""Resamples of studies, and intervals from them."""

import numpy as np

from interp.scorers.bootstrap import percentile_interval, study_weights
from interp.scorers.statistics import mean_interval


def test_each_resample_draws_as_many_studies_as_there_are():
    weights = study_weights(30, 2000, (0,))
    assert weights.shape == (2000, 30) and (weights.sum(1) == 30).all() and (weights == weights.round()).all()
    np.testing.assert_allclose(weights.mean(0), 1, atol=0.15)  # 6 standard deviations


def test_resamples_are_of_their_seed():
    assert (study_weights(30, 50, (0,)) == study_weights.__wrapped__(30, 50, (0,))).all()
    others = [study_weights(30, 50, seed) for seed in ((0,), (1,), (0, 1))]
    assert all((one != other).any() for one, other in zip(others, others[1:], strict=False))
    values = np.arange(40.0)
    assert mean_interval(values, 50, 0) == mean_interval(values, 50, 0) != mean_interval(values, 50, 1)


def test_the_interval_holds_the_middle_95_percent():
    values = np.arange(1001.0)
    np.testing.assert_allclose(percentile_interval(np.append(values, np.nan)), (25, 975))
    low, high = mean_interval(np.arange(100.0), 4000, 0)
    assert abs(low - (49.5 - 1.96 * 2.887)) < 0.4 and abs(high - (49.5 + 1.96 * 2.887)) < 0.4
    assert mean_interval(values[:0], 10, 0) is None
