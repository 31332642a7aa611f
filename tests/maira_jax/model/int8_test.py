"""Weights rounded to 8 bits: how far the model moves."""

from difflib import SequenceMatcher

import jax
import numpy as np
import pytest
from flax import traverse_util

from configs import base
from maira_jax.checkpoint import convert, store
from maira_jax.errors import UserError
from maira_jax.generation import stage as generation
from maira_jax.inputs import batches
from maira_jax.model.int8 import Int8Kernel, input_axis, product
from maira_jax.reports import labeller
from maira_jax.run import jsonl
from tests.helpers.random_checkpoint import model_section
from tests.helpers.tiny_model import CFG, all_sites, batch, forward, make, relative


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tiny")
    make(directory, CFG)
    convert.run(model_section(directory), directory / "run")
    return directory / "run" / "model"


def test_a_weight_moves_by_half_a_step_at_most():
    kernel = np.random.default_rng(0).normal(size=(3, 50, 2, 7)).astype(np.float32)
    kernel[1, :, 1, 3] = 0
    rounded = Int8Kernel.of(jax.numpy.asarray(kernel), axis=1)
    scale = np.asarray(rounded.scale)
    assert rounded.values.dtype == np.int8 and scale.shape == (3, 2, 7)
    np.testing.assert_allclose(scale, np.abs(kernel).max(1) / 127, rtol=1e-6)
    moved = np.abs(np.asarray(rounded.values, np.float32) * scale[:, None] - kernel)
    assert 0.45 < (moved / np.where(scale, scale, 1)[:, None]).max() < 0.5001
    assert scale[1, 1, 3] == 0 and not np.asarray(rounded.values)[1, :, 1, 3].any()


@pytest.mark.parametrize("dtype, bound", (("float32", 1e-6), ("bfloat16", 1e-2)))
def test_the_product_is_that_of_the_rounded_weights(dtype, bound):
    rng = np.random.default_rng(1)
    x, kernel = rng.normal(size=(4, 60)).astype(dtype), rng.normal(size=(60, 2, 9)).astype(np.float32)
    rounded = Int8Kernel.of(jax.numpy.asarray(kernel), axis=0)
    found = product(jax.numpy.asarray(x), rounded)
    whole = np.asarray(rounded.values, np.float32) * np.asarray(rounded.scale)
    assert found.dtype == dtype
    assert relative(found, np.tensordot(x.astype(np.float32), whole, 1)) < bound


def test_what_is_loaded_is_the_stored_model_rounded(model):
    full, int8 = (traverse_util.flatten_dict(store.load(model, weights=weights)[0]) for weights in ("full", "int8"))
    assert full.keys() == int8.keys()
    rounded = 0
    for path, leaf in full.items():
        axis = input_axis(path)
        assert isinstance(int8[path], Int8Kernel) == (axis is not None)
        expected = leaf if axis is None else jax.jit(Int8Kernel.of, static_argnames="axis")(leaf, axis=axis)
        jax.tree.map(np.testing.assert_array_equal, int8[path], expected)
        rounded += axis is not None
    assert rounded == 5


def test_streams_and_logits_move_little(model):
    full, int8 = (store.load(model, weights=weights)[0] for weights in ("full", "int8"))
    inputs, read = batch((1, 2, 1))[:3], all_sites(CFG)
    expected, found = (forward(params, CFG, *inputs, read=read) for params in (full, int8))
    for name, value in found.sites.items():
        moved = np.linalg.norm(value - expected.sites[name]) / np.linalg.norm(expected.sites[name])
        print(name, moved)
        assert moved < 0.025 and (moved > 1e-4) == (name.startswith("language") and "embed" not in name), name
    moved = np.linalg.norm(found.logits - expected.logits) / np.linalg.norm(expected.logits)
    print("logits", moved)
    assert 1e-4 < moved < 0.04


def test_the_phantom_writes_nearly_the_same_reports(tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "_N_LENGTHS", 1)  # one program for each kind of weights
    config = base.get_config()
    config.studies = base.studies("phantom", n=24)
    config.generate.update({"studies": 24, "batch_size": 8, "temperature": 0.0})
    texts = {}
    for weights in ("full", "int8"):
        config.model.weights = weights
        workdir = tmp_path / weights
        convert.run(config, workdir)
        generation.run(config, workdir)
        lines = jsonl.read(workdir / "reports" / generation.RESULT, "")
        texts[weights] = [line["findings"] for line in lines]
    reports = list(zip(texts["full"], texts["int8"], strict=True))
    # Of words, in order.
    shares = [SequenceMatcher(None, one.split(), other.split(), autojunk=False).ratio() for one, other in reports]
    findings = [
        set(map(str, labeller.extract(one))) == set(map(str, labeller.extract(other))) for one, other in reports
    ]
    print(shares, findings)
    assert np.mean(shares) > 0.9 and shares.count(1.0) >= 12 and sum(findings) >= 22
    convert.run(config, tmp_path / "full")  # the converted model is the same
    with pytest.raises(UserError, match=r"differs in section.weights \(now 'int8', there 'full'\)"):
        generation.run(config, tmp_path / "full")
