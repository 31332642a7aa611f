"""What each variant selects, against a sort, and what the registry knows."""

import jax.numpy as jnp
import numpy as np
import pytest

from maira_jax.errors import UserError
from sae import variants
from sae.kernels.kth_largest import Search
from tests.helpers.sae import random_sae

K = 3


def selected(kind: str, z: np.ndarray) -> np.ndarray:
    """The features that the variant of this name is to select, bool [B, F]."""
    if kind == "relu":
        return z > 0
    if kind == "top_k":
        return (z >= np.sort(z, axis=1)[:, -K][:, None]) & (z > 0)
    return (z >= np.sort(z.reshape(-1))[-K * len(z)]) & (z > 0)


@pytest.mark.parametrize("search", [Search(candidates=True), Search(), Search(guess=0.7)], ids=str)
@pytest.mark.parametrize("kind", ["batch_top_k", "top_k", "relu"])
def test_selection_is_that_of_a_sort(kind, search):
    z = np.maximum(np.random.default_rng(0).normal(size=(40, 32)), 0).astype(np.float32)
    variant = variants.VARIANTS.get(kind)
    keep, smallest = variant.select(jnp.asarray(z), K, jnp.arange(32), search)
    expected = selected(kind, z)
    np.testing.assert_array_equal(keep, expected)
    assert smallest == z[expected].min()
    assert not variant.at_most_k or expected.sum() <= K * len(z)


def test_nothing_positive_selects_nothing():
    for kind in variants.VARIANTS.names():
        keep, smallest = variants.VARIANTS.get(kind).select(jnp.zeros((5, 8)), K, jnp.arange(8), Search())
        assert not np.asarray(keep).any() and smallest == 0


def test_unknown_names_are_refused():
    with pytest.raises(UserError, match=r"sae\.kind is 'gated': choose from batch_top_k"):
        variants.VARIANTS.get("gated")


def test_a_finished_autoencoder_knows_its_variant():
    x = np.zeros((4, 6), np.float32)
    trained = random_sae(x, (8,), 2, 0.0, meta={"sae": {"kind": "relu"}})
    assert variants.trained_as(trained) is variants.VARIANTS.get("relu")
    for meta in ({}, {"sae": {"kind": "one that is not registered here"}}):
        assert variants.trained_as(random_sae(x, (8,), 2, 0.0, meta=meta)) is None


@pytest.mark.parametrize(
    ("kind", "at_most_k", "threshold", "per_token"),
    [
        ("batch_top_k", True, None, False),
        ("top_k", True, None, False),
        ("relu", False, 0.0, False),
    ],
)
def test_what_training_and_inference_know_of_a_variant(kind, at_most_k, threshold, per_token):
    variant = variants.VARIANTS.get(kind)
    assert (variant.at_most_k, variant.threshold, variant.per_token) == (at_most_k, threshold, per_token)
