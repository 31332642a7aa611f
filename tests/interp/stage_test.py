"""The interpret stage on planted features: what it finds, that it resumes, and what it refuses."""

import json
import shutil
import signal
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest

from interp import stage
from interp.controls import CONTROLS
from interp.controls.shuffled_activations import ShiftedStore
from interp.explainers import explainer
from interp.explainers.offline_explainer import PREFIX
from interp.explainers.rules import Rule
from maira_jax.checkpoint.store import load_unembedding
from maira_jax.errors import UserError
from maira_jax.inputs.tokens import Tokenizer
from maira_jax.run import files
from sae.activations.store import ActivationStore
from sae.saved import load_sae
from tests.helpers.interp_run import DEAD, EVERYWHERE, N_FEATURES, NOISE, PLANTED, RARE, config, make_workdir
from tests.helpers.judge import serve
from tests.helpers.paths import ROOT
from tests.helpers.traces import names_in

RESULTS = (
    "controls.parquet",
    "coverage.parquet",
    "statements.parquet",
    "features.parquet",
    "features.jsonl",
    "concepts.parquet",
    "exemplars.parquet",
    "summary.json",
)


@pytest.fixture(scope="module", autouse=True)
def small_batches():
    """So that there are several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(explainer, "FEATURE_BATCH", 5)
        yield


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return make_workdir(tmp_path_factory.mktemp("inputs"), 240)


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished") / "run"
    shutil.copytree(inputs, workdir)
    cfg = config()
    cfg.profile = 3
    counts = stage.run(cfg, workdir)
    return workdir, counts


@pytest.fixture(scope="module")
def features(finished):
    return pq.read_table(finished[0] / "interp" / "features.parquet").to_pylist()


def test_planted_features_are_named_and_noise_is_not(features):
    """Each planted feature fires on whole sentences that a rule can describe; its words must be in the rule."""
    # Every technique is of the chest.
    named = {0: "pleural", 1: "pneumothorax", 2: "chest", 3: "there is", 5: "pacemaker"}
    for feature, word in named.items():
        assert word in features[feature]["explanation"]
        assert features[feature]["detection"] > 0.9
    # Informing somebody is phrased in several ways, of which a rule holds three.
    assert features[4]["detection"] > 0.85
    # 100 examples of pure chance: 0.5 with a standard error of 0.05.
    assert features[NOISE]["detection"] < 0.7


def test_blocks_are_traced(finished):
    names = names_in(finished[0] / "profile")
    assert names["interpret"] == names["feed"] == 3 and names["PjitFunction(add_block)"] >= 3


def test_explanations_are_rules_that_name_the_offline_judge(features):
    for row in features:
        assert row["judge"] == "offline judge (no language model)"
        if row["explanation"] is not None:
            assert row["explanation"].startswith(PREFIX)
            assert Rule.parse(row["explanation"].removeprefix(PREFIX)).name == row["name"]


def test_features_that_cannot_be_scored_say_why(features, finished):
    assert features[EVERYWHERE]["reason"].startswith("fewer than 20 of the sampled")
    assert features[RARE]["reason"].startswith("active in fewer than 20")
    assert all(row["reason"] == "never active" for row in features[DEAD:])
    summary = files.read_json(finished[0] / "interp" / "summary.json")
    assert summary["scored"] + sum(summary["not_scored"].values()) == summary["features"] == N_FEATURES
    assert summary["alive"] == DEAD
    assert summary["scored"] == sum(row["detection"] is not None for row in features) == len(PLANTED) + 1
    assert finished[1] | {"above_075": summary["detection"]["above_075"]} == finished[1]


def test_shuffled_explanations_score_near_chance(features):
    """The control: none of the planted features' explanations fits another one; noise in 7 scores is about 0.03."""
    control = [row["detection_shuffled"] for row in features if row["detection_shuffled"] is not None]
    assert len(control) == len(PLANTED) + 1
    assert abs(np.mean(control) - 0.5) < 0.1
    assert max(control) < 0.75


