"""The update in two passes against single steps with torch's clipping and optax's Adam, and the schedule."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from sae.autoencoder import unit_rows
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


def random_arrays(seed: int, scale: float = 1.0) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    shapes = {"W_enc": (4, 6), "b_enc": (6,), "W_dec": (6, 4), "b_dec": (4,)}
    return {name: jnp.asarray(scale * rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}


def unit_decoder(params: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return params | {"W_dec": unit_rows(params["W_dec"])}


def clipped_by_torch(gradients: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], float]:
    tensors = {name: torch.zeros(gradient.shape) for name, gradient in gradients.items()}
    for name, gradient in gradients.items():
        tensors[name].grad = torch.from_numpy(gradient.copy())
    norm = torch.nn.utils.clip_grad_norm_(list(tensors.values()), 1.0)
    return {name: tensor.grad.numpy() for name, tensor in tensors.items()}, float(norm)


def in_single_steps(params, gradients, adam, step):
    """The update as its definition: each step on whole matrices, the clipping torch's and Adam optax's."""
    w_dec, gradient = (np.asarray(arrays["W_dec"], np.float64) for arrays in (params, gradients))
    direction = w_dec / (np.linalg.norm(w_dec, axis=1, keepdims=True) + 1e-6)
    gradient = gradient - (gradient * direction).sum(1, keepdims=True) * direction
    projected = {name: np.asarray(value) for name, value in gradients.items()} | {"W_dec": np.float32(gradient)}
    clipped, norm = clipped_by_torch(projected)
    adam_of = optax.scale_by_adam(b1=CONFIG.beta1, b2=CONFIG.beta2, eps=1e-8)
    update, adam = adam_of.update(jax.tree.map(jnp.asarray, clipped), adam)
    rate = optimiser.learning_rate(step, CONFIG)
    params = jax.tree.map(lambda p, u: p - rate * u, params, update)
    return unit_decoder(params), adam, norm


@pytest.mark.parametrize("scale", [0.01, 1.0, 10.0])
def test_updates_are_those_of_single_steps(scale):
    """With gradients below and above the norm that is clipped, and in the decoder mostly along its rows."""
    params = unit_decoder(random_arrays(0))
    adam = optimiser.init(params)
    expected = (params, adam)
    for step in range(20, 30):
        gradients = random_arrays(step, scale)
        gradients["W_dec"] += 3 * scale * params["W_dec"]
        params, adam, metrics = optimiser.update(params, gradients, adam, jnp.int32(step), CONFIG)
        *expected, norm = in_single_steps(*expected[:1], gradients, expected[1], jnp.int32(step))
        assert float(metrics["gradient_norm"]) == pytest.approx(norm, rel=1e-5)
        assert (norm > 1) == (scale >= 1)
    for name, value in expected[0].items():
        np.testing.assert_allclose(params[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
    for name, value in expected[1].nu.items():
        np.testing.assert_allclose(adam.nu[name], value, rtol=1e-4, atol=1e-9, err_msg=name)
    assert int(adam.count) == 10


def test_an_update_keeps_decoder_rows_of_norm_1():
    params, gradients = unit_decoder(random_arrays(1)), random_arrays(2)
    new, _, metrics = optimiser.update(params, gradients, optimiser.init(params), jnp.int32(20), CONFIG)
    np.testing.assert_allclose(np.linalg.norm(new["W_dec"], axis=1), 1, atol=1e-6)
    assert metrics["lr"] == 0.5 and metrics["gradient_norm"] > 1
