"""A loss of the dead features alone, where they are few, equals that of all features."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sae import autoencoder
from sae.kernels import few_dead

D, F = 4, 16


@pytest.mark.parametrize("n_dead", [0, 1, 4, 5, 16])
def test_a_loss_of_the_dead_features(n_dead):
    rng = np.random.default_rng(0)
    params = autoencoder.init(jax.random.key(0), D, F, jnp.zeros(D))
    z = jnp.asarray(rng.random((6, F)), jnp.float32)
    dead = jnp.asarray(rng.permutation(F) < n_dead)
    widths = []

    def loss(params, z, dead):
        widths.append(z.shape[1])
        return jax.value_and_grad(lambda p: jnp.square(jnp.where(dead, z, 0) @ p["W_dec"] + p["b_dec"]).sum())(params)

    expected_value, expected = loss(params, z, dead)
    value, gradients = few_dead.of_dead(loss, params, z, dead)
    assert sorted(set(widths)) == [F // 4, F]
    np.testing.assert_allclose(value, expected_value, rtol=1e-6)
    for name, gradient in expected.items():
        np.testing.assert_allclose(gradients[name], gradient, rtol=1e-5, atol=1e-6, err_msg=name)
