"""Training in several processes equals training in one, and all of them stop, fail and resume together."""

import json
import os
import re
import signal
import time

import numpy as np
import pytest

from configs import phantom
from maira_jax.checkpoint import convert
from sae.saved import load_sae
from sae.training import stage
from tests.helpers import pods
from tests.helpers.sae import activations, make_model, make_store, whole_checkpoints

STEPS = 200
LIVE = {
    "studies.n": 24,
    "harvest.site": "language.1.resid_mid",
    "harvest.batch_size": 4,
    "harvest.held_out_fraction": 0.3,
    "sae.k": 4,
    "sae.expansion": 2,
    "train.source": "model",
    "train.preset": "scaled",
    "train.steps": 20,
    "train.batch_size": 32,
    "train.warmup_steps": 4,
    "train.decay_start": 16,
    "train.evaluate_every": 10,
    "train.loss_recovered_studies": 2,
}
FIELDS = {
    "sae.k": 4,
    "train.preset": "scaled",
    "train.steps": STEPS,
    "train.batch_size": 64,
    "train.lr": 5e-3,
    "train.warmup_steps": 5,
    "train.decay_start": 150,
    "train.dead_tokens": 1000,
    "train.checkpoint_every": STEPS,
    "train.evaluate_every": 100,
    "train.loss_recovered_studies": 0,
}


def flags(workdir, mesh="2,2", expansion=4, **train):
    given = FIELDS | {"sae.expansion": expansion} | {f"train.{name}": value for name, value in train.items()}
    return [f"--workdir={workdir}", f"--mesh={mesh}", *(f"--config.{name}={value}" for name, value in given.items())]


@pytest.fixture(scope="module")
def values():
    return activations(6000, 24)


@pytest.fixture(scope="module")
def one(values, tmp_path_factory):
    """A run of one process."""
    workdir = tmp_path_factory.mktemp("one")
    make_store(workdir, values)
    pods.launch("train", *flags(workdir), processes=1, devices=4)
    return workdir / "sae"


@pytest.fixture
def workdir(values, tmp_path):
    make_store(tmp_path, values)
    return tmp_path


def lines(sae, name="log.jsonl"):
    return [json.loads(line) for line in (sae / name).read_text().splitlines()]


def assert_equal(sae, other):
    ours, theirs = load_sae(sae), load_sae(other)
    for name, value in theirs.params.items():
        # It begins at zero, and where a gradient is next to nothing Adam follows its rounding.
        limit = 1e-3 if name == "b_enc" else 1e-5
        assert np.linalg.norm(ours.params[name] - value) <= limit * np.linalg.norm(value), name
    losses = [[line["loss"] for line in lines(path)] for path in (sae, other)]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    measured, expected = (json.loads((path / "metrics.json").read_text()) for path in (sae, other))
    assert measured.keys() == expected.keys()
    for name in ("tokens", "fvu", "explained_variance", "cosine", "l0", "dead", "dense"):
        np.testing.assert_allclose(measured[name], expected[name], rtol=1e-5, err_msg=name)
    for ours, theirs in zip(lines(sae, "held_out.jsonl"), lines(other, "held_out.jsonl"), strict=True):
        np.testing.assert_allclose([ours["step"], ours["fvu"]], [theirs["step"], theirs["fvu"]], rtol=1e-5)
    np.testing.assert_allclose(np.load(sae / "density.npy"), np.load(other / "density.npy"), atol=1e-6)


def interrupted(workdir, sent, after, **fields):
    """How two processes end, of which the second one is sent a signal when `after` steps are logged."""
    both = pods.start(("-m", "launch.train", *flags(workdir, **fields)), processes=2)
    log = workdir / "sae" / "log.jsonl"
    try:
        while all(process.poll() is None for process in both):
            if log.exists() and len(log.read_bytes().splitlines()) >= after:
                both[1].send_signal(sent)
                break
            time.sleep(0.01)
        return pods.ended(both, timeout=120)
    finally:
        for process in both:
            process.kill()


