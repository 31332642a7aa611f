"""Files of Gemma Scope, written here as they are published."""

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from maira_jax.errors import UserError
from sae import formats
from tests.helpers.formats import F


@pytest.mark.parametrize("version", [1, 2])
def test_files_of_gemma_scope_are_read(tmp_path, sae, x, version):
    """Their encoder does not subtract b_dec."""
    arrays = {name: np.asarray(value) for name, value in sae.params.items()}
    arrays["threshold"] = np.random.default_rng(1).uniform(0.5, 2, F).astype(np.float32)
    if version == 1:
        np.savez(tmp_path / "params.npz", **arrays)
    else:
        save_file({name.lower(): array for name, array in arrays.items()}, tmp_path / "params.safetensors")
    z = np.maximum(x @ arrays["W_enc"] + arrays["b_enc"], 0)
    f = np.where(z > arrays["threshold"], z, 0)
    found = formats.load(tmp_path)
    np.testing.assert_allclose(found.encode(jnp.asarray(x)), f, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.decode(f), f @ arrays["W_dec"] + arrays["b_dec"], rtol=1e-4, atol=1e-4)
    # Written as a file of SAELens, it keeps its thresholds.
    formats.writers()["saelens"].save(tmp_path / "saelens", found)
    again = formats.load(tmp_path / "saelens")
    np.testing.assert_array_equal(again.threshold, arrays["threshold"])
    assert set(load_file(tmp_path / "saelens" / "sae_weights.safetensors")) == {*sae.params, "threshold"}


def test_a_pickle_in_gemma_scope_is_refused(tmp_path):
    np.savez(tmp_path / "params.npz", W_enc=np.array([{"a": 1}], object))
    with pytest.raises(UserError, match="damaged"):
        formats.load(tmp_path)


def test_what_unfolds_to_far_more_than_the_file_is_refused(tmp_path):
    np.savez_compressed(tmp_path / "params.npz", W_enc=np.zeros((64, 64), np.float32))
    with pytest.raises(UserError, match=r"params.npz is said to hold 16,\d+ bytes, which its \d+ bytes cannot: copy"):
        formats.load(tmp_path)


def test_deflated_files_are_read(tmp_path, sae):
    """Also weights that were rounded to bfloat16, half of whose bytes are zeros."""
    arrays = {name: np.asarray(value.astype(jnp.bfloat16), np.float32) for name, value in sae.params.items()}
    np.savez_compressed(tmp_path / "params.npz", threshold=np.ones(F, np.float32), **arrays)
    np.testing.assert_array_equal(formats.load(tmp_path).params["W_dec"], arrays["W_dec"])
