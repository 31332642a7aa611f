"""Findings weighed by size and certainty, and the F1 of what a report claims."""

import pytest

from maira_jax.reports.extent import extents, graded_f1
from maira_jax.reports.labeller import extract


def of(report):
    return extents(extract(report))


def test_size_and_certainty_weigh_a_finding():
    left = ("left", "", "pleural effusion")
    for text, extent in (
        ("Small left pleural effusion.", 1.0),
        ("Left pleural effusion.", 2.0),
        ("Moderate left pleural effusion.", 2.0),
        ("Large left pleural effusion.", 3.0),
        ("Possible left pleural effusion.", 1.0),
        ("Possible small left pleural effusion.", 0.5),
    ):
        assert of(text) == {left: extent}, text
    assert of("Severe cardiomegaly.") == {("", "", "cardiomegaly"): 3.0}
    assert of("No pleural effusion. No acute abnormality.") == {}


def test_the_graded_f1_counts_what_is_shared_in_extents():
    large = of("Large left pleural effusion.")
    assert graded_f1(large, large) == graded_f1({}, {}) == 1
    assert graded_f1(large, {}) == graded_f1({}, large) == 0
    assert graded_f1(large, of("Large right pleural effusion.")) == 0
    assert graded_f1(large, of("Small left pleural effusion.")) == pytest.approx(2 * 1 / (3 + 1))
    assert graded_f1(large, of("Possible large left pleural effusion.")) == pytest.approx(2 * 1.5 / (3 + 1.5))
    both = of("Large left pleural effusion. Small right pneumothorax.")
    assert graded_f1(both, large) == pytest.approx(2 * 3 / (4 + 3)), "a small finding costs little"
    assert graded_f1(both, of("Small right pneumothorax.")) == pytest.approx(2 * 1 / (4 + 1))
    assert graded_f1(large, both) == graded_f1(both, large)