def test_two_processes_equal_one_however_often_they_are_stopped(one, workdir):
    sae = workdir / "sae"
    # Terminated: all save the same step. Checkpoints by steps are far away, those by minutes near.
    ends = interrupted(workdir, signal.SIGTERM, 20, checkpoint_minutes=1e6)
    assert [end.code for end in ends] == [143, 143], ends
    (sentence,) = re.findall(r"train: terminated after step (\d+); the same command resumes from there", ends[0].err)
    assert whole_checkpoints(sae) == {int(sentence)} and 20 <= int(sentence) < STEPS
    assert not ends[1].err, ends[1].err
    # Killed: the other one ends with a sentence.
    ends = interrupted(workdir, signal.SIGKILL, int(sentence) + 60, checkpoint_minutes=0.01)
    assert [end.code for end in ends] == [143, -signal.SIGKILL], ends
    assert "error: process 1 of 2 no longer answers" in ends[0].err and "Traceback" not in ends[0].err
    assert max(whole_checkpoints(sae)) > int(sentence)
    pods.launch("train", *flags(workdir), processes=2)
    assert [line["step"] for line in lines(sae)] == list(range(STEPS))
    assert json.loads((sae / "manifest.json").read_text())["counts"]["steps"] == STEPS
    assert_equal(sae, one)
    assert os.listdir(sae / "tensorboard")


@pytest.mark.drill
def test_two_processes_that_run_the_model_equal_one(tmp_path):
    config = phantom.get_config()
    config.update_from_flattened_dict(LIVE)
    make_model(tmp_path / "hf", config.studies)
    config.model.checkpoint = str(tmp_path / "hf")
    convert.run(config, tmp_path / "alone")
    stage.run(config, tmp_path / "alone")
    two = tmp_path / "two"
    two.mkdir()
    (two / "model").symlink_to(tmp_path / "alone" / "model")
    given = [f"--config.{name}={value}" for name, value in LIVE.items()]
    pods.launch("train", f"--workdir={two}", "--mesh=2,1", *given, processes=2, devices=1)
    assert_equal(two / "sae", tmp_path / "alone" / "sae")
    ours, theirs = (
        json.loads((path / "sae" / "metrics.json").read_text())["loss"] for path in (two, tmp_path / "alone")
    )
    for name in ("tokens", "replaced", "ce", "ce_spliced", "ce_zero", "ce_mean"):
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-6, err_msg=name)


def test_an_error_of_the_first_process_ends_both(workdir):
    both = pods.start(("-m", "launch.train", *flags(workdir, lr=1e30, steps=100, decay_start=50)), processes=2)
    ends = pods.ended(both, timeout=120)
    assert [end.code for end in ends] == [1, 1], ends
    assert re.search(r"^error: the loss is not finite at step \d+: lower train.lr$", ends[0].err, re.MULTILINE)
    assert re.search(r"^\[1\] error: the loss is not finite at step \d+: lower train.lr$", ends[1].err, re.MULTILINE)


@pytest.mark.drill
@pytest.mark.parametrize("processes, devices, mesh", [(4, 2, "4,2"), (2, 4, "1,8"), (4, 2, "2,4")])
def test_more_processes_equal_one(processes, devices, mesh, values, workdir, tmp_path_factory):
    alone = tmp_path_factory.mktemp("alone")
    make_store(alone, values)
    short = {"expansion": 16, "steps": 100, "decay_start": 60, "evaluate_every": 50, "checkpoint_every": 50}
    pods.launch("train", *flags(alone, mesh, **short), processes=1, devices=processes * devices)
    pods.launch("train", *flags(workdir, mesh, **short), processes=processes, devices=devices)
    assert_equal(workdir / "sae", alone / "sae")


@pytest.mark.drill
def test_a_run_resumes_on_other_meshes_and_numbers_of_processes(one, workdir):
    sae, saved = workdir / "sae", 0
    for processes, devices, mesh in ((4, 2, "4,2"), (2, 4, "8,1")):
        both = pods.start(("-m", "launch.train", *flags(workdir, mesh)), processes=processes, devices=devices)
        log = sae / "log.jsonl"
        while not log.exists() or len(log.read_bytes().splitlines()) < saved + 50:
            assert all(process.poll() is None for process in both)
            time.sleep(0.01)
        both[1].send_signal(signal.SIGTERM)
        assert [end.code for end in pods.ended(both, timeout=300)] == [143] * processes
        assert max(whole_checkpoints(sae)) > saved
        saved = max(whole_checkpoints(sae))
    assert saved < STEPS
    pods.launch("train", *flags(workdir, "1,1"), processes=1, devices=1)
    losses = [[line["loss"] for line in lines(path)] for path in (sae, one)]
    np.testing.assert_allclose(*losses, rtol=1e-3)
