"""Training, selection, calibration, evaluation and probes on the device against the processor's."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maira_jax.model.sharding import make_mesh
from sae import autoencoder, mesh
from sae.evaluation import calibrate, metrics, probing
from sae.evaluation.striped import StripedSae, in_memory
from sae.kernels import kth_largest
from sae.kernels.kth_largest import Search
from sae.training.trainer import Trainer
from tests.helpers.on_device import run_on
from tests.helpers.sae import activations, random_sae, resolved_sae, resolved_train

pytestmark = pytest.mark.gpu

D, F, K, BATCH, STEPS = 128, 2048, 16, 256, 20
GROUPS, WEIGHTS = (1024, 512, 256, 256), (0.25,) * 4
KINDS = {
    "batch_top_k": {},
    "matryoshka": {"group_sizes": GROUPS, "group_weights": WEIGHTS},
    "top_k": {"kind": "top_k"},
    "relu": {"kind": "relu", "l1": 0.02},
}


@pytest.fixture(scope="module")
def batches() -> np.ndarray:
    return activations(BATCH * STEPS, D, n_true=256).reshape(STEPS, BATCH, D) / np.float32(4)


def trained(device: jax.Device, batches: np.ndarray, kind: str, kept_entries: bool = False, **train):
    """State and metrics after one step per batch; a fifth of the features is dead at first.

    kept_entries: whether by the route of one processor.
    """
    fields = {"d_model": D, "n_features": F, "k": K, "group_sizes": (F,), "group_weights": (1.0,)}
    config = resolved_train(STEPS, BATCH, lr=2e-3, warmup_steps=4, decay_start=16, threshold_start=5, **train)
    config = dataclasses.replace(config, auxk_alpha=1 / 32, dead_tokens=2000)
    with jax.default_device(device):
        trainer = Trainer(resolved_sae(**fields | KINDS[kind]), config, kept_entries, [device])
        state = trainer.init(batches[0], 1.0)
        unfired = np.where(np.arange(F) % 5 == 0, 4000, 0).astype(np.int32)
        state = dataclasses.replace(state, tokens_since_fired=jnp.asarray(unfired))
        state, measured = trainer.run(trainer.striped(state), trainer.place(batches), 1.0)
        return jax.device_get((trainer.ordered(state), measured))


@pytest.mark.parametrize("kind", KINDS)
def test_training_steps_in_float32(device, host, at_most, batches, kind):
    """A token whose last feature is another one at a near tie changes little: losses agree, and weights nearly."""
    state, found = trained(device, batches, kind)
    expected_state, expected = trained(host, batches, kind, kept_entries=kind != "relu")
    assert kind == "relu" or expected["auxk"].max() > 0  # of ReLU's features none is silent
    assert expected["loss"][-1] < expected["loss"][0]
    for name in ("loss", "fvu"):
        at_most(float(np.abs(found[name] / expected[name] - 1).max()), 2e-4, name)
    if kind != "relu":
        np.testing.assert_array_equal(found["l0"], K)
    for name, theirs in expected_state.params.items():
        ours = state.params[name]
        at_most(float(np.linalg.norm(ours - theirs) / max(np.linalg.norm(theirs), 1e-6)), 5e-3, name)


def test_a_training_step_in_bfloat16(device, host, at_most, batches):
    state, found = trained(device, batches, "matryoshka", dtype="bfloat16")
    _, expected = trained(host, batches, "matryoshka", kept_entries=True)
    assert all(np.isfinite(value).all() for value in jax.tree.leaves(state.params))
    at_most(float(np.abs(found["loss"] / expected["loss"] - 1).max()), 2e-2, "loss")
    np.testing.assert_array_equal(found["l0"], K)


@pytest.mark.parametrize("guess", [0.0, 2.5])
@pytest.mark.parametrize("rounded", [False, True], ids=["float32", "many equal entries"])
def test_the_selection_keeps_exactly_the_largest_entries(device, rounded, guess):
    z = np.maximum(np.random.default_rng(0).normal(size=(BATCH, F)), 0).astype(np.float32)
    z = np.round(z, 1) if rounded else z
    keep, smallest = run_on(device, jax.jit(lambda z: kth_largest.batch_top_k(z, K * BATCH, Search(guess=guess))), z)
    assert keep.sum() == K * BATCH and smallest == z[keep].min() == np.sort(z.reshape(-1))[-K * BATCH]
    tied = np.flatnonzero(z.reshape(-1) == smallest)  # earlier rows win, and in a row earlier columns
    np.testing.assert_array_equal(np.flatnonzero(keep.reshape(-1)[tied]), np.arange(keep.reshape(-1)[tied].sum()))
    rows, _ = run_on(device, jax.jit(lambda z: kth_largest.row_top_k(z, K)), z)
    assert (rows.sum(1) == K).all() and (np.where(rows, z, np.inf).min(1) == np.sort(z, axis=1)[:, -K]).all()


def test_float32_products_round_no_factor(device, at_most):
    """Against float64: what rounds factors to 10 bits is wrong by 1e-4."""
    x = activations(2048, D, n_true=256)
    sae = random_sae(x, (F,), K, 1.0)
    params = {name: np.asarray(value, np.float64) for name, value in sae.params.items()}
    z = (x - params["b_dec"]) @ params["W_enc"] + params["b_enc"]
    f = np.where(z > 1.0, z, 0.0).astype(np.float32)
    ours = {name: np.asarray(value) for name, value in sae.params.items()}
    found = run_on(device, jax.jit(lambda p, x: autoencoder.pre_activations(p, x)), ours, x)
    at_most(float(np.abs(found - z).max() / np.abs(z).max()), 2e-6, "encode")
    kept = run_on(device, jax.jit(lambda p, x: autoencoder.encode(p, x, 1.0)), ours, x)
    at_most(float(((kept > 0) != (f > 0)).mean()), 1e-5, "share of entries that only one keeps")
    decoded = f.astype(np.float64) @ params["W_dec"] + params["b_dec"]
    found = run_on(device, jax.jit(autoencoder.decode), ours, f)
    at_most(float(np.abs(found - decoded).max() / np.abs(decoded).max()), 2e-6, "decode")


@pytest.mark.parametrize("per_token", [False, True])
def test_calibration_and_evaluation(device, host, at_most, per_token):
    x = activations(5000, D, n_true=256)
    found = []
    for each in (device, host):
        with jax.default_device(each):
            on = make_mesh((1, 1), (mesh.DATA, mesh.FEATURE), [each])
            params = random_sae(x, GROUPS, K, 0.0).params
            sae = StripedSae.placed(params, on, GROUPS, 3 * K if per_token else None)
            tokens = in_memory(on, x, 2100)
            threshold = calibrate.threshold_for_l0(sae, [tokens], K)
            found.append((threshold, *metrics.evaluate(sae, threshold, [tokens])))
    (threshold, ours, density), (expected, theirs, expected_density) = found
    at_most(abs(threshold / expected - 1), 2e-6, "threshold")
    for name in ("fvu", "explained_variance", "cosine", "l0"):
        at_most(abs(ours[name] / theirs[name] - 1), 1e-5, name)
    at_most(float(np.abs(density - expected_density).max()), 1e-3, "density")


def test_probes(device, host, at_most):
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(3, 400, 4)) + 50).astype(np.float32)  # far from 0, where a mean must not be rounded
    y = x.sum(2) + rng.normal(size=(3, 400)) > 200
    found = []
    for each in (device, host):
        with jax.default_device(each):
            found.append(probing.fit_sparse(x, y, np.ones_like(y)))
    for ours, theirs in zip(*found, strict=True):
        at_most(float(np.abs(ours - theirs).max() / np.abs(theirs).max()), 1e-3)
