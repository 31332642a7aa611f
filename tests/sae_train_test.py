"""The train stage: resumed runs, refusals, and what it reaches."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from maira_jax.errors import UserError
from sae import train
from sae.activations import HELD_OUT, Store
from sae.checkpoint import load_sae
from tests.sae_helpers import activations, make_store, train_config

ROOT = Path(__file__).parent.parent
# In a process of its own, so that it can be killed.
_RUN = "import sys; from pathlib import Path; from tests.sae_helpers import *; from sae import train; "


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A finished run."""
    path = tmp_path_factory.mktemp("run")
    make_store(path, activations(6000, 24))
    train.run(train_config(), path)
    return path


def test_results(workdir):
    sae = load_sae(workdir / "sae")
    assert (sae.d_model, sae.n_features, sae.k, sum(sae.group_sizes)) == (24, 96, 4, 96)
    np.testing.assert_allclose(np.linalg.norm(sae.params["W_dec"], axis=1), 1, atol=1e-5)
    measured = json.loads((workdir / "sae" / "metrics.json").read_text())
    store = Store.open(workdir / "activations")
    assert measured["tokens"] == len(store.rows_of(HELD_OUT))
    assert measured["l0"] == pytest.approx(4, rel=0.05)  # calibrated on other tokens
    assert measured["fvu"] < 0.65
    assert measured["fvu"] <= measured["prefixes"][0]["fvu"]
    assert sae.meta["source"]["site"] == "language.3.resid_post"
    lines = [json.loads(line) for line in (workdir / "sae" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(60))
    assert all(line["l0"] == 4 for line in lines)
    assert lines[-1]["main"] < 0.7 * lines[0]["main"]
    assert (lines[10]["threshold"], lines[0]["lr"]) == (-1, 0)
    assert lines[11]["threshold"] > 0


def test_a_finished_stage_is_not_run_again(workdir):
    before = (workdir / "sae" / "log.jsonl").stat().st_mtime_ns
    assert train.run(train_config(), workdir)["steps"] == 60
    assert (workdir / "sae" / "log.jsonl").stat().st_mtime_ns == before


def test_another_config_is_refused(workdir):
    with pytest.raises(UserError, match="train.lr"):
        train.run(train_config(lr=2e-3), workdir)


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
    return max((int(path.name) for path in (sae / "checkpoints").glob("*") if path.name.isdigit()), default=0)


def test_killed_runs_end_with_the_same_bits(tmp_path):
    """Killed before the first checkpoint, and then twice as soon as a later one is there."""
    make_store(tmp_path / "killed", activations(6000, 24))
    make_store(tmp_path / "whole", activations(6000, 24))
    sae = tmp_path / "killed" / "sae"
    script = f"{_RUN} train.run(train_config(steps=400, decay_start=300), Path(sys.argv[1]))"
    steps = []
    for reached in (
        (sae / "log.jsonl").is_file,
        lambda: latest_checkpoint(sae) >= 50,
        lambda: latest_checkpoint(sae) >= 150,
    ):
        command = [sys.executable, "-c", script, str(tmp_path / "killed")]
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
            kill_when(process, reached)
        steps.append(latest_checkpoint(sae))
    assert steps[0] < steps[1] < steps[2] < 400
    for name in ("killed", "whole"):
        train.run(train_config(steps=400, decay_start=300), tmp_path / name)
    ours, theirs = load_sae(sae), load_sae(tmp_path / "whole" / "sae")
    for name, value in theirs.params.items():
        np.testing.assert_array_equal(ours.params[name], value, err_msg=name)
    assert ours.threshold == theirs.threshold
    assert dict(ours.meta) == dict(theirs.meta)
    for name in ("log.jsonl", "metrics.json", "density.npy"):
        assert (sae / name).read_bytes() == (tmp_path / "whole" / "sae" / name).read_bytes(), name


def test_divergence_is_one_sentence(tmp_path):
    values = activations(3000, 24)
    make_store(tmp_path, values * np.float32(1e25))
    with pytest.raises(UserError, match="not finite at step 0"):
        train.run(train_config(normalize=False, steps=50), tmp_path)


@pytest.mark.parametrize(
    "section, field, value, message",
    [
        ("sae", "k", 0, "sae.k is 0"),
        ("sae", "k", 97, "between 1 and the 96 features"),
        ("sae", "group_fractions", (0.5, 0.4), "sum to 1"),
        ("sae", "group_weights", (1.0,), "1 entries for 5 groups"),
        ("train", "batch_size", 0, "train.batch_size is 0"),
        ("train", "warmup_steps", 60, "below the 60 steps"),
        ("train", "decay_start", 60, "train.decay_start is 60"),
        ("train", "checkpoint_every", 7, "multiple of train.chunk_steps"),
        ("train", "mesh", (3, 1), "multiple of the data axis"),
        ("train", "mesh", (1, 64), "cannot be split"),
        ("train", "mesh", (32, 1), "needs 32 devices"),
    ],
)
def test_fields_out_of_range(workdir, tmp_path, section, field, value, message):
    config = train_config()
    config[section][field] = value
    (tmp_path / "activations").symlink_to(workdir / "activations")
    with pytest.raises(UserError, match=message):
        train.run(config, tmp_path)
    assert not (tmp_path / "sae").exists()
