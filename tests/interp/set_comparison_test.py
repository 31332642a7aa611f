"""Two sets side by side: which explanations say the same, and whether scores rank the features alike."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from interp import sets
from interp.set_comparison import compare

WORDS = ["pleural effusion", "pacemaker wires", "enlarged heart", "clear lungs"]


def written(workdir, name, explanations, **columns):
    folder = workdir / sets.stage_name(name)
    folder.mkdir(parents=True)
    features = [feature for feature, text in enumerate(explanations) if text != "absent"]
    rows = {"feature": features, "name": [f"{name} {feature}" for feature in features]}
    rows["explanation"] = [explanations[feature] for feature in features]
    pq.write_table(pa.table(rows | {key: [values[f] for f in features] for key, values in columns.items()}),
                   folder / sets.FEATURES)  # fmt: skip


@pytest.fixture
def workdir(tmp_path):
    written(tmp_path, "interp", [f"Judge: {words}" for words in WORDS] + [None], detection=[0.9, 0.6, 0.7, 0.8, None])
    theirs = [WORDS[0], "tubes or wires", None, WORDS[3], "absent", "only theirs"]
    ours = {"detection": [0.8, 0.5, 0.1, 0.7, 0, None], "score": [0.1, 0.9, 0.2, 0.4, 0, 0.5]}
    written(tmp_path, "released", theirs, **ours)
    return tmp_path


def test_each_feature_is_shown_with_both(workdir):
    table, _ = compare(workdir, "released")
    rows = {row["feature"]: row for row in table.to_pylist()}
    assert list(rows) == [0, 1, 2, 3, 5]
    assert rows[2] == {
        "feature": 2,
        **dict.fromkeys(("name", "explanation", "score", "detection", "agreement", "other_score")),
        "other_name": "interp 2",
        "other_explanation": "Judge: enlarged heart",
        "other_detection": 0.7,
    }
    assert (rows[5]["explanation"], rows[5]["score"], rows[5]["other_explanation"]) == ("only theirs", 0.5, None)


def test_agreement_is_of_rare_words(workdir):
    table, summary = compare(workdir, "released")
    agreement = dict(zip(table["feature"].to_pylist(), table["agreement"].to_pylist(), strict=True))
    assert agreement[0] > agreement[1] > 0.2 and agreement[0] > 0.8
    assert agreement[2] is agreement[5] is None
    assert summary["both"] == 3
    assert summary["agreement"] == pytest.approx((agreement[0] + agreement[1] + agreement[3]) / 3)
    assert summary["agreement_shuffled"] == pytest.approx(0) and summary["same"] == pytest.approx(2 / 3)


def test_the_other_side_is_not_the_same(tmp_path):
    rare = ["linear atelectasis", "air bronchograms", "apical cap", "hilar mass"]
    sides = ["left", "right", "left", "right"]
    written(tmp_path, "interp", [f"{words}, {side} lung" for words, side in zip(rare, sides, strict=True)])
    written(tmp_path, "released", [f"{words}, left lung" for words in rare])
    table, summary = compare(tmp_path, "released")
    assert min(table["agreement"].to_pylist()) > 0.8
    assert summary["same"] == 0.5


def test_scores_are_compared_by_rank(workdir):
    # Of features 0, 1 and 3, which both have: 0.8, 0.5, 0.7 ranks as 0.9, 0.6, 0.8 does, and 0.1, 0.9, 0.4 against it.
    assert compare(workdir, "released")[1]["spearman"] == {"detection": pytest.approx(1), "score": pytest.approx(-1)}


def test_sets_without_a_common_feature_have_no_figures(workdir):
    written(workdir, "empty", [])
    _, summary = compare(workdir, "empty", "released")
    assert summary == {
        "both": 0,
        **dict.fromkeys(("agreement", "agreement_shuffled", "same")),
        "spearman": {"detection": None, "score": None},
    }
