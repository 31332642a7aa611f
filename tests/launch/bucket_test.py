"""Commands whose run directory is in a bucket, of S3 or of Google's store, killed on the way, each on a host that has
never seen the run."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from sae.activations.store import ActivationStore
from sae.saved import load_sae
from tests.helpers import bucket as buckets
from tests.helpers import google_bucket, pods
from tests.helpers.paths import ROOT
from tests.helpers.sae import activations

SHORT = ("convert", "harvest", "train")
ALL = (*SHORT, "export", "interpret", "label", "steer", "evaluate", "atlas")
SETTINGS = {
    "studies.n": 50,
    "harvest.batch_size": 8,
    "train.steps": 60,
    "train.warmup_steps": 10,
    "train.decay_start": 40,
    "train.checkpoint_every": 20,
    "train.batch_size": 256,
    "train.loss_recovered_studies": 2,
    "sae.expansion": 1.0,
    "steer.studies": 2,
    "steer.features": "(4,11)",
    "steer.concepts": "",
    "steer.max_new_tokens": 24,
}


FIELDS = [f"--config.{field}={value}" for field, value in SETTINGS.items()]


@pytest.fixture(params=["s3", "gs"])
def bucket(request, tmp_path):
    served = buckets.served() if request.param == "s3" else google_bucket.served(tmp_path)
    with served as found:
        yield found


def command(name, *arguments, environment=(), kill=""):
    """Runs a command, and returns what it wrote to its standard error."""
    ended = subprocess.run(
        [sys.executable, "-m", "tests.helpers.killed_command", name, *arguments, *FIELDS],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "KILL": kill} | dict(environment),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ended.returncode == (-signal.SIGKILL if kill else 0), ended.stderr
    return ended.stderr


def run(commands, bucket, folder):
    """Runs the commands in a bucket, two of them killed and run again, and with a local folder.

    Returns:
      The local run directory, and a copy of what is in the bucket.
    """
    local, copy, scratch = folder / "local", folder / "copy", folder / "scratch"
    flags = (f"--workdir={bucket.scheme}://{buckets.NAME}/runs/one", f"--scratch={scratch}")
    for name in commands:
        command(name, f"--workdir={local}")
        for kill in {"harvest": ("shard", ""), "train": ("checkpoint", "")}.get(name, ("",)):
            printed = command(name, *flags, environment=bucket.environment.items(), kill=kill)
            shutil.rmtree(scratch)
        assert "already finished" not in printed
    assert not any(key.endswith((".tmp", ".lock")) for key in bucket.files("runs/one"))
    copied(bucket, copy)
    return local, copy


def copied(bucket, copy):
    """Copies what is in the bucket to a local folder."""
    for name, content in bucket.files("runs/one").items():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes(content)


def files_of(folder):
    """The bytes of a run directory's files by their names, without what `check_training` compares, and without times
    and the digests of what has times, such as the manifest of training and the export's page of it."""
    apart = ("manifest.json", "timing.jsonl", "_CHECKPOINT_METADATA", "commit_success.txt")  # have times
    apart += ("sae/checkpoints/", "sae/tensorboard/")
    paths = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    kept = {name: path for name, path in paths.items() if not any(part in name for part in apart)}
    timed = rb'20\d\d-\d\d-\d\dT[\d:]+|"checksum": "\w+"|\w{64}  \S*README.md'
    return {name: re.sub(timed, b"", path.read_bytes()) for name, path in kept.items()}


def assert_same(local, copy):
    ours, theirs = files_of(copy), files_of(local)
    assert sorted(ours) == sorted(theirs)
    assert [name for name in theirs if ours[name] != theirs[name]] == []


def check_training(local, copy):
    store = ActivationStore.open(copy / "activations")
    assert store.n_tokens > 3 * 1024  # so that the killed harvest left some to do
    np.testing.assert_array_equal(
        store.read(0, store.n_tokens), ActivationStore.open(local / "activations").read(0, store.n_tokens)
    )
    theirs, ours = load_sae(local / "sae"), load_sae(copy / "sae")
    for name, value in theirs.params.items():
        np.testing.assert_allclose(ours.params[name], value, atol=1e-5, rtol=1e-5)
    steps = [len((folder / "sae" / "log.jsonl").read_text().splitlines()) for folder in (local, copy)]
    assert steps == [60, 60]


