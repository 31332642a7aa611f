"""The parameters of an autoencoder."""

import jax.numpy as jnp
import numpy as np

from sae import autoencoder
from tests.helpers.sae import activations, random_sae


def test_folding_gives_the_same_features_in_raw_units():
    x = activations(700, 12)
    sae = random_sae(x, (20, 12, 8), 4, 1.2)
    folded, threshold = autoencoder.fold(sae.params, sae.threshold, 7.5)
    normalised = sae.encode(jnp.asarray(x) / 7.5)
    raw = autoencoder.encode(folded, jnp.asarray(x), threshold)
    np.testing.assert_allclose(raw, 7.5 * normalised, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(autoencoder.decode(folded, raw), 7.5 * sae.decode(normalised), rtol=1e-4, atol=1e-4)
    assert autoencoder.fold(sae.params, -1.0, 7.5)[1] == -1.0
