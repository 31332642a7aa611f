"""MedCLIP's Swin, against transformers' SwinModel under the names before transformers 5."""

import jax
import numpy as np
import pytest
import torch

from maira_jax.encoders.medclip_swin import MedClipSwin, SwinConfig
from maira_jax.errors import UserError
from tests.helpers.tiny_model import relative
from tests.helpers.torch_encoders import SWIN, TorchSwin

encode = jax.jit(lambda params, encoder, pixels: encoder.encode(params, pixels, "embedding"), static_argnames="encoder")


def check(path, cfg, batch, tolerance):
    theirs = TorchSwin(cfg)
    torch.save(theirs.state, path / "pytorch_model.bin")
    loaded = MedClipSwin.load(str(path), path, (1, 1), 0)
    pixels = np.random.default_rng(0).normal(size=(batch, cfg.size, cfg.size, 3)).astype(np.float32)
    expected = theirs.embedding(pixels)
    rows = encode(loaded.params, loaded.encoder, pixels)
    assert rows.shape == (batch, 1, cfg.embedding)
    assert relative(rows[:, 0], expected / np.linalg.norm(expected, axis=1, keepdims=True)) < tolerance


@pytest.fixture
def small(monkeypatch):
    """The encoder has the sizes of `SWIN`."""
    monkeypatch.setattr(MedClipSwin.__init__, "__defaults__", (SWIN,))


def test_embeddings_are_those_of_torch(tmp_path, small):
    check(tmp_path, SWIN, batch=3, tolerance=1e-6)


@pytest.mark.drill
def test_embeddings_of_the_real_sizes(tmp_path):
    check(tmp_path, SwinConfig(), batch=1, tolerance=3e-6)


def test_another_encoders_file_gets_a_sentence(tmp_path, small):
    state = TorchSwin(SWIN).state
    state["vision_model.model.fc.weight"] = torch.ones(3)
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="not of MedCLIP's image encoder: model.fc.weight; use"):
        MedClipSwin.load(str(tmp_path), tmp_path, (1, 1), 0)


def test_the_number_of_parameters():
    """Those of microsoft/swin-tiny-patch4-window7-224 without its classes, and the projection."""
    shapes = jax.eval_shape(lambda: MedClipSwin.load("random", None, (1, 1), 0).params)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 27_519_354 + 768 * 512
