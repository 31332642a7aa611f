"""Nested products against plain ones and their automatic differentiation, on one device and striped."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sae import mesh
from sae.kernels import nested

B, D, SIZES, WEIGHTS = 10, 6, (8, 4, 4), (0.2, 0.3, 0.5)
F = sum(SIZES)


def plain(f, w_dec, b_dec):
    """The reconstructions from the first group, the first two, and all, of features in order."""
    return [f[:, :end] @ w_dec[:end] + b_dec for end in itertools.accumulate(SIZES)]


def example():
    rng = np.random.default_rng(0)
    return (rng.normal(size=shape).astype(np.float32) for shape in ((B, F), (F, D), (D,), (B, D)))


@pytest.mark.parametrize("stripes", [1, 4])
def test_reconstructions_and_their_gradients(stripes):
    f, w_dec, b_dec, x = example()
    striped_f, striped_w = mesh.stripe(jnp.asarray(f), stripes, 1), mesh.stripe(jnp.asarray(w_dec), stripes)
    groups_f, groups_w = nested.groups(striped_f, 1, SIZES, stripes), nested.groups(striped_w, 0, SIZES, stripes)
    found = nested.reconstructions(groups_f, groups_w, b_dec)
    for ours, expected in zip(found, plain(f, w_dec, b_dec), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)

    def loss(f, w_dec, b_dec):
        errors = [jnp.square(x - reconstruction).sum(1).mean() for reconstruction in plain(f, w_dec, b_dec)]
        return sum(weight * error for weight, error in zip(WEIGHTS, errors, strict=True))

    d_f, d_w, d_b = jax.grad(loss, argnums=(0, 1, 2))(f, w_dec, b_dec)
    cotangents = nested.group_cotangents([reconstruction - x for reconstruction in found], WEIGHTS, B)
    ours_f, ours_w = nested.reconstruction_gradients(groups_f, groups_w, cotangents, "float32")
    np.testing.assert_allclose(mesh.unstripe(nested.ungroup(ours_f, 1), stripes, 1), d_f, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(mesh.unstripe(nested.ungroup(ours_w, 0), stripes), d_w, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(cotangents[0].sum(0), d_b, rtol=1e-4, atol=1e-5)


def test_factors_are_rounded_and_sums_are_not():
    a = jnp.asarray([[1.0, 2.0**-10]])
    exact = nested.contract("ij,ij->i", a, jnp.ones((1, 2)), "float32")
    rounded = nested.contract("ij,ij->i", a + 2.0**-12, jnp.ones((1, 2)), "bfloat16")
    assert exact[0] == 1 + 2.0**-10
    assert rounded.dtype == jnp.float32 and rounded[0] == 1 + 2.0**-10 + 2.0**-12


@pytest.mark.parametrize("spec", ["bd,bf->df", "bf,bd->fd", "bnf,bd->nfd"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_gradient_of_a_matrix_is_the_same_on_a_cpu_and_elsewhere(spec, dtype):
    rng = np.random.default_rng(1)
    sizes = {"b": 10, "d": 6, "n": 2, "f": 8}
    a, b = (rng.normal(size=[sizes[axis] for axis in factor]) for factor in spec.split("->")[0].split(","))
    a, b = jnp.float32(a), jnp.float32(b)
    expected, found = nested.contract(spec, a, b, dtype), nested._weight_gradient_on_cpu(spec, dtype, a, b)
    assert found.dtype == expected.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(nested.weight_gradient(spec, a, b, dtype), found)
