"""Recomputed activations of single features against those of the whole autoencoder."""

import numpy as np
import pytest

from interp.exemplars.token_activations import token_activations
from sae.autoencoder import Sae


@pytest.mark.parametrize("kind", ["a threshold a feature", "the largest of each token"])
def test_every_kind_of_autoencoder_is_computed_again_as_it_encodes(world, kind):
    threshold = np.linspace(0.2, 1.5, 24).astype(np.float32) if kind == "a threshold a feature" else -1.0
    sae = Sae(world["sae"].params, threshold, 3, (24,), per_token=kind != "a threshold a feature")
    f = np.asarray(sae.encode(world["x"]))
    contexts = world["contexts"]
    number, feature = np.divmod(np.arange(24 * 200), 24)
    values = token_activations(sae, world["corpus"], feature, number)
    for i, (context, own) in enumerate(zip(number, feature, strict=True)):
        part = f[contexts.start[context] :][: contexts.length[context], own]
        np.testing.assert_allclose(values[i, : len(part)], part, rtol=1e-4, atol=1e-5)
