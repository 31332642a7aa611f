"""The metrics, against plain NumPy in float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maira_jax.errors import UserError
from sae import autoencoder
from sae.autoencoder import Sae
from sae.evaluation import metrics
from sae.evaluation.striped import StripedSae, in_memory
from tests.helpers.sae import activations

D, F, GROUPS = 12, 40, (20, 12, 8)


def random_sae(seed: int = 0) -> tuple[Sae, np.ndarray]:
    x = activations(700, D, seed=seed)
    params = autoencoder.init(jax.random.key(seed), D, F, jnp.asarray(x.mean(0)))
    params["b_enc"] = jnp.asarray(np.random.default_rng(seed).normal(size=F) * 0.2, jnp.float32)
    params["b_enc"] = params["b_enc"].at[3].set(-100.0).at[5].set(100.0)
    return Sae(params, 1.2, 4, GROUPS), x


def evaluate(sae: Sae, x: np.ndarray, largest: int) -> tuple[dict, np.ndarray]:
    striped = StripedSae.of(sae)
    return metrics.evaluate(striped, sae.threshold, [in_memory(striped.on, x, largest)])


def naive(sae: Sae, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features and the nested reconstructions, float64."""
    p = {name: np.asarray(value, np.float64) for name, value in sae.params.items()}
    z = np.maximum((x - p["b_dec"]) @ p["W_enc"] + p["b_enc"], 0)
    f = z * (z > sae.threshold)
    if sae.per_token:
        f *= f >= np.sort(f, axis=1)[:, -sae.k, None]
    ends = np.cumsum(sae.group_sizes)
    return f, np.stack([f[:, :end] @ p["W_dec"][:end] + p["b_dec"] for end in ends])


@pytest.mark.parametrize("threshold, per_token", [(1.2, False), (0.1, True), (np.linspace(0.5, 2, F), False)])
def test_metrics_equal_naive_ones(threshold, per_token):
    sae, x = random_sae()
    sae = dataclasses.replace(sae, threshold=threshold, per_token=per_token)
    measured, density = evaluate(sae, x, 256)
    f, levels = naive(sae, x)
    x64, y = x.astype(np.float64), levels[-1]
    total = np.square(x64 - x64.mean(0)).sum()
    residual = x64 - y
    norms = np.linalg.norm(x64, axis=1) * np.linalg.norm(y, axis=1)
    expected = {
        "fvu": np.square(residual).sum() / total,
        "explained_variance": 1 - np.square(residual - residual.mean(0)).sum() / total,
        "cosine": ((x64 * y).sum(1) / norms).mean(),
        "l0": (f > 0).sum(1).mean(),
    }
    for name, value in expected.items():
        # 1 minus a share of about 1: its rounding is one of 1, however small what is left.
        atol = 1e-5 if name == "explained_variance" else 0
        np.testing.assert_allclose(measured[name], value, rtol=1e-5, atol=atol, err_msg=name)
    np.testing.assert_allclose(density, (f > 0).mean(0), atol=1e-12)
    assert measured["dead"] == ((f > 0).sum(0) == 0).sum() >= 1
    assert measured["dense"] == ((f > 0).mean(0) > 0.1).sum() >= 1
    assert sum(measured["density_histogram"]["features"]) == F - measured["dead"]
    for prefix, level, end in zip(measured["prefixes"], levels, np.cumsum(GROUPS), strict=True):
        assert prefix["features"] == end
        np.testing.assert_allclose(prefix["fvu"], np.square(x64 - level).sum() / total, rtol=1e-5)
        np.testing.assert_allclose(prefix["l0"], (f[:, :end] > 0).sum(1).mean(), rtol=1e-12)


def test_a_large_offset_does_not_spoil_the_variance():
    sae, x = random_sae()
    shifted = Sae(sae.params | {"b_dec": sae.params["b_dec"] + 1000}, sae.threshold, sae.k, GROUPS)
    near, _ = evaluate(sae, x, len(x))
    far, _ = evaluate(shifted, x + np.float32(1000), len(x))
    # What is left is the rounding of x + 1000 to float32, 6e-5 of a standard deviation of about 1.
    np.testing.assert_allclose(far["fvu"], near["fvu"], rtol=1e-3)


@pytest.mark.parametrize("value", [1.1, 0.0, 1e30])
def test_figures_of_activations_that_do_not_vary_are_refused(value):
    sae, x = random_sae()
    with pytest.raises(UserError, match="check that their rows differ"):
        evaluate(sae, np.full_like(x, value), 256)