def test_control_arms_are_scored_like_features(finished, features):
    rows = pq.read_table(finished[0] / "interp" / "controls.parquet").to_pylist()
    assert [row["control"] for row in rows] == [
        arm for arm in sorted(CONTROLS.names(), key="shuffled activations".__eq__) for _ in range(8)
    ]
    scored = {row["feature"]: row for row in features if row["detection"] is not None}
    for row in rows:
        assert (row["direction"] != "") == (row["control"] in ("raw dimensions", "principal components"))
        # By rank: as dense as the feature that it is matched with.
        assert row["density"] == pytest.approx(scored[row["matched_feature"]]["density"], rel=0.25)
        assert (row["detection"] is None) != (row["reason"] is None)
    summary = files.read_json(finished[0] / "interp" / "summary.json")
    for arm in CONTROLS.names():
        detection = [row["detection"] for row in rows if row["control"] == arm and row["detection"] is not None]
        found = summary["controls"][arm]["detection"]
        assert found["scored"] == len(detection) > 0 and found["mean"] == pytest.approx(np.mean(detection))
        assert found["interval"][0] <= found["mean"] <= found["interval"][1]
        own = np.mean([row["detection"] for row in scored.values()])
        above = summary["above_controls"][arm]["detection"]
        assert above["difference"] == pytest.approx(own - found["mean"])
        assert above["interval"][0] < above["difference"] < above["interval"][1]
        assert summary["controls"][arm]["fuzzing"]["scored"] > 0


