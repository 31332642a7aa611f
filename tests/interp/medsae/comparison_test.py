"""Intervals of measures."""

import numpy as np
import pytest

from interp.medsae.comparison import difference, interval


def test_an_interval_is_about_the_value_on_all_studies():
    resampled = np.append(np.random.default_rng(0).normal(3.0, 0.1, 4000), np.nan)  # 1 above the value
    assert interval(2.0, resampled) == pytest.approx((2 - 0.196, 2 + 0.196), abs=0.01)
    assert interval(None, resampled) is None and interval(2.0, np.full(3, np.nan)) is None
    assert difference(2.0, resampled) == {"difference": 2.0, "interval": interval(2.0, resampled)}
