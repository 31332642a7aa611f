"""Our training step and dictionary_learning's, from the same weights on the same batches."""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from sae import autoencoder
from sae.training.presets import PRESETS
from sae.training.trainer import Trainer
from tests.helpers import peers
from tests.helpers.sae import activations, resolved_sae, resolved_train

D, F, K, BATCH, STEPS = 32, 128, 4, 64, 300
FRACTIONS = (0.5, 0.25, 0.125, 0.0625, 0.0625)
SIZES = (64, 32, 16, 8, 8)
WARMUP, DECAY, THRESHOLD_START, DEAD_TOKENS, LR = 10, 200, 20, 256, 3e-3
# The trajectory of dictionary_learning 0.1.0, for machines that do not have it. Written by `record`.
RECORDED = Path(__file__).parent / "data" / "dictionary_learning_trajectory.npz"


def batches() -> np.ndarray:
    return activations(BATCH * STEPS, D, n_true=48).reshape(STEPS, BATCH, D) / np.float32(4)


def theirs() -> dict[str, np.ndarray]:
    """Losses before, and weights and threshold after, the steps of their trainer; its first weights."""
    module = peers.dictionary_learning("trainers.matryoshka_batch_top_k")
    trainer = module.MatryoshkaBatchTopKTrainer(
        steps=STEPS,
        activation_dim=D,
        dict_size=F,
        k=K,
        layer=3,
        lm_name="phantom",
        group_fractions=list(FRACTIONS),
        lr=LR,
        warmup_steps=WARMUP,
        decay_start=DECAY,
        threshold_start_step=THRESHOLD_START,
        seed=0,
        device="cpu",
    )
    trainer.dead_feature_threshold = DEAD_TOKENS
    with torch.no_grad():
        trainer.ae.b_enc[::3] = -1.0  # dead at first, until the auxiliary loss revives them
    x = torch.from_numpy(batches())
    first = {f"first_{name}": value.detach().numpy().copy() for name, value in trainer.ae.named_parameters()}
    losses, thresholds, dead = [], [], []
    for step in range(STEPS):
        losses.append(trainer.update(step, x[step]))
        thresholds.append(float(trainer.ae.threshold))
        dead.append(trainer.dead_features)
        if step == 0:
            first["first_b_dec"] = trainer.geometric_median(x[0]).numpy().copy()
    last = {f"last_{name}": value.detach().numpy().copy() for name, value in trainer.ae.named_parameters()}
    return (
        first
        | last
        | {
            "losses": np.array(losses),
            "thresholds": np.array(thresholds),
            "dead": np.array(dead),
            "silent": trainer.num_tokens_since_fired.numpy(),
        }
    )


def record() -> None:
    """Writes the recorded trajectory: `python -c 'from tests.sae.training.trainer_test import record; record()'`."""
    RECORDED.parent.mkdir(exist_ok=True)
    np.savez_compressed(RECORDED, **theirs())


def ours(expected, **options):
    weights = PRESETS.get("dictionary_learning").group_weights(5)
    sae = resolved_sae(d_model=D, n_features=F, k=K, group_sizes=SIZES, group_weights=weights)
    config = resolved_train(
        steps=STEPS,
        batch_size=BATCH,
        lr=LR,
        warmup_steps=WARMUP,
        decay_start=DECAY,
        auxk_alpha=1 / 32,
        dead_tokens=DEAD_TOKENS,
        threshold_beta=0.999,
        threshold_start=THRESHOLD_START,
    )
    trainer = Trainer(sae, config, **options)
    x = batches()
    params = {name: expected[f"first_{name}"] for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    state = trainer.striped(dataclasses.replace(trainer.init(x[0], 1.0), params=params))
    return trainer.run(state, trainer.place(x), 1.0)


def check(expected, state, metrics):
    # The comparison means something only if features died, came back and the auxiliary loss took part.
    assert expected["dead"].max() > D // 2 >= expected["dead"][expected["dead"] > 0].min()
    assert np.asarray(metrics["auxk"]).max() > 0.1
    np.testing.assert_array_equal(metrics["dead"], expected["dead"])
    np.testing.assert_allclose(metrics["loss"], expected["losses"], rtol=1e-4)
    np.testing.assert_allclose(metrics["threshold"], expected["thresholds"], rtol=1e-4)
    np.testing.assert_array_equal(state.tokens_since_fired, expected["silent"])
    for name, value in state.params.items():
        difference = np.linalg.norm(value - expected[f"last_{name}"])
        assert difference < 1e-3 * np.linalg.norm(expected[f"last_{name}"]), name


@pytest.mark.parametrize("kept_entries", [True, False])
def test_step_by_step_equal_to_the_recorded_trajectory(kept_entries):
    with np.load(RECORDED) as expected:
        check(expected, *ours(expected, kept_entries=kept_entries))


def test_step_by_step_equal_to_dictionary_learning():
    expected = theirs()
    check(expected, *ours(expected))
    with np.load(RECORDED) as recorded:
        np.testing.assert_allclose(recorded["losses"], expected["losses"], rtol=1e-4)


def test_the_first_bias_is_their_geometric_median():
    with np.load(RECORDED) as expected:
        median = autoencoder.geometric_median(jnp.asarray(batches()[0]))
        np.testing.assert_allclose(median, expected["first_b_dec"], atol=1e-5)
