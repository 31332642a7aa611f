"""Intervals of measures."""

import numpy as np
import pytest

from interp.medsae.comparison import difference, interval


def test_an_interval_is_about_the_value_on_all_studies():
    resampled = np.append(np.random.default_rng(0).normal(3.0, 0.1, 4000), np.nan)  # 1 above the value
    assert interval(2.0, resampled) == pytest.approx((2 - 0.196, 2 + 0.196), abs=0.01)
    assert interval(None, resampled) is None and interval(2.0, np.full(3, np.nan)) is None
    assert difference(2.0, resampled) == {"difference": 2.0, "interval": interval(2.0, resampled)}


def test_an_interval_holds_the_value_and_stays_within_the_measure():
    counts = np.array([0.0] * 997 + [1.0] * 3)  # nearly always 0, as on all studies: no difference is shown
    assert difference(0.0, -counts)["interval"] == pytest.approx((0.0, 0.003))
    assert interval(0.0, counts) == pytest.approx((-0.003, 0.0))
    assert interval(0.0, counts, (0, 6)) == (0.0, 0.0)
    low, high = interval(0.97, np.random.default_rng(0).normal(0.97, 0.03, 4000), (0, 1))
    assert high == 1 and low == pytest.approx(0.97 - 0.059, abs=0.005)
