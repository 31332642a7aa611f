"""The text of a whole run's figures: what steering did."""

from steer.run_summary import _steering

RATES = {"on_target": {"rate": 0.5, "n": 8}, "off_target": {"rate": 0.125}, "no_change": {"rate": None}}


def test_the_rates_of_adding_a_feature_are_shown() -> None:
    text = _steering({"ablate": {}, "add": RATES})
    assert "8 reports" in text and "on target 50%, off target 12%, no change not measured" in text


def test_without_it_those_of_another_method_and_without_any_none() -> None:
    assert "on target 50%" in _steering({"ablate": RATES})
    assert _steering({}) == "Steering: no report in which a concept could be added or removed"
