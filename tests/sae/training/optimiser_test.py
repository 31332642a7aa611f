"""The optimiser's parts against torch's, and the schedule."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from sae.training import optimiser
from tests.helpers.sae import resolved_train

CONFIG = resolved_train(
    steps=100,
    batch_size=8,
    lr=0.5,
    warmup_steps=10,
    decay_start=60,
    auxk_alpha=0.0,
    dead_tokens=100,
    threshold_beta=0.9,
    threshold_start=0,
)


@pytest.mark.parametrize("step, rate", [(0, 0.0), (5, 0.25), (10, 0.5), (59, 0.5), (60, 0.5), (80, 0.25), (99, 0.0125)])
def test_the_rate_rises_stays_and_falls(step, rate):
    assert optimiser.learning_rate(jnp.int32(step), CONFIG) == pytest.approx(rate)


def test_without_warmup_and_decay_the_rate_is_constant():
    config = dataclasses.replace(CONFIG, warmup_steps=0, decay_start=100)
    assert {float(optimiser.learning_rate(jnp.int32(step), config)) for step in (0, 50, 99)} == {0.5}


@pytest.mark.parametrize("scale", [0.01, 10.0])
def test_clipping_is_torchs(scale):
    gradient = (scale * np.random.default_rng(0).normal(size=(3, 4))).astype(np.float32)
    tensor = torch.zeros(3, 4)
    tensor.grad = torch.from_numpy(gradient.copy())
    norm = torch.nn.utils.clip_grad_norm_([tensor], 1.0)
    ours, ours_norm = optimiser._clip({"W_dec": jnp.asarray(gradient)})
    np.testing.assert_allclose(ours["W_dec"], tensor.grad.numpy(), rtol=1e-6)
    assert float(ours_norm) == pytest.approx(float(norm))


def test_an_update_keeps_decoder_rows_of_norm_1():
    rng = np.random.default_rng(1)
    shapes = {"W_enc": (4, 6), "b_enc": (6,), "W_dec": (6, 4), "b_dec": (4,)}
    params, gradients = (
        {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()} for _ in range(2)
    )
    new, _, metrics = optimiser.update(params, gradients, optimiser.init(params), jnp.int32(20), CONFIG)
    np.testing.assert_allclose(np.linalg.norm(new["W_dec"], axis=1), 1, atol=1e-6)
    assert metrics["lr"] == 0.5 and metrics["gradient_norm"] > 1
