"""The rates that are computed from the changes between steered and unsteered reports."""

import difflib
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from ml_collections import ConfigDict

from maira_jax.errors import UserError
from maira_jax.reports.text import words_of
from maira_jax.run import files
from maira_jax.run.stages.stage import Stage
from steer import evaluate, rates
from steer.selection.choose import SCHEMA
from tests.helpers.judge import judge_config, serve

CLEAR = "No consolidation or edema. No pleural effusion or pneumothorax. Heart size is normal. No pacemaker."
LEFT = CLEAR.replace("No pleural effusion or pneumothorax.", "Small left pleural effusion. No pneumothorax.")
BOTH = LEFT.replace("No pacemaker.", "Pacemaker in place.")


# ------------------------------------------------------------------------------ rates, end to end
N = 40


def report(effusion: bool, pacemaker: bool = False) -> str:
    return {(False, False): CLEAR, (True, False): LEFT, (True, True): BOTH}.get(
        (effusion, pacemaker), CLEAR.replace("No pacemaker.", "Pacemaker in place.")
    )


def line(study: int, method: str, strength: float, original: str, steered: str) -> dict:
    concept = "" if method == "none" else "left pleural effusion"
    settings = {"method": method, "concept": concept, "feature": None if method == "none" else 3}
    return {
        "study_id": f"s{study:02d}", "direction": method, "strength": strength, "original": original,
        "steered": steered, "finished": True, "finite": True, "mean_nll": 0.5 + abs(strength), "settings": settings,
    }  # fmt: skip


def made_generations() -> list[dict]:
    """30 studies without an effusion, 10 with one. Strength 2 of the feature adds it in all,
    with a pacemaker in every fifth; strength 1 in every second; strength 4 makes the text repeat
    itself; the random direction does nothing; -2 never removes it."""
    lines = []
    for study in range(N):
        has = study >= 30
        original = report(has)
        lines.append(line(study, "none", 0.0, original, original))
        for strength in (-2.0, 1.0, 2.0, 4.0):
            steered = original
            if strength == 1.0 and study % 2 == 0:
                steered = report(True)
            if strength == 2.0:
                steered = report(True, pacemaker=study % 5 == 0)
            if strength == 4.0:
                steered = "effusion " * 30
            lines.append(line(study, "add", strength, original, steered))
            lines.append(line(study, "random", strength, original, original))
    return lines


def configured(bootstrap: int, judge: str = "none") -> ConfigDict:
    config = judge_config("http://127.0.0.1:9/v1")
    config.steer.name = "made"
    config.evaluate.update({"bootstrap": bootstrap, "judge": judge, "judge_studies": 7})
    return config


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    workdir = tmp_path_factory.mktemp("run")
    with Stage(workdir, "steer/made", {}) as stage:
        text = "".join(json.dumps(entry) + "\n" for entry in made_generations())
        (stage.dir / "generations.jsonl").write_text(text)
        files.write_json(stage.dir / "directions.json", [{"key": "add", "target": None}])
        pq.write_table(SCHEMA.empty_table(), stage.dir / "selection.parquet")
        stage.finish({})
    config = configured(200)
    config.steer.manifest = str(workdir / "studies.jsonl")
    written = [{"study_id": f"s{study:02d}", "patient_id": "p", "findings": LEFT} for study in range(N)]
    written[0] |= {"findings_origin": "labels"}
    (workdir / "studies.jsonl").write_text("".join(json.dumps(study) + "\n" for study in written))
    return workdir, evaluate.run(config, workdir)


def test_rates_are_those_that_were_made(evaluated: tuple[Path, dict]) -> None:
    workdir, _ = evaluated
    summary = files.read_json(workdir / "evaluation" / "made" / "summary.json")
    assert (summary["unsteered"]["reports"], summary["unsteered"]["degenerate"]) == (N, 0)
    assert summary["unsteered"]["mean_nll"]["rate"] == 0.5
    rates = {(r["method"], r["strength"]): r for r in summary["rates"] if r["concept"] == "all"}
    two, one, four = rates["add", 2.0], rates["add", 1.0], rates["add", 4.0]
    assert (two["on_target"]["rate"], two["on_target"]["n"]) == (1.0, 30)
    assert (two["off_target"]["rate"], two["off_target"]["n"]) == (0.2, N)
    assert one["on_target"]["rate"] == 0.5
    assert one["no_change"]["rate"] == one["identical"]["rate"] == 25 / N
    # Repetition is flagged and kept out of every rate but the one that counts it as a failure.
    assert four["degenerate"]["rate"] == 1.0
    assert four["on_target"] == {"rate": None, "low": None, "high": None, "n": 0}
    assert (four["on_target_of_all"]["rate"], four["on_target_of_all"]["n"]) == (0.0, 30)
    assert rates["add", -2.0]["on_target"] | {"low": 0, "high": 0} == {"rate": 0.0, "low": 0, "high": 0, "n": 10}
    assert rates["random", 2.0]["no_change"]["rate"] == 1.0
    assert (one["mean_nll"]["rate"], one["nll_change"]["rate"]) == (1.5, 1.0)
    assert one["format_kept"]["rate"] == 1.0 and four["format_kept"]["rate"] is None
    longer = len(words_of(LEFT)) / len(words_of(CLEAR))  # in every second one of the 30 without an effusion
    assert one["length"]["rate"] == pytest.approx((15 * longer + 25) / N, abs=1e-5)
    assert one["on_target"]["low"] < 0.5 < one["on_target"]["high"]


