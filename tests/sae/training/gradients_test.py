"""The written-out gradients of both routes against automatic differentiation of the loss."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sae import autoencoder
from sae.training.config import SaeConfig, TrainConfig
from sae.training.loss import loss
from sae.training.trainer import StepCarry, Trainer, TrainState, batch_gradients, route
from tests.helpers.sae import activations, resolved_sae, resolved_train

D, F, K, B = 16, 64, 4, 48
SAE = resolved_sae(d_model=D, n_features=F, k=K, group_sizes=(32, 16, 16), group_weights=(0.2, 0.5, 0.3))
CONFIG = resolved_train(
    steps=20,
    batch_size=B,
    lr=3e-3,
    warmup_steps=2,
    decay_start=20,
    auxk_alpha=0.5,
    dead_tokens=100,
    threshold_beta=0.9,
    threshold_start=1,
)
KINDS = [("batch_top_k", 0.0), ("top_k", 0.0), ("relu", 0.05)]


def batches(steps: int = 20) -> np.ndarray:
    return activations(B * steps, D, n_true=32).reshape(steps, B, D) / np.float32(3)


def start(
    sae: SaeConfig = SAE, config: TrainConfig = CONFIG, kept_entries: bool | None = None, every: int = 5
) -> tuple[Trainer, TrainState]:
    """A fresh state in which one in `every` features is long dead and at first too weak to be selected."""
    trainer = Trainer(sae, config, kept_entries)
    state = trainer.init(batches()[0], 1.0)
    unfired = np.where(np.arange(F) % every == 0, 1000, 0).astype(np.int32)
    w_enc = state.params["W_enc"] * np.where(unfired > 0, 0.02, 1.0).astype(np.float32)
    params = state.params | {"W_enc": w_enc}
    return trainer, dataclasses.replace(state, params=params, tokens_since_fired=jnp.asarray(unfired))


@functools.cache
def first_state(every: int) -> TrainState:
    """As `start` gives it; nothing here consumes it, and no kind of training begins with another."""
    return start(every=every)[1]


@functools.cache
def compiled_gradients(sae: SaeConfig, config: TrainConfig, kept_entries: bool) -> Callable[..., Any]:
    """The gradients of a step, one program for all states."""
    found = functools.partial(batch_gradients, sae=sae, config=config, route=route(sae, config, kept_entries))
    return jax.jit(found)


@functools.cache
def compiled_loss(l1: float) -> Callable[..., Any]:
    """The definition and its gradients: given what is kept it knows neither kinds nor parts of a batch."""
    return jax.jit(jax.value_and_grad(functools.partial(loss, sae=dataclasses.replace(SAE, l1=l1), config=CONFIG)))


def expected_keep(z: np.ndarray, kind: str) -> np.ndarray:
    if kind == "relu":
        return z > 0
    if kind == "top_k":
        return (z >= np.sort(z, axis=1)[:, -K][:, None]) & (z > 0)
    return (z >= np.sort(z.reshape(-1))[-K * B]) & (z > 0)


@pytest.mark.parametrize("every", [5, 2], ids=["few dead", "many dead"])
@pytest.mark.parametrize("microbatches, kept_entries", [(1, True), (1, False), (3, False)])
@pytest.mark.parametrize("kind, l1", KINDS)
def test_gradients_are_those_of_the_loss(kind, l1, microbatches, kept_entries, every):
    sae = dataclasses.replace(SAE, kind=kind, l1=l1)
    config = dataclasses.replace(CONFIG, microbatches=microbatches)
    state = first_state(every)
    x = jnp.asarray(batches()[3])
    carry = StepCarry(state, {}, jnp.float32(0))
    gradients, smallest, _, metrics = compiled_gradients(sae, config, kept_entries)(carry, x)
    z = np.asarray(jax.nn.relu(autoencoder.pre_activations(state.params, x)))
    keep = expected_keep(z, kind)
    dead = jnp.asarray(np.where(keep.any(0), 0, np.asarray(state.tokens_since_fired) + B) >= CONFIG.dead_tokens)
    assert int(dead.sum()) == int(metrics["dead"])
    assert kind == "relu" or (0 < int(dead.sum()) <= F // 4) == (every == 5)
    value, expected = compiled_loss(l1)(state.params, x, keep, dead)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    if kind != "relu":  # there, what is dead has nothing positive to start from
        assert metrics["auxk"] > 0
        assert np.abs(gradients["W_dec"])[np.asarray(dead)].max() > 0
    assert smallest == z[keep].min()
    assert metrics["l0"] == pytest.approx(keep.sum(1).mean())
    for name, gradient in expected.items():
        np.testing.assert_allclose(gradients[name], gradient, atol=2e-6, rtol=2e-5, err_msg=name)


@pytest.mark.parametrize("kept_entries", [True, False])
def test_where_nothing_is_left_over_dead_features_learn_nothing(kept_entries):
    """All tokens are the bias, which reconstructs them alone; dead features are positive, and not selected."""
    state = first_state(5)
    alive = np.asarray(state.tokens_since_fired) == 0
    params = state.params | {
        "W_dec": state.params["W_dec"] * ~alive[:, None],
        "b_enc": jnp.where(alive, 1.0, 0.1),
        "b_dec": jnp.arange(D, dtype=jnp.float32),
    }
    x = jnp.tile(params["b_dec"], (B, 1))
    carry = StepCarry(dataclasses.replace(state, params=params), {}, jnp.float32(0))
    sae = dataclasses.replace(SAE, kind="top_k")
    gradients, _, _, metrics = compiled_gradients(sae, CONFIG, kept_entries)(carry, x)
    assert metrics["dead"] == (~alive).sum() and metrics["auxk"] == 0
    assert not any(np.asarray(gradient).any() for gradient in gradients.values())


@pytest.fixture(scope="module")
def whole():
    trainer, state = start()
    return trainer.run(state, trainer.place(batches()), 1.0)


@pytest.mark.parametrize("microbatches", [1, 3])
def test_whole_matrices_in_one_or_more_parts_give_what_the_kept_entries_give(whole, microbatches):
    one, first = whole
    trainer, state = start(config=dataclasses.replace(CONFIG, microbatches=microbatches), kept_entries=False)
    many, second = trainer.run(state, trainer.place(batches()), 1.0)
    assert np.asarray(first["dead"]).max() > 0
    for name in ("loss", "auxk", "threshold", "gradient_norm", "l0"):
        np.testing.assert_allclose(second[name], first[name], rtol=2e-4, err_msg=name)
    for name, value in one.params.items():
        assert np.linalg.norm(many.params[name] - value) < 1e-3 * np.linalg.norm(value), name


@pytest.mark.parametrize("kept_entries", [True, False])
def test_bfloat16_follows_float32(whole, kept_entries):
    trainer, state = start(config=dataclasses.replace(CONFIG, dtype="bfloat16"), kept_entries=kept_entries)
    state, metrics = trainer.run(state, trainer.place(batches()), 1.0)
    assert all(value.dtype == np.float32 for value in jax.tree.leaves(state.params))
    ours, exact = np.asarray(metrics["loss"]), np.asarray(whole[1]["loss"])
    assert (ours != exact).any()
    np.testing.assert_allclose(ours, exact, rtol=2e-2)


def test_one_token_kind_keeps_k_of_each_token():
    sae = dataclasses.replace(SAE, kind="top_k")
    trainer, state = start(sae, dataclasses.replace(CONFIG, auxk_alpha=0.0))
    _, metrics = trainer.run(state, trainer.place(batches()), 1.0)
    assert (np.asarray(metrics["l0"]) <= K).all() and np.asarray(metrics["l0"])[-1] > K - 0.5
    assert (np.asarray(metrics["auxk"]) == 0).all()
