"""The peaks of contexts, by doubling and by the TPU's kernel, against a loop over the contexts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from interp.exemplars.index_pass import context_peaks


def by_kernel(f, slot, n_contexts, max_length):
    first, length = ((slot[:, None] < np.arange(n_contexts)).sum(0), (slot[:, None] == np.arange(n_contexts)).sum(0))
    return context_peaks._on_tpu(f, slot, jnp.int32(first), jnp.int32(length), interpret=True)


@pytest.mark.parametrize("of", [jax.jit(context_peaks.context_peaks, static_argnums=(2, 3)), by_kernel])
@pytest.mark.parametrize("max_length", [1, 2, 13, 32])
def test_peaks_are_those_of_a_loop(of, max_length, monkeypatch):
    """The last place is unused, and the last features fill a part of the kernel's block."""
    monkeypatch.setattr(context_peaks, "_FEATURES", 128)
    rng = np.random.default_rng(max_length)
    lengths = rng.integers(1, max_length + 1, 11)
    slot = np.repeat(np.arange(11), lengths).astype(np.int32)
    slot = np.pad(slot, (0, 384 - len(slot)), constant_values=12)
    f = np.maximum(rng.normal(size=(len(slot), 200)), 0).astype(np.float32)
    found = np.asarray(of(jnp.asarray(f), jnp.asarray(slot), 12, max_length))
    expected = np.stack([f[slot == number].max(0, initial=0.0) for number in range(12)])
    np.testing.assert_array_equal(found, expected)
