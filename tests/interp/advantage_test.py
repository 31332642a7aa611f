"""What is said of features against controls: the table, and which sentence each measure is in."""

import pytest

from interp import advantage
from maira_jax.run import files


def gained(difference, low, high):
    return {"difference": difference, "interval": (low, high)}


def score(mean):
    return {"mean": mean, "interval": (mean - 0.01, mean + 0.01)}


INTERP = {
    "coverage": {
        "concepts": 46,
        "bases": {
            "features": {"found": 26, "found_interval": (22, 29), "f1": 0.79, "f1_interval": (0.76, 0.81)},
            "random directions": {"found": 15, "found_interval": (12, 18), "f1": 0.67, "f1_interval": (0.64, 0.7)},
        },
        "differences": {
            "features minus random directions": {"found": gained(11.0, 7.0, 15.0), "f1": gained(0.12, 0.09, 0.15)}
        },
    },
    "detection": score(0.76),
    "fuzzing": score(0.58),
    "controls": {
        "random directions": {"detection": score(0.78), "fuzzing": score(0.6)},
        "shuffled explanations": {"detection": score(0.5)},
    },
    "above_controls": {
        "random directions": {"detection": gained(-0.02, -0.04, 0.01), "fuzzing": gained(None, None, None)},
        "shuffled explanations": {"detection": gained(0.26, 0.25, 0.27)},
    },
}
LABEL = {
    "probing": {
        "bases": {"features": {"1": {"auroc": 0.8, "auroc_interval": None}},
                  "random directions": {"1": {"auroc": 0.7, "auroc_interval": None}}},
        "differences": {"features minus random directions": {"1": {"auroc": gained(0.1, 0.05, 0.15)}}},
    },
    "bases": {
        basis: {"by_rank": {"monosemanticity": {"mean": mean}, "intervals": {"monosemanticity": None}}}
        for basis, mean in (("features", 0.6), ("random directions", 0.63))
    },
    "differences": {
        "features minus random directions": {"by_rank": {"monosemanticity": gained(-0.03, -0.05, -0.01)}}
    },
}  # fmt: skip


def test_each_measure_is_in_the_sentence_that_its_interval_says():
    found = advantage.comparisons(INTERP, LABEL)
    better, worse, rest = "better than", "worse than", "not shown to differ from"
    assert advantage.sentences(found).splitlines() == [
        f"Features are {how} random directions at {figures}."
        for how, figures in (
            (better, "concepts found, of 46: 26 against 15 (+11 [+7, +15])"),
            (better, "mean F1 of concepts: 0.79 against 0.67 (+0.12 [+0.09, +0.15])"),
            (better, "AUROC of 1-sparse probes: 0.80 against 0.70 (+0.10 [+0.05, +0.15])"),
            (worse, "monosemanticity by rank: 0.60 against 0.63 (-0.03 [-0.05, -0.01])"),
            (rest, "detection: 0.76 against 0.78 (-0.02 [-0.04, +0.01])"),
        )
    ]


@pytest.mark.parametrize(
    "difference, shown",
    [
        ((0.002, 0.0006, 0.0033), "0.802 against 0.700 (+0.002 [+0.001, +0.003])"),
        ((-0.002, -0.0033, -0.0002), "0.8020 against 0.7000 (-0.0020 [-0.0033, -0.0002])"),
        ((0.002, -0.0006, 0.0033), "0.80 against 0.70 (+0.00 [-0.00, +0.00])"),
    ],
)
def test_a_shown_difference_has_digits_that_tell_it_from_0(difference, shown):
    bases = LABEL["probing"]["bases"] | {"features": {"1": {"auroc": 0.802, "auroc_interval": None}}}
    gains = {"features minus random directions": {"1": {"auroc": gained(*difference)}}}
    label = LABEL | {"probing": {"bases": bases, "differences": gains}}
    found = advantage.sentences(advantage.comparisons(INTERP, label))
    assert f"random directions at AUROC of 1-sparse probes: {shown}." in found


def test_the_table_has_a_row_per_measure_and_a_dash_for_what_is_not_measured():
    head, *rows = advantage.rows(advantage.comparisons(INTERP))
    assert head == ["", "features", "random directions", "shuffled explanations"]
    assert [row[0] for row in rows] == ["concepts found, of 46", "mean F1 of concepts", "detection"]
    assert rows[0][1:] == ["26 [22, 29]", "15 [12, 18]", "-"]
    assert rows[2][1:] == ["0.76 [0.75, 0.77]", "0.78 [0.77, 0.79]", "0.50 [0.49, 0.51]"]


def test_without_labels_only_scores_are_compared():
    (sentence,) = advantage.sentences(advantage.comparisons(INTERP | {"coverage": None})).splitlines()
    assert sentence.startswith("Features are not shown to differ from random directions at detection: ")
    assert "no concept was tested" in advantage.sentences([])


def test_a_run_is_compared_by_the_stages_that_have_run(tmp_path):
    def measures():
        return [each.measure for each in advantage.of_run(tmp_path, "two")]

    rate = {"rate": 0.5, "low": 0.4, "high": 0.6}
    summaries = {
        "interp": INTERP,
        "faithfulness": {
            "bases": {"features": score(0.6), "random directions": score(0.5)},
            "differences": {"features minus random directions": gained(0.1, 0.05, 0.15)},
        },
        "evaluation/two": {
            "headline": {"add": {"on_target": rate}, "random": {"on_target": rate}},
            "above_random": {"add": {"on_target": gained(0.0, -0.1, 0.1)}},
        },
    }
    found = []
    for folder, summary in summaries.items():
        (tmp_path / folder).mkdir(parents=True)
        files.write_json(tmp_path / folder / "summary.json", summary)
        found.append(measures())
    assert found[0] == ["concepts found, of 46", "mean F1 of concepts", "detection"]
    assert found[1] == [*found[0], "faithfulness"]
    assert found[2] == [*found[1], "steering, share of reports on target"]
    assert advantage.rows(advantage.of_run(tmp_path, "two"))[-1] == [
        "steering, share of reports on target", "0.50 [0.40, 0.60]", "0.50 [0.40, 0.60]", "-",
    ]  # fmt: skip