def test_reports_are_compared_with_those_that_radiologists_wrote(evaluated: tuple[Path, dict]) -> None:
    workdir, _ = evaluated
    summary = files.read_json(workdir / "evaluation" / "made" / "summary.json")
    before = summary["unsteered"]["quality_findings"]
    assert (before["rate"], before["n"]) == (pytest.approx(10 / 39, abs=1e-5), 39), "a text made of labels is none"
    two = next(r for r in summary["rates"] if (r["method"], r["strength"], r["concept"]) == ("add", 2.0, "all"))
    # A pacemaker, of an extent of 2, is made up next to the small effusion in 7 of the 39.
    assert two["quality_findings"]["rate"] == pytest.approx((32 + 7 * 0.5) / 39, abs=1e-5)
    assert two["quality_findings_change"]["rate"] == pytest.approx((32 + 7 * 0.5 - 10) / 39, abs=1e-5)
    assert two["quality_labels"]["rate"] == pytest.approx((32 + 7 * 2 / 3) / 39, abs=1e-5)
    assert two["quality_words_change"]["low"] > 0
    assert two["off_target_extent"]["rate"] == 8 * 2 / N


def test_published_metrics_are_of_the_reports_that_the_headline_is_about(
    evaluated: tuple[Path, dict], tmp_path, monkeypatch
) -> None:
    asked = {}

    def published(names, pairs, judge, folder, seed):
        assert names == ("radgraph",) and folder == tmp_path / "evaluation" / "made" / "radmatch"
        asked.update(pairs)
        return {method: {} for method in pairs}

    monkeypatch.setattr(evaluate.reference_metrics, "published", published)
    (tmp_path / "steer").symlink_to(evaluated[0] / "steer")
    config = configured(20)
    config.steer.manifest, config.evaluate.metrics = str(evaluated[0] / "studies.jsonl"), ("radgraph",)
    evaluate.run(config, tmp_path)
    summary = files.read_json(tmp_path / "evaluation" / "made" / "summary.json")
    assert summary["metrics"] == {"add": {}, "random": {}}
    headline = summary["headline"]["add"]["on_target_of_all"]["n"]
    assert len(asked["add"]) in (headline, headline - 1), "of the study without a report of its own there is none"
    assert {pair.reference for pair in asked["add"]} == {LEFT}
    config.steer.manifest = str(tmp_path / "none.jsonl")
    config.evaluate.bootstrap = 21
    with pytest.raises(UserError, match="no study has one"):
        evaluate.run(config, tmp_path)


def test_without_studies_nothing_is_compared_with_them(evaluated: tuple[Path, dict], capsys, tmp_path) -> None:
    (tmp_path / "steer").symlink_to(evaluated[0] / "steer")
    config = configured(20)
    config.steer.manifest = str(tmp_path / "none.jsonl")
    evaluate.run(config, tmp_path)
    assert "not compared with reference reports: " in capsys.readouterr().err
    rows = pq.read_table(tmp_path / "evaluation" / "made" / "results.parquet", columns=["quality_words"])
    assert rows["quality_words"].null_count == rows.num_rows


def test_strength_is_chosen_on_one_half_and_reported_on_the_other(evaluated: tuple[Path, dict]) -> None:
    workdir, result = evaluated
    summary = files.read_json(workdir / "evaluation" / "made" / "summary.json")
    best = {(b["method"], b["intended"]): b for b in summary["best"]}
    added = best["add", "added"]
    assert added["strength"] == 2.0
    assert added["chosen_on"] + added["on_target"]["n"] == 30
    assert 8 <= added["chosen_on"] <= 22
    assert added["on_target"]["rate"] == 1.0
    assert best["add", "removed"]["on_target"]["rate"] == 0.0
    assert best["random", "added"]["on_target"]["rate"] == 0.0
    assert result == {"generations": len(made_generations()), "degenerate": N}
    assert summary["headline"]["random"]["on_target"]["rate"] == 0.0
    assert 0 < summary["headline"]["add"]["off_target"]["rate"] < 0.4
    headline = summary["headline"]["add"]["on_target"]
    assert headline["n"] == added["on_target"]["n"] + best["add", "removed"]["on_target"]["n"]


