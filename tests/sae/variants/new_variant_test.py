"""A variant of one's own, as a file would register it: trained, saved and exported without another change."""

import jax
import jax.numpy as jnp
import numpy as np

from maira_jax.run import files
from sae.formats import export, load
from sae.kernels import kth_largest
from sae.saved import load_sae
from sae.training import stage
from sae.variants import VARIANTS, Selection, Variant, trained_as
from tests.helpers.sae import activations, make_store, train_config


def above_one(z: jax.Array, k: int, column_order: jax.Array, search: kth_largest.Search) -> Selection:
    """Selects the entries above 1, however many there are."""
    del k, column_order, search
    keep = z > 1
    return keep, jnp.where(keep.any(), jnp.where(keep, z, jnp.inf).min(), 0.0)


TOY = Variant(title="Toy", saelens="standard", select=above_one, at_most_k=False, threshold=1.0)
VARIANTS.register("toy")(TOY)


def test_one_file_and_one_registration(tmp_path):
    make_store(tmp_path, activations(3000, 24))
    config = train_config(normalize=False, steps=20, decay_start=15)
    config.sae.kind, config.export.to = "toy", ("safetensors", "saelens")
    stage.run(config, tmp_path)
    sae = load_sae(tmp_path / "sae")
    assert trained_as(sae) is TOY and sae.threshold == 1
    export.run(config, tmp_path)
    again = load(tmp_path / "export" / "saelens")
    np.testing.assert_array_equal(again.params["W_dec"], sae.params["W_dec"])
    assert "Toy" in (tmp_path / "export" / "saelens" / "README.md").read_text()
    written = files.read_json(tmp_path / "export" / "saelens" / "cfg.json")
    assert written["metadata"]["training_architecture"] == "standard"
