"""Checkpoints are whole, exact and verified, on disks and in buckets, of one process and of several."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from maira_jax.errors import UserError
from maira_jax.run import processes, storage
from sae.training.checkpoints import Checkpoints
from tests.helpers import bucket as buckets
from tests.helpers.sae import whole_checkpoints
from tests.helpers.train_on_mesh import D, trainer_on

SCALE = float(np.float32(1 / 3))


@pytest.fixture(scope="module")
def trainer():
    return trainer_on((1, 1))


@pytest.fixture(scope="module")
def states(trainer):
    """States of steps 10, 20 and 30, each with other values."""
    first = trainer.init(np.random.default_rng(0).standard_normal((64, D), np.float32), SCALE)
    moved = {step: jax.tree.map(lambda leaf: leaf + leaf.dtype.type(step), first) for step in (10, 20, 30)}  # noqa: B023
    return {step: dataclasses.replace(state, step=np.int32(step)) for step, state in moved.items()}


def save(directory, trainer, *states):
    checkpoints = Checkpoints(directory, trainer)
    for state in states:
        checkpoints.save(state, SCALE)
    checkpoints.close()


def assert_loads(directory, trainer, state):
    loaded, scale = Checkpoints(directory, trainer).load_latest()
    assert scale == SCALE
    jax.tree.map(np.testing.assert_array_equal, loaded, state)


@pytest.fixture(params=["folder", "bucket"])
def sae(request, tmp_path, monkeypatch):
    """A run's folder, on disk or in a bucket."""
    if request.param == "folder":
        yield tmp_path
        return
    with buckets.served() as bucket:
        for name, value in bucket.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(storage, "_attached", [])
        yield storage.attach(f"s3://{buckets.NAME}/sae", tmp_path, 0)


def test_the_latest_state_is_loaded_to_the_bit(sae, trainer, states):
    directory = sae / "checkpoints"
    assert Checkpoints(directory, trainer).load_latest() is None
    save(directory, trainer, *states.values())
    assert_loads(directory, trainer, states[30])
    assert Checkpoints(directory, trainer)._whole() == [20, 30]
    if storage.is_remote(directory):
        assert not directory.exists()


def test_a_checkpoint_that_lacks_a_process_is_removed(sae, trainer, states, monkeypatch):
    directory = sae / "checkpoints"
    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "barrier", lambda: None)
    for process, steps in ((0, (10, 20)), (1, (10,))):
        monkeypatch.setattr(processes, "index", lambda process=process: process)
        monkeypatch.setattr(processes, "is_first", lambda process=process: process == 0)
        save(directory, trainer, *(states[step] for step in steps))
    for name, value in (("count", 1), ("index", 0), ("is_first", True)):
        monkeypatch.setattr(processes, name, lambda value=value: value)
    assert_loads(directory, trainer, states[10])
    assert Checkpoints(directory, trainer)._whole() == [10]


def test_memory_that_is_used_again_changes_no_checkpoint(tmp_path, trainer, states):
    state = jax.tree.map(jax.numpy.array, states[10])
    checkpoints = Checkpoints(tmp_path, trainer)
    checkpoints.save(state, SCALE)
    trainer.run(state, trainer.place(np.ones((1, 64, D), np.float32)), SCALE)
    checkpoints.close()
    assert_loads(tmp_path, trainer, states[10])


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_a_damaged_checkpoint_is_told(damage, tmp_path, trainer, states):
    directory = tmp_path / "checkpoints"
    save(directory, trainer, states[10], states[20])
    chunk = directory / "20" / "params.W_dec" / "c" / "0" / "0"
    if damage == "missing":
        chunk.unlink()
    else:
        content = bytearray(chunk.read_bytes())
        content[100] ^= 1
        chunk.write_bytes(content)
    with pytest.raises(UserError, match=f"{directory / '20'} is damaged .* delete it and run again"):
        Checkpoints(directory, trainer).load_latest()
    shutil.rmtree(directory / "20")
    assert_loads(directory, trainer, states[10])
    assert whole_checkpoints(tmp_path) == {10}
