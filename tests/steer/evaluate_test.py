"""What changed between reports, and the rates that are made of it."""

import difflib
import json
import random
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from ml_collections import ConfigDict

from maira_jax.errors import UserError
from maira_jax.phantom.world.concepts import study_labels
from maira_jax.phantom.world.latents import sample
from maira_jax.phantom.world.write import write
from maira_jax.reports.changes import Scope, compare, degenerate, edit_distance, repetition, words_of
from maira_jax.run import files
from maira_jax.run.stage import Stage
from steer import evaluate
from tests.helpers.judge import judge_config, serve

CLEAR = "No consolidation or edema. No pleural effusion or pneumothorax. Heart size is normal. No pacemaker."
LEFT = CLEAR.replace("No pleural effusion or pneumothorax.", "Small left pleural effusion. No pneumothorax.")
BOTH = LEFT.replace("No pacemaker.", "Pacemaker in place.")


def test_what_appeared_and_what_was_meant() -> None:
    found = compare(CLEAR, BOTH, "left pleural effusion")
    assert found.appeared == ("left pleural effusion", "pacemaker")
    assert found.vanished == ()
    assert found.off_target
    assert "+left pleural effusion" in found.concepts
    assert not compare(CLEAR, LEFT, "left pleural effusion").off_target
    assert compare(LEFT, CLEAR, "pleural effusion").vanished == ("left pleural effusion",)
    assert compare(CLEAR, LEFT, "right pleural effusion").off_target
    assert compare(CLEAR, LEFT, "communication").off_target
    assert not compare(CLEAR, BOTH, "normal study").off_target


def test_a_change_of_an_attribute_is_no_change_of_status() -> None:
    found = compare(BOTH, BOTH.replace("Small", "Large"), "pacemaker")
    assert found.changed == ("left pleural effusion size small > large",)
    assert not found.off_target
    assert found.off_target_attributes
    assert not compare(BOTH, BOTH.replace("Small", "Large"), "large left pleural effusion").off_target_attributes


def test_other_words_for_the_same_are_no_change() -> None:
    found = compare(CLEAR, CLEAR.replace("Heart size is normal", "The heart is not enlarged"), "oedema")
    assert found.none
    # Silence is not a change of what is claimed to be there.
    assert compare(CLEAR, CLEAR.replace("Heart size is normal. ", ""), "oedema").none


def test_doubt_is_a_change() -> None:
    found = compare(CLEAR, CLEAR + " Possible pneumonia.", "oedema")
    assert found.appeared == ("uncertain pneumonia",)
    assert found.off_target


@pytest.mark.parametrize(
    ("concept", "scope"),
    [
        ("pleural effusion", Scope("pleural effusion")),
        ("small left pleural effusion", Scope("pleural effusion", "left")),
        ("bilateral pleural effusions", Scope("pleural effusion")),
        ("right upper consolidation", Scope("consolidation", "right", "upper")),
        ("endotracheal tube malpositioned", Scope("endotracheal tube")),
        ("mild cardiomegaly", Scope("cardiomegaly")),
        ("comparison with prior", Scope("")),
        ("normal study", Scope("*")),
    ],
)
def test_scope_of_a_concept(concept: str, scope: Scope) -> None:
    assert Scope.of(concept) == scope


def test_every_phantom_concept_has_a_scope() -> None:
    about_no_finding = {c for c in study_labels((), has_prior=False, communication=False) if not Scope.of(c).name}
    assert about_no_finding == {
        "new finding", "worse", "improved", "unchanged", "resolved", "comparison with prior", "communication",
    }  # fmt: skip


def test_edit_distance_equals_the_definition() -> None:
    def slow(a: tuple[str, ...], b: tuple[str, ...]) -> int:
        @cache
        def distance(i: int, j: int) -> int:
            if not i or not j:
                return i + j
            same = distance(i - 1, j - 1) + (a[i - 1] != b[j - 1])
            return min(same, distance(i - 1, j) + 1, distance(i, j - 1) + 1)

        return distance(len(a), len(b))

    rng = random.Random(0)
    for _ in range(200):
        a, b = (tuple(rng.choices("abcd", k=rng.randrange(12))) for _ in range(2))
        assert edit_distance(list(a), list(b)) == slow(a, b)