@pytest.mark.drill
def test_a_run_in_a_bucket_is_the_local_one_though_harvest_and_training_are_killed(bucket, tmp_path):
    local, copy = run(SHORT, bucket, tmp_path)
    assert_same(local, copy)
    check_training(local, copy)


@pytest.mark.drill
def test_the_whole_chain_in_a_bucket_is_the_local_one(bucket, tmp_path):
    local, copy = run(ALL, bucket, tmp_path)
    assert_same(local, copy)
    check_training(local, copy)


@pytest.mark.drill
def test_two_processes_harvest_interpret_and_measure_in_a_bucket(bucket, tmp_path, monkeypatch):
    local, copy = tmp_path / "local", tmp_path / "copy"
    for name, value in bucket.environment.items():
        monkeypatch.setenv(name, value)
    for name in (*SHORT, "interpret", "label"):
        command(name, f"--workdir={local}")
        given = (
            name,
            f"--workdir={bucket.scheme}://{buckets.NAME}/runs/one",
            f"--scratch={tmp_path / 'scratch'}",
            *FIELDS,
        )
        processes = 1 if name == "train" else 2  # sums over two devices differ in their last bits
        program = ("-m", "tests.helpers.killed_command", *given)
        ends = pods.ended(pods.start(program, processes=processes, devices=1))
        assert [end.code for end in ends] == [0] * processes, ends
        shutil.rmtree(tmp_path / "scratch")
    copied(bucket, copy)
    assert_same(local, copy)


@pytest.mark.drill
def test_two_processes_train_in_a_bucket_and_one_ends_what_they_began(bucket, tmp_path, monkeypatch):
    np.save(tmp_path / "rows.npy", activations(6000, 24))
    config = f"--config=configs/embeddings.py:{tmp_path / 'rows.npy'}"
    fields = {"steps": 400, "batch_size": 64, "checkpoint_every": 50, "lr": 5e-3, "decay_start": 300, "warmup_steps": 5}
    flags = [config, "--mesh=2,2", "--config.sae.k=4", *(f"--config.train.{name}={fields[name]}" for name in fields)]
    local = tmp_path / "local"
    pods.launch("harvest", config, f"--workdir={local}", processes=1, devices=1)
    pods.launch("train", *flags, f"--workdir={local}", processes=1, devices=4)
    for name, value in bucket.environment.items():
        monkeypatch.setenv(name, value)
    workdir, scratch = f"--workdir={bucket.scheme}://{buckets.NAME}/runs/one", tmp_path / "scratch"
    pods.launch("harvest", config, workdir, f"--scratch={scratch}", processes=1, devices=1)
    two = pods.start(("-m", "launch.train", *flags, workdir, f"--scratch={scratch}"), processes=2)
    while not any("whole.1-of-2" in key for key in bucket.written()):
        assert all(process.poll() is None for process in two)
        time.sleep(0.1)
    two[1].send_signal(signal.SIGTERM)
    ends = pods.ended(two)
    assert [end.code for end in ends] == [143, 143], ends
    saved = int(re.findall(r"terminated after step (\d+)", ends[0].err)[0])
    assert {f"sae/checkpoints/{saved}/whole.{i}-of-2.json" for i in (0, 1)} <= bucket.files("runs/one").keys()
    shutil.rmtree(scratch)
    pods.launch("train", *flags, workdir, f"--scratch={scratch}", processes=1, devices=4)
    (tmp_path / "copy").mkdir()
    for name in ("sae.json", "weights.safetensors", "log.jsonl"):
        (tmp_path / "copy" / name).write_bytes(bucket.files("runs/one")[f"sae/{name}"])
    ours, theirs = load_sae(tmp_path / "copy"), load_sae(local / "sae")
    for name, value in theirs.params.items():
        np.testing.assert_allclose(ours.params[name], value, atol=1e-5, rtol=1e-5)
    assert len((tmp_path / "copy" / "log.jsonl").read_text().splitlines()) == 400 > saved
