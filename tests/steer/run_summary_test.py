"""The text of a whole run's figures: what steering did, and whether features of images are a control's."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maira_jax.run import files
from steer.run_summary import _found_concepts, _steering, of_images
from tests.steer.stage_words_test import made_label_summary

SCORES = {"detection": {"mean": 0.5, "above_075": 1}}
RATES = {"on_target": {"rate": 0.5, "n": 8}, "off_target": {"rate": 0.125}, "no_change": {"rate": None}}


def test_the_rates_of_adding_a_feature_are_shown() -> None:
    text = _steering({"headline": {"ablate": {}, "add": RATES}})
    assert "8 reports" in text and "on target 50%, off target 12%, no change not measured" in text


def test_without_it_those_of_another_method_and_without_any_none() -> None:
    assert "on target 50%" in _steering({"headline": {"ablate": RATES}})
    rates = [{"concept": "all"}, {"concept": "edema"}]
    without = _steering({"headline": {}, "rates": rates})
    assert without == "Steering: no report in which a concept could be added or removed"
    rates[1]["concept"] = ""
    assert _steering({"headline": {}, "rates": rates}).startswith("Steering: no steered feature has a concept")


def test_a_concept_stands_with_its_detector_and_with_the_feature_that_was_steered(tmp_path) -> None:
    pq.write_table(pa.table({"name": ["heart", None]}), tmp_path / "features.parquet")
    rows = {"concept": ["edema", "cardiomegaly"], "feature": [1, 0], "f1": [0.5, 0.85]}
    pq.write_table(pa.table(rows), tmp_path / "concepts.parquet")
    entry = {"concept": "cardiomegaly", "method": "add", "intended": "added", "feature": 1, "strength": 2.0} | RATES
    others = [entry | {"method": "random"}, entry | {"concept": "edema"}, entry | {"strength": None}]
    assert _found_concepts(tmp_path, [entry, *others]).splitlines() == [
        f"  {'cardiomegaly':<31} F1 0.85  feature     0  heart",
        "    steered by feature 1, added: on target 50%, off target 12%",
    ]


@pytest.mark.parametrize("control", ["", "the encoder's weights are random."])
def test_a_control_is_said_to_be_one_below_what_was_measured(tmp_path, control) -> None:
    for name, found in {
        "sae/metrics.json": {"tokens": 1500, "fvu": 0.1, "l0": 3.0, "dead": 2},
        "sae-wide/metrics.json": {"tokens": 1500, "fvu": 0.05, "l0": 4.0, "dead": 1000},
        "interp/summary.json": SCORES | {"scored": 4, "controls": {"shuffled explanations": SCORES}},
        "label/summary.json": made_label_summary(),
    }.items():
        (tmp_path / name).parent.mkdir()
        files.write_json(tmp_path / name, found)
    text = of_images(tmp_path, control)
    assert text.splitlines()[1:3] == [
        "SAE, on 1,500 held-out rows: fraction of variance unexplained 0.100, L0 3.0, dead features 2",
        "SAE wide, on 1,500 held-out rows: fraction of variance unexplained 0.050, L0 4.0, dead features 1,000",
    ]
    assert "Measured against 2 labels" in text
    assert (f"A control, not a result: {control}" in text) == bool(control)