@pytest.mark.parametrize(
    ("text", "finished", "reason"),
    [
        (LEFT, True, ""),
        (LEFT, False, "unfinished"),
        ("", True, "empty"),
        (" . . ", True, "empty"),
        ("the the the the", True, "repetition"),
        (CLEAR + " Pacemaker in place." * 4, True, "repetition"),
        ("left small left small left small left small effusion", True, "repetition"),
    ],
)
def test_degenerate_text(text: str, finished: bool, reason: str) -> None:
    assert degenerate(text, finished) == reason


def test_what_is_not_finite_is_degenerate() -> None:
    assert degenerate(LEFT, finished=True, finite=False) == "not finite"


def test_repetition_is_the_share_of_runs_said_before() -> None:
    assert repetition(CLEAR) == 0
    assert abs(repetition("a b c d " * 2) - 1 / 5) < 1e-9
    assert repetition("a b") == 0


def test_what_else_was_meant_is_on_target() -> None:
    assert not compare(CLEAR, BOTH, "left pleural effusion", also=("pacemaker",)).off_target


def test_no_true_report_is_degenerate() -> None:
    latents = sample(0, 500, seed=5)
    for i in range(len(latents)):
        text = write(latents, i, random.Random(i)).findings
        assert not degenerate(text, finished=True)


# ------------------------------------------------------------------------------ rates, end to end
N = 40


def report(effusion: bool, pacemaker: bool = False) -> str:
    return {(False, False): CLEAR, (True, False): LEFT, (True, True): BOTH}.get(
        (effusion, pacemaker), CLEAR.replace("No pacemaker.", "Pacemaker in place.")
    )


def line(study: int, arm: str, strength: float, original: str, steered: str) -> dict:
    concept = "" if arm == "none" else "left pleural effusion"
    settings = {"arm": arm, "concept": concept, "feature": None if arm == "none" else 3}
    return {
        "study": f"s{study:02d}", "direction": arm, "strength": strength, "original": original,
        "steered": steered, "finished": True, "finite": True, "surprise": 0.5 + abs(strength), "settings": settings,
    }  # fmt: skip


def made_generations() -> list[dict]:
    """30 studies without an effusion, 10 with one. Strength 2 of the feature makes it appear in all,
    with a pacemaker in every fifth; strength 1 in every second; strength 4 makes the text repeat
    itself; the random arm does nothing; -2 never removes it."""
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
            lines.append(line(study, "feature", strength, original, steered))
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
        stage.finish({})
    result = evaluate.run(
        configured(200),
        workdir,
    )
    return workdir, result


def test_rates_are_those_that_were_made(evaluated: tuple[Path, dict]) -> None:
    workdir, _ = evaluated
    summary = files.read_json(workdir / "evaluation" / "made" / "summary.json")
    assert (summary["unsteered"]["reports"], summary["unsteered"]["degenerate"]) == (N, 0)
    assert summary["unsteered"]["surprise"]["rate"] == 0.5
    rates = {(r["arm"], r["strength"]): r for r in summary["rates"] if r["concept"] == "all"}
    two, one, four = rates["feature", 2.0], rates["feature", 1.0], rates["feature", 4.0]
    assert (two["on_target"]["rate"], two["on_target"]["n"]) == (1.0, 30)
    assert (two["off_target"]["rate"], two["off_target"]["n"]) == (0.2, N)
    assert one["on_target"]["rate"] == 0.5
    assert one["no_change"]["rate"] == one["identical"]["rate"] == 25 / N
    # Repetition is flagged and kept out of every rate but the one that counts it as a failure.
    assert four["degenerate"]["rate"] == 1.0
    assert four["on_target"] == {"rate": None, "low": None, "high": None, "n": 0}
    assert (four["on_target_of_all"]["rate"], four["on_target_of_all"]["n"]) == (0.0, 30)
    assert rates["feature", -2.0]["on_target"] | {"low": 0, "high": 0} == {"rate": 0.0, "low": 0, "high": 0, "n": 10}
    assert rates["random", 2.0]["no_change"]["rate"] == 1.0
    assert one["surprise"]["rate"] == 1.5
    assert one["on_target"]["low"] < 0.5 < one["on_target"]["high"]


