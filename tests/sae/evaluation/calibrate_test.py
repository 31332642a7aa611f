"""The inference threshold, against a sort of all pre-activations."""

import jax.numpy as jnp
import numpy as np

from sae import autoencoder
from sae.evaluation import calibrate
from tests.helpers.sae import activations, random_sae


def test_the_threshold_keeps_exactly_k_features():
    x = activations(700, 12)
    sae = random_sae(x, (20, 12, 8), 4, 1.2)
    threshold = calibrate.threshold_for_l0(sae.params, lambda: iter([x[:300], x[300:]]), 4)
    z = np.maximum(np.asarray(autoencoder.pre_activations(sae.params, jnp.asarray(x))), 0)
    assert np.float32(threshold) == np.sort(z.reshape(-1))[-(4 * len(x) + 1)]
    assert (np.asarray(sae.encode(jnp.asarray(x))) > 0).sum() != 4 * len(x)
    assert (np.asarray(autoencoder.encode(sae.params, jnp.asarray(x), threshold)) > 0).sum() == 4 * len(x)


def test_too_few_positive_activations_give_threshold_zero():
    x = activations(700, 12)
    sae = random_sae(x, (20, 12, 8), 4, 1.2)
    params = sae.params | {"b_enc": jnp.full(40, -100.0)}
    assert calibrate.threshold_for_l0(params, lambda: iter([x]), 4) == 0.0
