"""Metrics, threshold and normalisation against plain NumPy in float64."""

import dataclasses
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tqdm

from sae import autoencoder
from sae.autoencoder import Sae
from sae.evaluation import calibrate, metrics
from sae.training import flops
from tests.helpers.sae import activations

D, F, GROUPS = 12, 40, (20, 12, 8)


def random_sae(seed: int = 0) -> tuple[Sae, np.ndarray]:
    x = activations(700, D, seed=seed)
    params = autoencoder.init(jax.random.key(seed), D, F, jnp.asarray(x.mean(0)))
    params["b_enc"] = jnp.asarray(np.random.default_rng(seed).normal(size=F) * 0.2, jnp.float32)
    params["b_enc"] = params["b_enc"].at[3].set(-100.0).at[5].set(100.0)
    return Sae(params, 1.2, 4, GROUPS), x


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
    measured, density = metrics.evaluate(sae, [x[:256], x[256:512], x[512:]])
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
        np.testing.assert_allclose(measured[name], value, rtol=1e-5, err_msg=name)
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
    near, _ = metrics.evaluate(sae, [x])
    far, _ = metrics.evaluate(shifted, [x + np.float32(1000)])
    # What is left is the rounding of x + 1000 to float32, 6e-5 of a standard deviation of about 1.
    np.testing.assert_allclose(far["fvu"], near["fvu"], rtol=1e-3)


def test_the_threshold_keeps_exactly_k_features():
    sae, x = random_sae()
    threshold = calibrate.threshold_for_l0(sae.params, lambda: iter([x[:300], x[300:]]), 4)
    z = np.maximum(np.asarray(autoencoder.pre_activations(sae.params, jnp.asarray(x))), 0)
    assert np.float32(threshold) == np.sort(z.reshape(-1))[-(4 * len(x) + 1)]
    assert (np.asarray(sae.encode(jnp.asarray(x))) > 0).sum() != 4 * len(x)
    assert (np.asarray(autoencoder.encode(sae.params, jnp.asarray(x), threshold)) > 0).sum() == 4 * len(x)


def test_too_few_positive_activations_give_threshold_zero():
    sae, x = random_sae()
    params = sae.params | {"b_enc": jnp.full(F, -100.0)}
    assert calibrate.threshold_for_l0(params, lambda: iter([x]), 4) == 0.0


def test_folding_gives_the_same_features_in_raw_units():
    sae, x = random_sae()
    folded, threshold = autoencoder.fold(sae.params, sae.threshold, 7.5)
    normalised = sae.encode(jnp.asarray(x) / 7.5)
    raw = autoencoder.encode(folded, jnp.asarray(x), threshold)
    np.testing.assert_allclose(raw, 7.5 * normalised, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(autoencoder.decode(folded, raw), 7.5 * sae.decode(normalised), rtol=1e-4, atol=1e-4)
    assert autoencoder.fold(sae.params, -1.0, 7.5)[1] == -1.0


def test_the_utilisation_of_a_device_whose_peak_is_known(monkeypatch):
    """10 * 8 * 100 operations per token, 50 tokens/s (those of an earlier attempt do not count): 4e5 per second."""
    bar = tqdm.tqdm(total=1000, initial=300, file=io.StringIO())
    now = bar._time()
    bar.n, bar.start_t, bar._time = 500, now - 4.0, lambda: now
    flops.show(bar, flops.per_token(8, 100))
    assert bar.postfix is None  # of a CPU it is not known
    monkeypatch.setattr(flops, "_PEAKS", {jax.devices()[0].device_kind: 1e6})
    flops.show(bar, flops.per_token(8, 100))
    assert bar.postfix == f"MFU {0.4 / jax.device_count():.1%}"


def test_operations_of_a_token_are_those_of_the_compiled_products():
    d, n, batch = 64, 512, 32
    encode, decode = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((d, n), (n, d)))
    x = jax.ShapeDtypeStruct((batch, d), jnp.float32)

    def loss(w_enc, w_dec, x):
        return jnp.square((x @ w_enc) @ w_dec - x).sum()

    program = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(encode, decode, x).compile()
    assert program.cost_analysis()["flops"] == pytest.approx(flops.per_token(d, n) * batch, rel=0.02)
