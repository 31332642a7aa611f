"""What is printed after a stage: concepts left out, two examples of steering, and the rates of evaluation."""

import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ml_collections import ConfigDict

from maira_jax.run import files
from steer import stage_words
from steer.stage import SET_ROWS, folder

NOT_SCORED = {"controls": {}, "above_controls": {}}
CONFIG = ConfigDict({"steer": {"name": "s"}, "interpret": {"set": ""}})


def line(study, direction, strength, steered, **settings):
    original = "The heart is normal. No effusion."
    settings = {"method": "add", "concept": "cardiomegaly", "feature": 3, "other_concepts": []} | settings
    return {
        "study_id": study, "direction": direction, "strength": strength, "settings": settings, "finished": True,
        "original": original, "steered": steered or original,
    }  # fmt: skip


def made_label_summary():
    """Of two bases and two labels, one of which is too rare for probes; no image has boxes."""

    def basis(value):
        own = {"monosemanticity": {"mean": value}, "entropy_kept": {"mean": None}}
        intervals = {"monosemanticity": (0.0, 1.0), "entropy_kept": None, "r": (0.25, 0.75), "f1": None}
        own |= {"mean_over_classes": {"r": 0.5, "f1": 0.125}, "intervals": intervals}
        by_rank = {"monosemanticity": {"mean": 0.875}, "intervals": intervals | {"monosemanticity": (0.75, 1.0)}}
        return own | {"by_rank": own | by_rank}

    probes = {"features": {"1": {"auroc": 0.75, "auroc_interval": (0.5, 1.0)}}, "raw dimensions": {}}
    return {
        "studies": 1900,
        "patients": 5,
        "bases": {"features": basis(0.625), "raw dimensions": basis(0.375)},
        "probing": {"concepts": ["mass"], "left_out": {"hernia": "rare"}, "bases": probes},
        "localisation": {},
    }


def write(workdir, lines):
    path = workdir / folder("s") / "generations.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(each) + "\n" for each in lines))


def test_the_examples_are_of_two_directions_strongest_first(tmp_path):
    write(
        tmp_path,
        [
            line("a", "none", 0.0, "", method="none", concept=""),
            line("a", "random-3", 2.0, "Changed.", method="random"),
            line("a", "add-3", 1.0, "The heart is large. No effusion."),
            line("a", "add-3", 2.0, "The heart is large. No effusion. Edema."),
            line("b", "add-3", 2.0, "The heart is huge. No effusion."),
            line("b", "add-5", 1.0, "The heart is normal.", concept=""),
        ],
    )
    assert stage_words.of_sweep(CONFIG, tmp_path).splitlines() == [
        "study a, add-3 (cardiomegaly), strength +2:",
        "  The heart is [-normal.-] {+large.+} No effusion. {+Edema.+}",
        "study b, add-5, strength +1:",
        "  The heart is normal. [-No effusion.-]",
    ]


def test_a_sweep_that_changed_nothing_says_so(tmp_path):
    write(tmp_path, [line("a", "add-3", 1.0, "")])
    assert stage_words.of_sweep(CONFIG, tmp_path) == "no steered report differs from the unsteered one"


@pytest.mark.parametrize(
    ("left_out", "lines"),
    [
        ({}, ["concepts left out: none"]),
        (
            {"mass": "rare", "edema": "silent", "hernia": "rare"},
            ["concepts left out: 3", "  mass, hernia: rare", "  edema: silent"],
        ),
    ],
)
def test_concepts_that_were_left_out(tmp_path, left_out, lines):
    files.write_json(
        tmp_path / "interp" / "summary.json", {"concepts": {"left_out": left_out}, "coverage": None} | NOT_SCORED
    )
    said = stage_words.of_interpretation(CONFIG, tmp_path).splitlines()
    assert said[:-1] == lines and said[-1].startswith("Features were not compared with random directions")


def test_a_scored_set_is_compared_with_our_own(tmp_path):
    config, folder = CONFIG.copy_and_resolve_references(), tmp_path / "interpretations" / "released" / "scored"
    config.interpret.set = "released"
    compared = {"both": 3, "agreement": 0.5, "agreement_shuffled": 0.25, "spearman": {"detection": 0.75}}
    summary = {"not_scored": {"the judge gave no answers": 2}, "compared_with": "interp", "comparison": compared}
    files.write_json(folder / "summary.json", summary)
    assert stage_words.of_interpretation(config, tmp_path).splitlines() == [
        "not scored: 2 (the judge gave no answers)",
        "explained by interp as well: 3",
        "agreement of the explanations: 0.50, of different features 0.25",
        "rank correlation of the detection scores: 0.75",
    ]
    summary["comparison"] |= {"both": 0, "agreement": None, "spearman": {"detection": None}}
    files.write_json(folder / "summary.json", summary | {"not_scored": {}})
    assert stage_words.of_interpretation(config, tmp_path) == "explained by interp as well: 0"


