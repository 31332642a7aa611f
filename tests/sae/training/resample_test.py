"""Dead features are replaced by tokens, at the steps that are configured."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from sae.training import resample
from sae.training.trainer import Trainer
from tests.helpers.sae import activations, resolved_sae, resolved_train

D, F, B, STEPS = 16, 64, 48, 20
SAE = resolved_sae(d_model=D, n_features=F, k=4, group_sizes=(64,), group_weights=(1.0,), kind="relu", l1=0.1)
CONFIG = resolved_train(
    steps=STEPS,
    batch_size=B,
    lr=3e-3,
    warmup_steps=2,
    decay_start=20,
    auxk_alpha=0.0,
    dead_tokens=2 * B,
    threshold_beta=0.9,
    threshold_start=1,
    resample_every=6,
)
DEAD = np.arange(F) % 5 == 0


def batches() -> np.ndarray:
    return activations(B * STEPS, D, n_true=32).reshape(STEPS, B, D) / np.float32(3)


def test_dead_features_are_replaced():
    state = Trainer(SAE, CONFIG).init(batches()[0], 1.0)
    x = jnp.asarray(batches()[1])
    dead = jnp.asarray(DEAD)
    mu = jax.tree.map(lambda p: jnp.ones_like(p), state.params)
    adam = state.adam._replace(mu=mu, nu=mu)
    params, adam, replaced = resample.replace_dead(state.params, adam, dead, x, jax.random.key(0), 1)
    np.testing.assert_array_equal(replaced, dead)  # there are more tokens than dead features
    centred = np.asarray(x - state.params["b_dec"])
    cosines = np.asarray(params["W_dec"])[dead] @ (centred / np.linalg.norm(centred, axis=1, keepdims=True)).T
    np.testing.assert_allclose(cosines.max(1), 1, atol=1e-5)
    assert len(set(cosines.argmax(1))) == int(dead.sum())  # drawn without replacement
    lengths = np.linalg.norm(params["W_enc"], axis=0)
    np.testing.assert_allclose(lengths[dead], 0.2 * lengths[~dead].mean(), rtol=1e-4)
    for name, axis in (("W_enc", 1), ("b_enc", 0), ("W_dec", 0)):
        moved = [np.moveaxis(np.asarray(t[name]), axis, 0) for t in (params, state.params, adam.mu, adam.nu)]
        np.testing.assert_array_equal(moved[0][~dead], moved[1][~dead], err_msg=name)
        assert (moved[2][dead] == 0).all() and (moved[3][dead] == 0).all() and (moved[2][~dead] == 1).all()
    assert (np.asarray(params["b_enc"])[dead] == 0).all()


def test_resampling_keeps_to_its_steps():
    trainer = Trainer(SAE, CONFIG)
    state = trainer.init(batches()[0], 1.0)
    b_enc = np.where(DEAD, -100.0, 0.0).astype(np.float32)
    unfired = jnp.where(DEAD, 1000, 0).astype(jnp.int32)
    state = dataclasses.replace(state, params=state.params | {"b_enc": b_enc}, tokens_since_fired=unfired)
    state, metrics = trainer.run(state, trainer.place(batches()), 1.0)
    dead = np.asarray(metrics["dead"])
    assert (dead[:6] == np.sum(b_enc < 0)).all()  # the sixth step ends with the replacement
    assert (dead[6:] == 0).all()
    assert np.asarray(state.params["b_enc"]).min() > -1
