"""Files of sparsify, written here as sparsify writes them."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from maira_jax.errors import UserError
from sae import formats
from tests.helpers.formats import D


def test_files_of_sparsify_are_read(tmp_path, sae, x):
    p = {name: np.asarray(value) for name, value in sae.params.items()}
    arrays = {
        "encoder.weight": np.ascontiguousarray(p["W_enc"].T), "encoder.bias": p["b_enc"], "W_dec": p["W_dec"],
        "b_dec": p["b_dec"],
    }  # fmt: skip
    save_file(arrays, tmp_path / "sae.safetensors")
    config = {"activation": "topk", "expansion_factor": 4, "num_latents": 0, "k": 5, "skip_connection": False}
    (tmp_path / "cfg.json").write_text(json.dumps(config | {"d_in": D}))
    found = formats.load(tmp_path)
    z = np.maximum((x - p["b_dec"]) @ p["W_enc"] + p["b_enc"], 0)
    cut = np.sort(z, axis=1)[:, -5:-4]
    np.testing.assert_allclose(found.encode(jnp.asarray(x)), np.where(z >= cut, z, 0), rtol=1e-4, atol=1e-4)
    (tmp_path / "cfg.json").write_text(json.dumps(config | {"skip_connection": True}))
    with pytest.raises(UserError, match="transcoder"):
        formats.load(tmp_path)