def test_rates_are_those_of_the_summary(tmp_path):
    def rates(on, off, none):
        found = {"on_target": on, "off_target": off, "no_change": none, "degenerate": 0.1, "format_kept": 0.9}
        found |= {"length": 1.25, "nll_change": 0.5, "history": 0.125}
        return {name: {"rate": rate, "n": 4} for name, rate in found.items()}

    best = [{"concept": "mass", "method": method, "intended": "added", "strength": 0.5} for method in ("add", "random")]
    best = [row | rates(0.5, 0.25, None) for row in best]
    unknown = {"concept": "edema", "method": "add", "intended": "added", "strength": None}
    summary = {"best": [*best, unknown], "headline": {"add": rates(0.5, 0.25, 0), "random": rates(0, 0, 1)}}
    summary["unsteered"] = {"history": {"rate": 0.0}}
    summary["selection"] = {"concept": {"methods": {"add": rates(1, 0, 0)}, "spearman": 0.5, "low": 0.25, "high": 0.75}}
    files.write_json(tmp_path / "evaluation" / "s" / "summary.json", summary)
    lines = [row.split() for row in stage_words.of_evaluation(CONFIG, tmp_path).splitlines()]
    costs = ["10%", "90%", "1.25", "+0.50", "12.5%"]
    assert lines[1:] == [
        ["add", "mass", "added", "+0.5", "4", "50%", "25%", "-", *costs],
        ["add", "all", "best", "4", "50%", "25%", "0%", *costs],
        ["random", "all", "best", "4", "0%", "0%", "100%", *costs],
    ]
    summary["unsteered"] = {"history": {"rate": 0.25}}
    (tmp_path / "steer" / "s").mkdir(parents=True)
    of_set = {"direction": "smallest_set-mass", "method": "smallest_set", "concept": "mass", "intended": "added"}
    sets = [of_set | {"rank": rank, "feature": number, "value": 0.5} for rank, number in ((1, 9), (2, 4))]
    sets.append(sets[0] | {"method": "class_means"})
    pq.write_table(pa.Table.from_pylist(sets, schema=SET_ROWS), tmp_path / "steer" / "s" / "sets.parquet")
    files.write_json(tmp_path / "evaluation" / "s" / "summary.json", summary)
    assert stage_words.of_evaluation(CONFIG, tmp_path).splitlines()[-2:] == [
        "words of unsteered reports that compare with an earlier study: 25.0%",
        "smallest set: mass added by 9 = 0.50, 4 = 0.50",
    ]
    summary["selection"]["pilot"] = {"methods": {"add": rates(0.5, 0, 0)}, "spearman": None}
    files.write_json(tmp_path / "evaluation" / "s" / "summary.json", summary)
    lines = [row.split() for row in stage_words.of_evaluation(CONFIG, tmp_path).splitlines()[-3:-1]]
    assert lines == [
        ["concept", "add", "0.50", "(0.25", "to", "0.75)", "4", "100%", "0%", "0%", *costs],
        ["pilot", "add", "-", "4", "50%", "0%", "0%", *costs],
    ]


def test_an_evaluation_without_rates_says_why_and_what_to_do(tmp_path):
    path, rates = tmp_path / "evaluation" / "s" / "summary.json", [{"concept": "all"}, {"concept": ""}]
    files.write_json(path, {"best": [], "headline": {}, "rates": rates})
    said = stage_words.of_evaluation(CONFIG, tmp_path)
    assert said.startswith("no steered feature has a concept") and "--config.steer.concepts='pleural effusion'" in said
    rates.append({"concept": "mass"})
    files.write_json(path, {"best": [], "headline": {}, "rates": rates})
    assert stage_words.of_evaluation(CONFIG, tmp_path) == "no report in which a concept could be added or removed"


def cells(text):
    """The cells of each row of a table, by the row's title."""
    rows = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines() if line.startswith(" ")]
    return {row[0]: row[1:] for row in rows}


def test_labels_are_measured_side_by_side_and_heat_maps_where_there_are_boxes(tmp_path):
    summary = made_label_summary()
    (tmp_path / "label").mkdir()
    files.write_json(tmp_path / "label" / "summary.json", summary)
    files.write_json(tmp_path / "label" / "manifest.json", {"counts": {"studies": 1900}})
    text = stage_words.of_labels(CONFIG, tmp_path)
    head = "Measured against 2 labels (probes: 1 labels with enough studies) of 1,900 studies of 5 patients"
    assert text.splitlines()[0] == f"{head}, with 95 % intervals:"
    shown = cells(text)
    assert shown["monosemanticity"] == ["0.625 [0.000, 1.000]", "0.375 [0.000, 1.000]"]
    assert shown["monosemanticity, by rank"] == ["0.875 [0.750, 1.000]", "0.875 [0.750, 1.000]"]
    assert shown["entropy of correlations"] == ["none", "none"]
    assert shown["AUROC of probes, k = 1"] == ["0.750 [0.500, 1.000]"]
    measures = dict.fromkeys(("pointing", "touching", "inside", "iou"), 0.5) | {"intervals": {"pointing": (0.25, 0.75)}}
    measures["intervals"] |= dict.fromkeys(("touching", "inside", "iou"))
    summary["localisation"] = {"images": {"mass": 3, "hernia": 1}, "maps": {"features": measures}}
    places = stage_words.measured(summary).removeprefix(f"{text}\n").splitlines()
    assert places[0] == "Heat maps of 2 labels, in 4 pairs of a label and an image with boxes of it:"
    assert places[2].split(maxsplit=1) == ["features", "0.500 [0.250, 0.750]          0.500         0.500  0.500"]
    files.write_json(tmp_path / "label" / "manifest.json", {"counts": {}})
    assert stage_words.of_labels(CONFIG, tmp_path).startswith("no study has a token")


def test_an_export_says_what_was_written_where(tmp_path):
    (tmp_path / "export").mkdir()
    counts = dict.fromkeys(("saelens/cfg.json", "saelens/sae.safetensors", "wide/saelens/cfg.json"), "0" * 64)
    files.write_json(tmp_path / "export" / "manifest.json", {"counts": counts})
    assert stage_words.of_export(CONFIG, tmp_path).splitlines() == [
        f"{tmp_path}/export/saelens: cfg.json, sae.safetensors",
        f"{tmp_path}/export/wide/saelens: cfg.json",
    ]
