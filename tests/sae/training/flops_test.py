"""Operations of a training step, and the utilisation of the device."""

import io

import jax
import jax.numpy as jnp
import pytest
import tqdm

from sae.training import flops


def test_the_utilisation_of_a_device_whose_peak_is_known(monkeypatch):
    """10 * 8 * 100 operations per token, 50 tokens/s (those of an earlier attempt do not count): 4e5 per second."""
    bar = tqdm.tqdm(total=1000, initial=300, file=io.StringIO())
    now = bar._time()
    bar.n, bar.start_t, bar._time = 500, now - 4.0, lambda: now
    devices = jax.devices()[:1] * 4
    flops.show(bar, flops.per_token(8, 100), devices)
    assert bar.postfix is None  # of a CPU it is not known
    monkeypatch.setattr(flops, "_PEAKS", {jax.devices()[0].device_kind: 1e6})
    flops.show(bar, flops.per_token(8, 100), devices)
    assert bar.postfix == "MFU 10.0%"


def test_operations_of_a_token_are_those_of_the_compiled_products():
    d, n, batch = 64, 512, 32
    encode, decode = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((d, n), (n, d)))
    x = jax.ShapeDtypeStruct((batch, d), jnp.float32)

    def loss(w_enc, w_dec, x):
        return jnp.square((x @ w_enc) @ w_dec - x).sum()

    program = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(encode, decode, x).compile()
    assert program.cost_analysis()["flops"] == pytest.approx(flops.per_token(d, n) * batch, rel=0.02)
