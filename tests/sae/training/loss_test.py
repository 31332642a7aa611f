"""The definition of the loss, against NumPy in float64, term by term."""

import jax
import jax.numpy as jnp
import numpy as np

from sae.training.loss import auxiliary_loss, loss, total_variance
from tests.helpers.sae import resolved_sae, resolved_train

B, D, F = 20, 8, 12
SAE = resolved_sae(d_model=D, n_features=F, k=3, group_sizes=(8, 4), group_weights=(0.3, 0.7), l1=0.1)
CONFIG = resolved_train(
    steps=10,
    batch_size=B,
    lr=1e-3,
    warmup_steps=0,
    decay_start=10,
    auxk_alpha=0.5,
    dead_tokens=100,
    threshold_beta=0.9,
    threshold_start=0,
)


def example():
    rng = np.random.default_rng(0)
    shapes = {"W_enc": (D, F), "b_enc": (F,), "W_dec": (F, D), "b_dec": (D,)}
    params = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    x = rng.normal(size=(B, D)).astype(np.float32)
    z = np.maximum((x - params["b_dec"]) @ params["W_enc"] + params["b_enc"], 0)
    return params, x, z, rng.random((B, F)) < 0.3


def test_the_loss_is_the_sum_of_its_terms():
    params, x, z, keep = example()
    dead = np.arange(F) % 2 == 0
    f = np.where(keep, z, 0).astype(np.float64)
    first, second = f[:, :8] @ params["W_dec"][:8] + params["b_dec"], f @ params["W_dec"] + params["b_dec"]
    expected = 0.1 * f.sum(1).mean()
    expected += 0.3 * ((x - first) ** 2).sum(1).mean() + 0.7 * ((x - second) ** 2).sum(1).mean()
    residual, candidates = x - second, np.where(dead, z, 0)
    for token in range(B):  # the min(8 / 2, 6) strongest of six dead features
        candidates[token, np.argsort(-candidates[token])[4:]] = 0
    unexplained = ((residual - candidates @ params["W_dec"]) ** 2).sum(1).mean()
    expected += 0.5 * unexplained / ((residual - residual.mean(0)) ** 2).sum(1).mean()
    np.testing.assert_allclose(loss(params, x, jnp.asarray(keep), jnp.asarray(dead), SAE, CONFIG), expected, rtol=1e-5)


def test_no_dead_feature_and_no_residual_give_no_auxiliary_loss():
    params, _, z, _ = example()
    nothing, everything = jnp.zeros(F, bool), jnp.ones(F, bool)
    assert auxiliary_loss(params, z, jnp.ones((B, D)) * jnp.arange(B)[:, None], nothing) == 0
    assert auxiliary_loss(params, z, jnp.ones((B, D)), everything) == 0  # a constant has no variance
    gradients = jax.grad(auxiliary_loss)(params, z, jnp.ones((B, D)), everything)
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())


def test_the_residual_is_a_constant_of_the_auxiliary_loss():
    """Without a dead feature that fires, the auxiliary loss moves nothing."""
    params, x, _, keep = example()
    params["b_enc"] = np.where(np.arange(F) == 0, -100, params["b_enc"]).astype(np.float32)
    dead = jnp.arange(F) == 0
    with_auxiliary = jax.grad(loss)(params, x, jnp.asarray(keep), dead, SAE, CONFIG)
    without = jax.grad(loss)(params, x, jnp.asarray(keep), jnp.zeros(F, bool), SAE, CONFIG)
    for name, value in without.items():
        np.testing.assert_allclose(with_auxiliary[name], value, rtol=1e-5, err_msg=name)


def test_total_variance():
    x = np.random.default_rng(1).normal(size=(50, 3)).astype(np.float32)
    np.testing.assert_allclose(total_variance(x), x.var(0).sum(), rtol=1e-5)
