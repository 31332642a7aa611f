"""The smallest set of features, where it is known which ones carry a concept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sae import autoencoder
from sae.autoencoder import Sae
from steer.methods.learned import smallest_set as module
from steer.methods.learned.smallest_set import FeatureRange, penalised_step, smallest_set

D, F = 16, 24


@pytest.fixture(scope="module")
def sae():
    params = autoencoder.init(jax.random.key(0), D, F, jnp.zeros(D))
    return Sae({name: np.asarray(array) for name, array in params.items()}, 0.05, 3, (F,))


class KnownConcept:
    """Stands for the model: a report is likelier rewritten where the residual stream is far enough along some rows.

    A logistic loss for each of the rows, so that none can be spared.
    """

    def __init__(self, sae, features):
        self.rows = jnp.asarray(sae.params["W_dec"][list(features)])  # [n, d]
        self.x = jnp.asarray(np.random.default_rng(1).normal(size=(4, 3, D)) * 0.02, jnp.float32)

    def _margins(self, edit):
        moved = edit.apply(self.x, jnp.ones((4, 3), bool))[0]
        return moved.mean(axis=1) @ self.rows.T - 1.0  # [4, n]

    def gradient(self, edit, batches, weight=0.0):
        return jax.grad(lambda v: jnp.logaddexp(0, -4 * self._margins(edit.replace(learned=v))).mean())(edit.learned)

    def flipped(self, edit, batches):
        return float((self._margins(edit) > -0.2).all(axis=1).mean())


@pytest.mark.parametrize("features", [(5,), (3, 11)])
def test_the_features_that_carry_a_concept_are_found(sae, features):
    found = FeatureRange(np.full(F, 1.5), np.zeros(F))
    sets = smallest_set(KnownConcept(sae, features), [None, None], sae, found)
    assert set(sets) == set(features)
    assert all(0.5 < value <= 1.5 * module._MAX_VALUE for value in sets.values())
    values = list(sets.values())
    assert values == sorted(values, reverse=True)


def test_features_that_are_never_active_stay(sae):
    scale = np.full(F, 1.5)
    scale[5] = 0
    assert 5 not in smallest_set(KnownConcept(sae, (5,)), [None], sae, FeatureRange(scale, np.zeros(F)))


def test_a_step_keeps_zeros_that_the_penalty_outweighs_and_stops_at_zero():
    amount = jnp.array([0.0, 0.0, 0.01, -0.5, 0.5])
    gradient = jnp.array([0.5, -2.0, 2.0, 0.0, -9.0])
    low, high = np.full(5, -1.0), np.array([1.0, 1.0, 1.0, 1.0, 0.52])
    moved, _ = penalised_step(amount, gradient, module._ADAM.init(amount), 1.0, low, high)
    np.testing.assert_allclose(moved, [0.0, module._RATE, 0.0, -0.5 + module._RATE, 0.52], atol=1e-6)
