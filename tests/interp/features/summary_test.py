"""The figures of summary.json, counted by hand on a few features."""

import numpy as np
import pyarrow as pa
import pytest

from interp.features import concepts
from interp.features.summary import SHUFFLED_EXPLANATIONS, JudgeOrigin, summarise
from interp.features.table import CONTROL_SCHEMA, SCHEMA
from interp.scorers import ground_truth

DETECTION = [0.9, 0.6, None, 0.4, 0.8]
SHUFFLED = [0.5, 0.4, None, 0.6, 0.5]
TRUE_F1 = [0.9, 0.5, 0.1, 0.3, 0.7]


def tables():
    features = [
        {"feature": i, "density": 0.1 if i < 4 else 0.0, "reason": None if score else "never active"}
        | {"n_failed": 1 if score else None, "explanation_group": 0 if i < 2 else i, "true_f1": f1, "fact_f1": f1 / 2}
        | dict.fromkeys(("detection", "detection_random", "detection_hard"), score)
        | {"detection_shuffled": other, "by_decile": [score, None] if score else None, "fuzzing": score}
        for i, (score, other, f1) in enumerate(zip(DETECTION, SHUFFLED, TRUE_F1, strict=True))
    ]
    controls = [
        {"control": name, "detection": score, "true_f1": 0.2}
        for name, score in (("raw dimensions", 0.7), ("raw dimensions", 0.6), ("shuffled weights", None))
    ]
    statements = [{"statement": "effusion", "f1": 0.85}, {"statement": "oedema", "f1": 0.3}]
    return {
        "features": pa.Table.from_pylist(features, schema=SCHEMA),
        "controls": pa.Table.from_pylist(controls, schema=CONTROL_SCHEMA),
        "concepts": pa.Table.from_pylist([{"concept": "pacemaker", "f1": 0.8}], schema=concepts.SCHEMA),
        "statements": pa.Table.from_pylist(statements, schema=ground_truth.SCHEMA),
    }


def test_summary_counts_what_the_tables_hold():
    origin = JudgeOrigin("rule", "explain-1", {"cost": 2.5, "answers": 7})
    found = summarise(tables(), {"rare": "too few studies"}, origin, 50)
    assert (found["judge"], found["prompt_version"], found["cost"]) == ("rule", "explain-1", 2.5)
    assert (found["features"], found["alive"], found["scored"]) == (5, 4, 4)
    assert found["not_scored"] == {"never active": 1} and found["examples_failed"] == 4
    detection = found["detection"]
    assert detection["mean"] == pytest.approx(0.675) and detection["median"] == pytest.approx(0.7)
    assert (detection["scored"], detection["above_075"], detection["below_05"]) == (4, 2, 1)
    assert detection["interval"][0] <= detection["mean"] <= detection["interval"][1]
    assert found["fuzzing"] == detection and found["by_decile"] == [pytest.approx(0.675), None]
    assert found["explanation_groups"] == 4
    assert found["concepts"] == {
        "tested": 1,
        "f1_08": 1,
        "found": ["pacemaker"],
        "left_out": {"rare": "too few studies"},
    }


def test_features_are_compared_with_each_control():
    found = summarise(tables(), {}, JudgeOrigin("rule", "", {}), 50)
    assert list(found["controls"]) == [SHUFFLED_EXPLANATIONS, "raw dimensions", "shuffled weights"]
    assert found["controls"][SHUFFLED_EXPLANATIONS]["detection"]["mean"] == pytest.approx(0.5)
    assert found["controls"]["raw dimensions"]["true_f1"] == pytest.approx(0.2)
    above = found["above_controls"]
    assert above[SHUFFLED_EXPLANATIONS]["detection"]["difference"] == pytest.approx(0.175)
    assert above["raw dimensions"]["detection"]["difference"] == pytest.approx(0.025)
    assert above["raw dimensions"]["detection_hard"]["difference"] is None
    assert above["shuffled weights"]["detection"] == {"difference": None, "interval": None}


def test_scores_are_ranked_against_the_truth():
    truth = summarise(tables(), {}, JudgeOrigin("rule", "", {}), 50)["truth"]
    assert truth["features"] == 4 and truth["true_f1"] == pytest.approx(np.mean([0.9, 0.5, 0.3, 0.7]))
    assert truth["spearman"] == truth["spearman_facts_hard"] == pytest.approx(1.0)
    assert (truth["tested"], truth["f1_08"], truth["found"]) == (2, 1, ["effusion"])


def test_ranks_of_equal_scores_are_undefined():
    found = tables()
    column = found["features"].schema.get_field_index("detection")
    equal = pa.array([None if score is None else 0.5 for score in DETECTION], found["features"]["detection"].type)
    found["features"] = found["features"].set_column(column, "detection", equal)
    truth = summarise(found, {}, JudgeOrigin("rule", "", {}), 50)["truth"]
    assert truth["spearman"] is None and truth["spearman_hard"] == pytest.approx(1)