def test_intervals_cover_the_truth() -> None:
    """Of 200 draws of 50 studies with a success rate of 0.3, about 95 % of the intervals hold it."""
    rng = np.random.default_rng(0)
    measure = rates.MEASURES["no_change"]
    held = 0
    for seed in range(200):
        rows = [{"study_id": f"{i}", "no_change": bool(rng.random() < 0.3), "degenerate": ""} for i in range(50)]
        found = rates.StudyBootstrap([r["study_id"] for r in rows], 400, seed).rate(rows, measure)
        held += found["low"] <= 0.3 <= found["high"]
    assert 0.88 <= held / 200 <= 0.99


def test_results_name_what_changed(evaluated: tuple[Path, dict]) -> None:
    workdir, _ = evaluated
    rows = pq.read_table(workdir / "evaluation" / "made" / "results.parquet").to_pylist()
    lines = (workdir / "steer" / "made" / "generations.jsonl").read_text().splitlines()
    for row in rows:
        source = json.loads(lines[row["line"]])
        assert (row["study_id"], row["strength"]) == (source["study_id"], source["strength"])
        same = difflib.SequenceMatcher(None, words_of(source["original"]), words_of(source["steered"])).ratio() == 1
        assert (row["edit_distance"] == 0) == same
    made = next(r for r in rows if r["strength"] == 2.0 and r["method"] == "add" and r["study_id"] == "s05")
    assert made["added"] == ["left pleural effusion", "pacemaker"]
    assert made["on_target"] and made["off_target"]


def test_a_broken_line_is_refused(tmp_path: Path) -> None:
    with Stage(tmp_path, "steer/made", {}) as stage:
        (stage.dir / "generations.jsonl").write_text('{"study_id": "s0\n')
        stage.finish({})
    with pytest.raises(UserError, match="generations.jsonl, line 1,"):
        evaluate.run(
            configured(10),
            tmp_path,
        )


def test_a_language_model_compares_the_reports(tmp_path: Path) -> None:
    """Of the first 7 studies; it is told what the feature means, and never which way it was steered."""
    with Stage(tmp_path, "steer/made", {}) as stage:
        generations = made_generations()
        for entry in generations:
            entry["direction"] = f"{entry['direction']}-3"
        (stage.dir / "generations.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in generations))
        target = {"explanation": 'Says "effusion".', "concept": "left pleural effusion", "feature": 3}
        described = [{"key": "add-3", "target": target}, {"key": "random-3", "target": None}]
        files.write_json(stage.dir / "directions.json", described)
        pq.write_table(SCHEMA.empty_table(), stage.dir / "selection.parquet")
        stage.finish({})
    with serve() as server:
        config = configured(50, "llm")
        config.judge.base_url = server.url
        evaluate.run(config, tmp_path)
        bodies = server.record()["bodies"]
    rows = pq.read_table(tmp_path / "evaluation" / "made" / "results.parquet").to_pylist()
    judged = [row for row in rows if row["judge_concept"] is not None]
    assert {row["study_id"] for row in judged} == {f"s{i:02d}" for i in range(7)}
    assert {row["method"] for row in judged} == {"add"}
    made = next(r for r in judged if r["strength"] == 2.0 and r["study_id"] == "s05")
    before, after = ({*words_of(report(*has))} - {".", ","} for has in ((False,), (True, True)))
    assert made["judge_on_target"] == 0 and made["judge_off_target"] == len(before ^ after)
    assert (made["judge_concept"], made["judge_report"], made["judge_fluency"]) == (2, 2, 1)
    rates = files.read_json(tmp_path / "evaluation" / "made" / "summary.json")["rates"]
    two = next(r for r in rates if r["method"] == "add" and r["strength"] == 2.0 and r["concept"] == "all")
    assert (two["judge_score"]["rate"], two["judge_score"]["n"]) == (1.5, 7)
    minus = next(r for r in rates if r["method"] == "add" and r["strength"] == -2.0 and r["concept"] == "all")
    assert (minus["judge_no_change"]["rate"], minus["judge_score"]["rate"]) == (1.0, 0.0)
    assert bodies and not any("strength" in json.dumps(body) or "appear" in json.dumps(body) for body in bodies)