def test_activations_of_other_tokens_are_as_dense_and_say_nothing(finished):
    """Eight of them: the standard error of their mean is about 0.03."""
    store = ActivationStore.open(finished[0] / "activations")
    shifted, n = ShiftedStore(**vars(store)), store.n_tokens
    rows = np.roll(store.read(0, n), -(n // 2), axis=0)
    for start, stop in ((0, 5), (n // 2 - 3, n - n // 2 + 3), (n - 4, n), (0, n), (n - n // 2 - 2, n - n // 2)):
        np.testing.assert_array_equal(shifted.read(start, stop), rows[start:stop])
    rows = pq.read_table(finished[0] / "interp" / "controls.parquet").to_pylist()
    scores = [row["detection"] for row in rows if row["control"] == "shuffled activations"]
    assert abs(np.mean([score for score in scores if score is not None]) - 0.5) < 0.1


def test_only_the_features_asked_for_are_explained(inputs, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(inputs, workdir)
    stage.run(config(features=(0, 5)), workdir)
    rows = pq.read_table(workdir / "interp" / "features.parquet").to_pylist()
    assert [row["feature"] for row in rows if row["explanation"]] == [0, 5]
    assert {row["reason"] for row in rows if not row["explanation"]} == {"not asked for"}
    assert all(row["density"] is not None for row in rows)
    controls = pq.read_table(workdir / "interp" / "controls.parquet")["control"].to_pylist()
    assert max(map(controls.count, controls)) == 2, "no more of a kind than features"
    exemplars = (workdir / "interp" / "exemplars.parquet").stat().st_mtime_ns
    stage.run(config(features=(3,)), workdir)
    stage.run(config(features=(5,)), workdir)  # it is there
    more = pq.read_table(workdir / "interp" / "features.parquet").to_pylist()
    assert [row["feature"] for row in more if row["explanation"]] == [0, 3, 5]
    assert [(more[i]["explanation"], more[i]["detection"]) for i in (0, 5)] == [
        (rows[i]["explanation"], rows[i]["detection"]) for i in (0, 5)
    ]
    assert (workdir / "interp" / "exemplars.parquet").stat().st_mtime_ns == exemplars
    assert not (workdir / "interp" / "phases").exists()
    shutil.rmtree(workdir / "interp")
    with pytest.raises(UserError, match="interpret.features names 12, but the features are 0 to 11"):
        stage.run(config(features=(12,)), workdir)


def test_statistics_match_the_store(features, finished):
    workdir = finished[0]
    tokens = pq.read_table(workdir / "activations" / "tokens.parquet")
    assert features[EVERYWHERE]["density"] == 1.0
    assert features[EVERYWHERE]["max_activation"] == pytest.approx(2.0, abs=0.01)
    assert features[2]["sections"]["technique"] == 1.0
    assert sum(features[EVERYWHERE]["sections"].values()) == pytest.approx(1.0)
    assert features[EVERYWHERE]["mean_position"] == pytest.approx(np.mean(tokens["position"].to_numpy()))
    assert features[2]["sections"]["technique"] == 1.0 and features[DEAD]["mean_position"] is None
    head, tokenizer = load_unembedding(workdir / "model")[1], Tokenizer.from_dir(workdir / "model")
    logits = np.asarray(load_sae(workdir / "sae").params["W_dec"])[3] @ (head - head.mean(1, keepdims=True))
    order = np.argsort(logits)
    assert features[3]["promoted"] == tokenizer.pieces(order[::-1][:8])
    assert features[3]["suppressed"] == tokenizer.pieces(order[:8])
    np.testing.assert_allclose(features[3]["suppressed_logit"], logits[order[:8]], rtol=1e-4)
    assert abs(features[NOISE]["density"] - 0.05) < 5 * np.sqrt(0.05 * 0.95 / tokens.num_rows)
    for row in features:
        assert sum(row["histogram"]) == row["n_contexts_train"] + row["n_contexts_held_out"]
        assert len(row["similar"]) == 8 and row["feature"] not in row["similar"]
    assert [row["group"] for row in features] == [0] * 8 + [1] * 4
    lines = (workdir / "interp" / "features.jsonl").read_text().splitlines()
    assert [json.loads(line)["explanation"] for line in lines] == [row["explanation"] for row in features]


def test_no_study_is_explained_and_scored(finished):
    rows = pq.read_table(finished[0] / "interp" / "exemplars.parquet", columns=["split", "study_id"]).to_pylist()
    by_split = {split: {row["study_id"] for row in rows if row["split"] == split} for split in ("train", "held_out")}
    assert by_split["train"] and by_split["held_out"] and not by_split["train"] & by_split["held_out"]
    table = pq.read_table(finished[0] / "activations" / "studies.parquet").to_pylist()
    split_of = {row["study_id"]: row["split"] for row in table}
    assert all(split_of[study] == split for split, studies in by_split.items() for study in studies)


def test_concepts_have_the_planted_feature(finished):
    rows = {r["concept"]: r for r in pq.read_table(finished[0] / "interp" / "concepts.parquet").to_pylist()}
    assert rows["communication"]["feature"] == 4 and rows["communication"]["f1"] > 0.95
    assert rows["pneumothorax"]["feature"] == 1 and rows["pneumothorax"]["f1"] > 0.8
    assert rows["oedema"]["f1"] < 0.8  # nothing was planted for it


def test_marks_are_scored_too(features):
    """Features that fire on a word of their rule are told from others; noise, which fires anywhere, is not."""
    for feature in PLANTED:
        assert features[feature]["fuzzing_n_examples"] > 0 and features[feature]["fuzzing_n_failed"] == 0
    # Of the planted features' sentences a random token is active, so the rule's words are marked by chance.
    assert abs(np.mean([features[feature]["fuzzing"] for feature in PLANTED]) - 0.5) < 0.15


def results(workdir):
    return {name: (workdir / "interp" / name).read_bytes() for name in RESULTS}


def test_a_second_run_does_nothing(finished, capsys):
    workdir, counts = finished
    before = results(workdir)
    assert stage.run(config(), workdir) == counts
    assert "already finished" in capsys.readouterr().err
    assert results(workdir) == before


def test_killed_at_any_phase_it_ends_with_the_same_results(inputs, finished, tmp_path):
    """SIGKILL in the pass over the store, after the exemplars, and after a batch of explanations and one of scores."""
    workdir = tmp_path / "run"
    shutil.copytree(inputs, workdir)
    for where in ("pass", "exemplars", "explanations", "detection"):
        command = [sys.executable, "-m", "tests.helpers.killed_interpret", str(workdir), where]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr.decode()
        assert (workdir / "interp" / "phases" / "parts").exists() == (where == "pass")
    exemplars = workdir / "interp" / "exemplars.parquet"
    assert len(list((workdir / "interp" / "phases" / "scores" / "detection").iterdir())) == 1
    changed = exemplars.stat().st_mtime_ns
    stage.run(config(), workdir)
    assert exemplars.stat().st_mtime_ns == changed  # not made again
    assert not (workdir / "interp" / "phases").exists()
    assert results(workdir) == results(finished[0])


def test_wrong_configs_are_refused_in_one_sentence(inputs, tmp_path):
    for change, message in (
        ({"judge": "gpt"}, "interpret.judge is 'gpt': choose from llm, offline"),
        ({"scorers": ("detection", "toy")}, "interpret.scorers is 'toy': choose from detection, fuzzing"),
        ({"scorers": ("fuzzing",)}, "interpret.scorers leaves out detection"),
        ({"n_explain": 45}, "interpret.n_explain is 45, but must be a multiple of 10"),
        ({"n_score": 1000}, "interpret.n_score is 1000"),
        ({"concept_sections": ("finding",)}, "interpret.concept_sections is 'finding'"),
        ({"n_top": 0}, "interpret.n_top is 0, but must be at least 1"),
        ({"min_contexts": 60}, "interpret.min_contexts must not be above"),
    ):
        with pytest.raises(UserError, match=message):
            stage.run(config(**change), inputs)
    cfg = config()
    cfg.interpret.unknown = 1
    with pytest.raises(UserError, match=r"interpret.unknown is unknown"):
        stage.run(cfg, inputs)
    with pytest.raises(UserError, match="no finished stage wrote"):
        stage.run(config(), tmp_path)
    assert not (inputs / "interp").exists()


def test_a_language_model_judges_through_the_same_stages(inputs, tmp_path, capsys):
    """By rule of the server; budget and place of the server may change between two calls, the model may not."""
    workdir = tmp_path / "run"
    shutil.copytree(inputs, workdir)
    cfg = config(judge="llm", n_score=20)
    prices = {"price_in": 100.0, "price_out": 100.0}
    with serve(too_many=0.1, malformed=0.05, retry_after="0") as server:
        cfg.judge.update({"base_url": server.url, "model": "rule", "max_cost": 3.0} | prices)
        with pytest.raises(UserError, match="judge.max_cost"):
            stage.run(cfg, workdir)
        first = server.record()
        cfg.judge.max_cost = 1000.0
        stage.run(cfg, workdir)
        record = server.record()
        assert record["answered_twice"] == 0 and record["requests"] > first["requests"] > 0
        cfg.judge.model = "other"
        with pytest.raises(UserError, match="judge.model"):
            stage.run(cfg, workdir)
    cfg.judge.model = "rule"
    stage.run(cfg, workdir)  # finished: needs no server
    told = capsys.readouterr().err
    assert "requests to rule at http://127.0.0.1" in told and "already finished" in told
    rows = pq.read_table(workdir / "interp" / "features.parquet").to_pylist()
    summary = files.read_json(workdir / "interp" / "summary.json")
    assert {row["judge"] for row in rows} == {"rule"}
    assert {row["prompt_version"] for row in rows} == {"explain-1 detect-1 fuzz-1 intruder-1"}
    # Every study of this section has few words, so the most frequent one is in most examples.
    assert rows[2]["detection"] > 0.6 and rows[2]["explanation"].startswith("Text that mentions")
    assert summary["scored"] == len(PLANTED) + 1 and summary["examples_failed"] == 0
    control_rows = pq.read_table(workdir / "interp" / "controls.parquet").to_pylist()
    # Two features may ask the same question, which is paid once.
    assert 3.0 < summary["cost"] == summary["usage"]["cost"] <= sum(row["cost"] for row in rows + control_rows) + 1e-9
    assert summary["usage"]["answers"] >= record["distinct"] and summary["usage"]["failed"] == {}
    assert summary["usage"]["endpoint"] == server.url


def test_a_judge_that_answers_nothing_ends_no_stage_however_few_it_was_asked(inputs, tmp_path):
    """The next run asks again what failed, and finishes."""
    workdir = tmp_path / "run"
    shutil.copytree(inputs, workdir)
    cfg = config(judge="llm", n_score=20, features=(0, 1))
    with serve(fault_text="example", fault_status=400) as server:
        cfg.judge.update({"base_url": server.url, "model": "rule", "attempts": 1})
        with pytest.raises(UserError, match=r"none of 2 requests to .* had a usable answer, .*HTTP 400\): fix that"):
            stage.run(cfg, workdir)
        assert not (workdir / "interp" / "manifest.json").exists()
        server.control(fault_text="")
        assert stage.run(cfg, workdir)["scored"] == 2
    rows = pq.read_table(workdir / "interp" / "features.parquet").to_pylist()
    assert all(row["explanation"] for row in rows[:2])
