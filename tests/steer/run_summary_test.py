"""The text of a whole run's figures: what steering did, and how features of images compare with other bases."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maira_jax.run import files
from steer.run_summary import _found_concepts, _steering, of_images

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
def test_features_of_images_stand_next_to_the_other_bases(tmp_path, control) -> None:
    def basis(value):
        own = {"monosemanticity": {"mean": value}, "entropy_kept": {"mean": None}}
        intervals = {"monosemanticity": (0.0, 1.0), "entropy_kept": None, "r": (0.25, 0.75), "f1": None}
        return own | {"mean_over_classes": {"r": 0.5, "f1": 0.125}, "intervals": intervals}

    probes = {"features": {"1": {"auroc": 0.75, "auroc_interval": (0.5, 1.0)}}, "raw dimensions": {}}
    label = {
        "studies": 9,
        "patients": 5,
        "bases": {"features": basis(0.625), "raw dimensions": basis(0.375)},
        "probing": {"concepts": ["mass"], "bases": probes},
    }
    scores = {"detection": {"mean": 0.5, "above_075": 1}}
    for name, found in {
        "sae/metrics.json": {"fvu": 0.1, "l0": 3.0, "dead": 2},
        "interp/summary.json": scores | {"scored": 4, "controls": {"shuffled explanations": scores}},
        "label/summary.json": label,
    }.items():
        (tmp_path / name).parent.mkdir()
        files.write_json(tmp_path / name, found)
    text = of_images(tmp_path, control)
    assert "1 labels of 9 studies of 5 patients" in text
    rows = {line[:28].strip(): line[28:].split("  ") for line in text.splitlines() if line.startswith("  ")}
    cells = {name: [cell.strip() for cell in row if cell.strip()] for name, row in rows.items()}
    assert cells[""] == ["features", "raw dimensions"]
    assert cells["monosemanticity"] == ["0.625 [0.000, 1.000]", "0.375 [0.000, 1.000]"]
    assert cells["entropy of correlations"] == ["none", "none"]
    assert cells["AUROC of probes, k = 1"] == ["0.750 [0.500, 1.000]"]
    assert (f"A control, not a result: {control}" in text) == bool(control)
