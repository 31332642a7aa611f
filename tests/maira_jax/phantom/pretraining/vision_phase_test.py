"""The vision phase's directions, and which labels its loss counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maira_jax.errors import UserError
from maira_jax.phantom.pretraining import vision_phase
from maira_jax.phantom.pretraining.recipe import model_config
from tests.helpers.tiny_recipe import TINY

CFG = model_config(TINY.vision, TINY.language, TINY.n_vocabulary)


def test_directions_are_orthonormal_and_at_most_the_width():
    directions = vision_phase.directions(CFG, 5, jax.random.key(0))  # [d_model, labels]
    np.testing.assert_allclose(directions.T @ directions, np.eye(5), atol=1e-5)
    with pytest.raises(UserError, match="has a width of 32, fewer than the 33 labels: raise the width"):
        vision_phase.directions(CFG, 33, jax.random.key(0))


def test_unknown_labels_do_not_count():
    params = vision_phase.init(CFG, jax.random.key(1))
    directions = vision_phase.directions(CFG, 3, jax.random.key(2))
    pixels = jax.random.normal(jax.random.key(3), (2, 56, 56, 3))
    labels = jnp.array([[True, False, True], [False, True, False]])
    known = jnp.array([[True, True, False], [True, False, False]])
    loss = vision_phase.loss(params, CFG, directions, pixels, labels, known)
    assert loss == vision_phase.loss(params, CFG, directions, pixels, labels ^ ~known, known)
    logits = np.asarray(vision_phase.predict(params, CFG, directions, pixels))  # [batch, patches, labels]
    assert logits.shape == (2, 4, 3)
    signs = np.where(labels, 1, -1)[:, None]
    each = np.log1p(np.exp(-signs * logits)).mean(1)
    np.testing.assert_allclose(loss, each[np.asarray(known)].mean(), rtol=1e-5)
