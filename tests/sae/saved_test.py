"""The finished autoencoder is read as it was written, or refused."""

import numpy as np
import pytest

from maira_jax.errors import UserError
from sae.saved import load_sae, save_sae
from tests.helpers.sae import activations, random_sae


def test_what_is_read_is_what_was_written(tmp_path):
    sae = random_sae(activations(50, 8), (8, 8), 3, 0.25, meta={"source": {"site": "language.1.resid_mid"}})
    save_sae(tmp_path, sae)
    again = load_sae(tmp_path)
    assert (again.threshold, again.k, again.group_sizes, again.per_token) == (0.25, 3, (8, 8), False)
    assert dict(again.meta) == dict(sae.meta)
    for name, value in sae.params.items():
        np.testing.assert_array_equal(again.params[name], value, err_msg=name)


def test_a_missing_or_damaged_autoencoder_is_refused(tmp_path):
    with pytest.raises(UserError, match="sae.json"):
        load_sae(tmp_path)
    save_sae(tmp_path, random_sae(activations(50, 8), (16,), 3, 0.0))
    weights, header = tmp_path / "weights.safetensors", tmp_path / "sae.json"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + b"\0")
    with pytest.raises(UserError, match="holds no readable autoencoder .*another file than sae.json .*: train again"):
        load_sae(tmp_path)
    weights.write_bytes(whole)
    header.write_text(header.read_text().replace('"n_features": 16', '"n_features": 8'))
    with pytest.raises(
        UserError, match="holds no readable autoencoder .*other shapes than sae.json says.*: train again"
    ):
        load_sae(tmp_path)
    weights.unlink()
    with pytest.raises(UserError, match="holds no readable autoencoder .*: train again"):
        load_sae(tmp_path)
