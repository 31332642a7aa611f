"""The inference threshold, against a sort of all pre-activations."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from sae import autoencoder
from sae.evaluation import calibrate
from sae.evaluation.striped import HeldOutTokens, StripedSae, in_memory
from tests.helpers.sae import activations, random_sae

ALL = 10**9


def counting(x: np.ndarray, largest: int, sae: StripedSae) -> tuple[HeldOutTokens, list[int]]:
    """The tokens, none of which stay on the device, and a list that grows by an entry for each pass over them."""
    passes = []

    def read(first, size, part):
        passes.append(first)
        return (x[i : i + size][part] for i in range(first, len(x), size))

    tokens = HeldOutTokens(sae.on, len(x), read, largest)
    tokens._room = 0
    return tokens, passes


def exact(sae, x: np.ndarray, k: int) -> np.float32:
    z = np.asarray(autoencoder.pre_activations(sae.params, jnp.asarray(x))).reshape(-1)
    ordered = np.sort(np.maximum(z, 0))
    return ordered[-(k * len(x) + 1)]


@pytest.mark.parametrize("largest", [ALL, 300])
def test_the_threshold_keeps_exactly_k_features(largest):
    x = activations(700, 12)
    sae = random_sae(x, (20, 12, 8), 4, 1.2)
    striped = StripedSae.of(sae)
    threshold = calibrate.threshold_for_l0(striped, [in_memory(striped.on, x, largest)], 4)
    assert np.float32(threshold) == exact(sae, x, 4)
    assert (np.asarray(sae.encode(jnp.asarray(x))) > 0).sum() != 4 * len(x)
    assert (np.asarray(autoencoder.encode(sae.params, jnp.asarray(x), threshold)) > 0).sum() == 4 * len(x)


def test_a_first_batch_that_misleads_and_equal_activations():
    # The second half is a thousand times as large, and three quarters of it are the same token.
    x = activations(4000, 12)
    x[2000:] *= 1000
    x[2500:] = x[2500]
    sae = random_sae(x, (20, 12, 8), 4, 1.2)
    striped = StripedSae.of(sae)
    for k in (1, 4, 15):
        tokens, passes = counting(x, 1000, striped)
        assert np.float32(calibrate.threshold_for_l0(striped, [tokens], k)) == exact(sae, x, k)
        assert len(passes) <= 1 + 8


def test_few_passes_suffice():
    x = activations(20_000, 12)
    sae = random_sae(x, (20, 12, 8), 4, 1.2)
    striped = StripedSae.of(sae)
    tokens, passes = counting(x, 2500, striped)
    assert np.float32(calibrate.threshold_for_l0(striped, [tokens], 4)) == exact(sae, x, 4)
    assert len(passes) <= 1 + 4


@pytest.mark.parametrize("largest", [ALL, 300])
def test_too_few_positive_activations_give_threshold_zero(largest):
    x = activations(700, 12)
    sae = random_sae(x, (20, 12, 8), 4, 1.2)
    sae = dataclasses.replace(sae, params=sae.params | {"b_enc": jnp.full(40, -100.0)})
    striped = StripedSae.of(sae)
    assert calibrate.threshold_for_l0(striped, [in_memory(striped.on, x, largest)], 4) == 0.0
