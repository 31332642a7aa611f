"""The train stage: resumed runs, refusals, and what it reaches."""

import json
import os
import signal
import subprocess
import sys
import time
import unittest.mock
from pathlib import Path

import numpy as np
import pytest
from absl import logging

from maira_jax.errors import UserError
from maira_jax.run import files
from sae.activations.store import HELD_OUT, ActivationStore
from sae.saved import load_sae
from sae.training import stage
from tests.helpers.paths import ROOT
from tests.helpers.sae import activations, large_config, long_config, make_store, train_config, whole_checkpoints
from tests.helpers.traces import names_in

# At how many random moments a run is killed: SAE_TEST_KILLS=10 pytest -s tests/sae/training/stage_test.py -k stopped
KILLS = int(os.environ.get("SAE_TEST_KILLS", "1"))
PROGRAM = "tests.helpers.train_process"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A finished run."""
    path = tmp_path_factory.mktemp("run")
    make_store(path, activations(6000, 24))
    config = train_config(evaluate_every=20)
    config.profile = 20
    stage.run(config, path)
    return path


def test_results(workdir):
    sae = load_sae(workdir / "sae")
    assert (sae.d_model, sae.n_features, sae.k, sum(sae.group_sizes)) == (24, 96, 4, 96)
    np.testing.assert_allclose(np.linalg.norm(sae.params["W_dec"], axis=1), 1, atol=1e-5)
    measured = json.loads((workdir / "sae" / "metrics.json").read_text())
    store = ActivationStore.open(workdir / "activations")
    assert measured["tokens"] == len(store.rows_of(HELD_OUT))
    assert measured["l0"] == pytest.approx(4, abs=1 / measured["tokens"])  # calibrated on these tokens
    assert measured["fvu"] < 0.65
    assert measured["fvu"] <= measured["prefixes"][0]["fvu"]
    assert sae.meta["source"]["site"] == "language.3.resid_post"
    lines = [json.loads(line) for line in (workdir / "sae" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(60))
    assert all(line["l0"] == 4 for line in lines)
    assert lines[-1]["main"] < 0.7 * lines[0]["main"]
    # The preset follows the running threshold after half of the steps.
    assert (lines[30]["threshold"], lines[0]["lr"]) == (-1, 0)
    assert lines[31]["threshold"] > 0


def test_held_out_tokens_are_measured_on_the_way(workdir):
    final = json.loads((workdir / "sae" / "metrics.json").read_text())
    lines = [json.loads(line) for line in (workdir / "sae" / "held_out.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [19, 39]
    assert lines[0]["fvu"] > lines[1]["fvu"] > final["fvu"]
    for line in lines:
        assert line.keys() - {"step"} == final.keys() - {"loss"}
        assert line["l0"] == pytest.approx(4, abs=1 / line["tokens"])


def test_the_time_of_every_chunk_is_written(workdir):
    lines = [json.loads(line) for line in (workdir / "sae" / "timing.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [9, 19, 29, 39, 49, 59]
    assert all(line.keys() == {"step", "total", "feed", "device", "log"} for line in lines)  # a CPU tells no memory
    assert all(0 < line["feed"] < line["total"] and line["device"] > 0 and line["log"] > 0 for line in lines)


def test_some_steps_are_traced(workdir):
    names = names_in(workdir / "profile")
    assert names["train"] == names["feed"] == 2 and names["evaluate"] == 1


def test_a_finished_stage_is_not_run_again(workdir):
    before = (workdir / "sae" / "log.jsonl").stat().st_mtime_ns
    assert stage.run(train_config(evaluate_every=20), workdir)["steps"] == 60
    assert (workdir / "sae" / "log.jsonl").stat().st_mtime_ns == before


def test_another_config_is_refused(workdir):
    with pytest.raises(UserError, match="train.lr"):
        stage.run(train_config(lr=2e-3, evaluate_every=20), workdir)


def kill_when(process: subprocess.Popen, reached, limit: float = 600) -> None:
    end = time.monotonic() + limit
    while process.poll() is None and time.monotonic() < end:
        if reached():
            os.kill(process.pid, signal.SIGKILL)
            break
        time.sleep(0.005)
    process.wait()
    assert process.returncode == -signal.SIGKILL, process.stderr.read()


def latest_checkpoint(sae: Path) -> int:
    """The step of the latest whole checkpoint, 0 if there is none."""
    return max(whole_checkpoints(sae), default=0)


def assert_same_bits(sae: Path, whole: Path) -> None:
    ours, theirs = load_sae(sae), load_sae(whole)
    for name, value in theirs.params.items():
        np.testing.assert_array_equal(ours.params[name], value, err_msg=name)
    assert ours.threshold == theirs.threshold
    assert dict(ours.meta) == dict(theirs.meta)
    for name in ("log.jsonl", "held_out.jsonl", "metrics.json", "density.npy"):
        assert (sae / name).read_bytes() == (whole / name).read_bytes(), name


def run_and(stop, workdir: Path) -> subprocess.Popen:
    """Trains in a process of its own, to which `stop` is applied."""
    command = [sys.executable, "-m", PROGRAM, str(workdir), "long"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        stop(process)
    return process


def test_stopped_runs_end_with_the_same_bits(tmp_path):
    """Terminated once and killed at random moments; and each of the two autoencoders alone."""
    values = activations(6000, 24)
    for name in ("stopped", "alone"):
        make_store(tmp_path / name, values)
    sae = tmp_path / "stopped" / "sae"

    def terminate(process: subprocess.Popen) -> None:
        while process.poll() is None and latest_checkpoint(sae) < 10:
            time.sleep(0.005)
        process.terminate()
        assert process.wait(500) == 143
        assert f"terminated after step {latest_checkpoint(sae)};" in process.stderr.read()

    run_and(terminate, tmp_path / "stopped")
    saved = latest_checkpoint(sae)
    assert 10 <= saved < 400 and saved == latest_checkpoint(tmp_path / "stopped" / "sae-x2")
    rng = np.random.default_rng()
    for step in sorted(rng.integers(saved + 5, 395, KILLS)):

        def moment(step=step, log=sae / "log.jsonl") -> bool:
            if len(log.read_bytes().splitlines()) < step:
                return False
            time.sleep(rng.uniform(0, 0.05))
            return True

        run_and(lambda process, moment=moment: kill_when(process, moment), tmp_path / "stopped")
        print(f"killed at step {step}, resumes from {latest_checkpoint(sae)}")
    stage.run(long_config(), tmp_path / "stopped")
    timed = [json.loads(line)["step"] for line in (sae / "timing.jsonl").read_text().splitlines()]
    assert timed == list(range(9, 400, 10))

    alone = long_config()
    alone.sae.companions = {}
    stage.run(alone, tmp_path / "alone")
    assert_same_bits(sae, tmp_path / "alone" / "sae")
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / "activations").symlink_to(tmp_path / "alone" / "activations")
    alone.sae.update({"expansion": 2, "k": 3})
    stage.run(alone, tmp_path / "second")
    assert_same_bits(tmp_path / "stopped" / "sae-x2", tmp_path / "second" / "sae")


def test_a_companion_is_trained_after_a_finished_one(workdir):
    before = (workdir / "sae" / "log.jsonl").stat().st_mtime_ns
    config = train_config(evaluate_every=20)
    config.sae.companions = {"topk": {"kind": "top_k", "group_fractions": (1.0,)}, "l1": {"kind": "relu", "l1": 0.1}}
    stage.run(config, workdir)
    assert (workdir / "sae" / "log.jsonl").stat().st_mtime_ns == before
    assert load_sae(workdir / "sae-topk").group_sizes == (96,)
    assert load_sae(workdir / "sae-l1").threshold == 0
    counts = {name: files.read_json(workdir / f"sae-{name}" / "manifest.json")["counts"] for name in ("topk", "l1")}
    assert "k" in counts["topk"] and "k" not in counts["l1"], "the ReLU one selects any number"


def test_features_that_are_mostly_dead_are_warned_of(tmp_path):
    make_store(tmp_path, activations(3000, 24))
    config = train_config(evaluate_every=0)
    config.sae.update({"kind": "relu", "l1": 1000.0})
    with unittest.mock.patch.object(logging, "warning") as warning:
        counts = stage.run(config, tmp_path)
    assert counts["dead"] > 48
    assert warning.call_args.args[2:] == (counts["dead"], 96)


def test_a_full_disk_leaves_the_checkpoint_before_it(tmp_path):
    """Writing fails as on a full disk after step 20, and then there is room again."""
    make_store(tmp_path / "full", activations(3000, 24))
    command = [sys.executable, "-m", PROGRAM, str(tmp_path / "full"), "full_disk"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1500, check=False)
    assert done.returncode and "UserError: could not write a checkpoint" in done.stderr, done.stderr
    # The one of step 20 was perhaps still being written.
    assert latest_checkpoint(tmp_path / "full" / "sae") in (10, 20)
    assert stage.run(large_config(), tmp_path / "full")["steps"] == 60


def test_infinite_activations_are_refused(tmp_path, monkeypatch):
    make_store(tmp_path, activations(3000, 24))
    read = ActivationStore.read_into

    def with_an_infinity(self, out, rows, places):
        read(self, out, rows, places)
        out[places[0], 3] = np.inf

    monkeypatch.setattr(ActivationStore, "read_into", with_an_infinity)
    with pytest.raises(UserError, match="not finite"):
        stage.run(train_config(normalize=False), tmp_path)


def test_divergence_is_one_sentence(tmp_path):
    values = activations(3000, 24)
    make_store(tmp_path, values * np.float32(1e25))
    with pytest.raises(UserError, match="not finite at step 0"):
        stage.run(train_config(normalize=False, steps=50), tmp_path)


@pytest.mark.parametrize(
    "section, field, value, message",
    [
        ("sae", "k", 97, "between 1 and the 96 features"),
        ("sae", "companions", {"x2": {"k": 0}}, "sae.companions.x2.k is 0"),
        ("train", "preset", "best", "choose from dictionary_learning, scaled"),
    ],
)
def test_fields_out_of_range_leave_no_folder(workdir, tmp_path, section, field, value, message):
    config = train_config()
    config[section][field] = value
    (tmp_path / "activations").symlink_to(workdir / "activations")
    with pytest.raises(UserError, match=message):
        stage.run(config, tmp_path)
    assert not (tmp_path / "sae").exists()
