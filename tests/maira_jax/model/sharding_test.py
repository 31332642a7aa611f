"""A mesh of 8 forced host devices gives what one device gives."""

import dataclasses
import subprocess
import sys

import pytest
from jax.sharding import AbstractMesh

from maira_jax.errors import UserError
from maira_jax.model import sharding
from tests.helpers.paths import ROOT
from tests.helpers.tiny_model import CFG


def test_data_and_model_parallel_equal_one_device(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tests.helpers.devices8.model_parity", str(tmp_path)],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    print(done.stdout)
    assert done.stdout.strip().endswith("equal"), done.stderr[-3000:]


def test_a_mesh_that_would_cut_a_head_is_refused():
    sharding.check(CFG, AbstractMesh((4, 2), sharding.AXES))
    with pytest.raises(UserError, match=r"model = 4 does not divide text_config.num_attention_heads = 6.*\[1, 2\]"):
        sharding.check(CFG, AbstractMesh((2, 4), sharding.AXES))


def test_a_mesh_needs_its_devices():
    assert sharding.make_mesh((1, 1)).shape == {"data": 1, "model": 1}
    with pytest.raises(UserError, match=r"train.mesh \(16, 8\) needs 128 devices, .*: make train.mesh smaller"):
        sharding.make_mesh((16, 8), ("data", "feature"), field="train.mesh")


def test_logical_axes_decide_where_parameters_lie():
    on = AbstractMesh((4, 2), sharding.AXES)
    places = {path: tuple(place.spec) for path, place in sharding.of_params(CFG, on).items()}
    assert places["language", "embed"] == ("model", None)
    assert places["language", "layers", "down", "kernel"] == (None, "model", None)
    assert places["vision", "layers", "fc1", "bias"] == (None, "model")
    assert places["projector", "linear_0", "kernel"] == (None, None)
    odd = dataclasses.replace(CFG, text=dataclasses.replace(CFG.text, vocab_size=301))  # does not divide
    assert tuple(sharding.of_params(odd, on)["language", "lm_head"].spec) == (None, None)
