"""Largest activations in files that share studies, read by rows and columns."""

import numpy as np
import pytest

from interp.exemplars import study_peaks
from interp.exemplars.study_peaks import StudyPeaks


@pytest.mark.parametrize("key", [np.s_[:, :], np.s_[:, 1:3], np.s_[[9, 1, 6], 2:], np.s_[np.arange(12) % 2 == 0, :]])
def test_any_rows_and_columns_are_those_of_the_whole_array(tmp_path, monkeypatch, key):
    monkeypatch.setattr(study_peaks, "_ROWS", 3)
    rng = np.random.default_rng(0)
    first, second = rng.random((7, 5), np.float32), rng.random((5, 5), np.float32)
    np.save(tmp_path / "first.npy", first)
    np.save(tmp_path / "second.npy", second)
    whole = np.zeros((12, 5), np.float32)  # nobody wrote the last study
    whole[:7] = first
    whole[6:11] = np.maximum(whole[6:11], second)
    peaks = StudyPeaks((12, 5), [(tmp_path / "first.npy", 0), (tmp_path / "second.npy", 6)])
    np.testing.assert_array_equal(peaks[key], whole[key])