def test_strength_is_chosen_on_one_half_and_reported_on_the_other(evaluated: tuple[Path, dict]) -> None:
    workdir, result = evaluated
    summary = files.read_json(workdir / "evaluation" / "made" / "summary.json")
    best = {(b["arm"], b["wish"]): b for b in summary["best"]}
    appear = best["feature", "appear"]
    assert appear["strength"] == 2.0
    assert appear["chosen_on"] + appear["on_target"]["n"] == 30
    assert 8 <= appear["chosen_on"] <= 22
    assert appear["on_target"]["rate"] == 1.0
    assert best["feature", "vanish"]["on_target"]["rate"] == 0.0
    assert best["random", "appear"]["on_target"]["rate"] == 0.0
    assert result["random_on_target"] == 0.0
    assert 0 < result["feature_off_target"] < 0.4
    headline = summary["headline"]["feature"]["on_target"]
    assert headline["n"] == appear["on_target"]["n"] + best["feature", "vanish"]["on_target"]["n"]


def test_intervals_cover_the_truth() -> None:
    """Of 200 draws of 50 studies with a success rate of 0.3, about 95 % of the intervals hold it."""
    rng = np.random.default_rng(0)
    measure = evaluate.MEASURES["no_change"]
    held = 0
    for seed in range(200):
        rows = [{"study": f"{i}", "no_change": bool(rng.random() < 0.3), "degenerate": ""} for i in range(50)]
        found = evaluate._Bootstrap([r["study"] for r in rows], 400, seed).rate(rows, measure)
        held += found["low"] <= 0.3 <= found["high"]
    assert 0.88 <= held / 200 <= 0.99


def test_results_name_what_changed(evaluated: tuple[Path, dict]) -> None:
    workdir, _ = evaluated
    rows = pq.read_table(workdir / "evaluation" / "made" / "results.parquet").to_pylist()
    lines = (workdir / "steer" / "made" / "generations.jsonl").read_text().splitlines()
    for row in rows:
        source = json.loads(lines[row["line"]])
        assert (row["study"], row["strength"]) == (source["study"], source["strength"])
        same = difflib.SequenceMatcher(None, words_of(source["original"]), words_of(source["steered"])).ratio() == 1
        assert (row["edit_distance"] == 0) == same
    made = next(r for r in rows if r["strength"] == 2.0 and r["arm"] == "feature" and r["study"] == "s05")
    assert made["appeared"] == ["left pleural effusion", "pacemaker"]
    assert made["on_target"] and made["off_target"]


def test_a_broken_line_is_refused(tmp_path: Path) -> None:
    with Stage(tmp_path, "steer/made", {}) as stage:
        (stage.dir / "generations.jsonl").write_text('{"study": "s0')
        stage.finish({})
    with pytest.raises(UserError, match="line 1 of"):
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
        target = {"explanation": 'Says "effusion".', "concept": "left pleural effusion"}
        described = [{"key": "feature-3", "target": target}, {"key": "random-3", "target": None}]
        files.write_json(stage.dir / "directions.json", described)
        stage.finish({})
    with serve() as server:
        config = configured(50, "llm")
        config.judge.base_url = server.url
        evaluate.run(config, tmp_path)
        bodies = server.record()["bodies"]
    rows = pq.read_table(tmp_path / "evaluation" / "made" / "results.parquet").to_pylist()
    judged = [row for row in rows if row["judge_concept"] is not None]
    assert {row["study"] for row in judged} == {f"s{i:02d}" for i in range(7)}
    assert {row["arm"] for row in judged} == {"feature"}
    made = next(r for r in judged if r["strength"] == 2.0 and r["study"] == "s05")
    before, after = ({*words_of(report(*has))} - {".", ","} for has in ((False,), (True, True)))
    assert made["judge_on_target"] == 0 and made["judge_off_target"] == len(before ^ after)
    assert (made["judge_concept"], made["judge_report"], made["judge_fluency"]) == (2, 2, 1)
    rates = files.read_json(tmp_path / "evaluation" / "made" / "summary.json")["rates"]
    two = next(r for r in rates if r["arm"] == "feature" and r["strength"] == 2.0 and r["concept"] == "all")
    assert (two["judge_score"]["rate"], two["judge_score"]["n"]) == (1.5, 7)
    minus = next(r for r in rates if r["arm"] == "feature" and r["strength"] == -2.0 and r["concept"] == "all")
    assert (minus["judge_no_change"]["rate"], minus["judge_score"]["rate"]) == (1.0, 0.0)
    assert bodies and not any("strength" in json.dumps(body) or "appear" in json.dumps(body) for body in bodies)
