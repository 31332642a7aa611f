"""A report against a reference."""

import pytest

from maira_jax.reports.quality import ReportQuality

REFERENCE = "There is a large left pleural effusion. The heart is enlarged. No pneumothorax."


def test_the_same_report_is_perfect_and_other_words_cost_words_alone():
    assert ReportQuality.of(REFERENCE, REFERENCE) == (1.0, 1.0, 1.0)
    other = ReportQuality.of(REFERENCE, "Cardiomegaly. Large effusion in the left pleural space.")
    assert other.labels == 1 and other.words < 0.5


def test_what_is_missed_and_what_is_made_up():
    missed = ReportQuality.of(REFERENCE, "There is a large left pleural effusion. No pneumothorax.")
    assert missed.labels == pytest.approx(2 / 3) and missed.findings == pytest.approx(2 * 3 / (5 + 3))
    smaller = ReportQuality.of(REFERENCE, REFERENCE.replace("a large", "a small"))
    assert smaller.labels == 1 and smaller.findings == pytest.approx(2 * 3 / (5 + 3))
    assert ReportQuality.of("The lungs are clear.", "Left pneumothorax.").labels == 0
    assert ReportQuality.of("The lungs are clear.", "Normal heart.")[1:] == (1.0, 1.0)
