"""The preset `scaled`: lengths that hold whatever the length of a run."""

import numpy as np
import pytest

from launch.benches.synthetic import SyntheticFeatures
from sae.training.config import TrainConfig, TrainSection
from sae.training.presets import PRESETS
from sae.training.trainer import Trainer
from tests.helpers.sae import resolved_sae

LENGTHS = (500, 1500, 6000, 16_000, 50_000)


def scaled(steps: int, batch_size: int = 512, d_model: int = 64) -> dict:
    return PRESETS.get("scaled").train(steps, batch_size, d_model, 8 * d_model)


@pytest.mark.parametrize("d_model", [64, 576, 4096])
def test_rows_turn_by_the_same_angle_in_runs_of_any_length_and_width(d_model):
    rates = np.array([scaled(steps, d_model=d_model)["lr"] for steps in LENGTHS])
    np.testing.assert_allclose(rates * np.sqrt(d_model * np.array(LENGTHS)), 2.8, rtol=0.01)


def test_a_run_without_choices_takes_it():
    assert TrainSection().preset == "scaled"


@pytest.mark.parametrize("batch_size", [512, 8192])
def test_dead_features_are_found_as_early_in_a_long_run_as_in_a_short_one(batch_size):
    windows = {scaled(steps, batch_size)["dead_tokens"] for steps in LENGTHS}
    assert len(windows) == 1
    assert windows.pop() <= min(LENGTHS) // 10 * batch_size


@pytest.mark.parametrize("steps", [1, 2, 19, 20, 100])
def test_the_shortest_runs_have_a_valid_schedule(steps):
    sae = resolved_sae(d_model=8, n_features=16, k=2, group_sizes=(16,), group_weights=(1.0,))
    config = TrainConfig.resolve(TrainSection(preset="scaled", steps=steps, batch_size=8), sae, 0)
    assert config.lr <= 1.6e-2


@pytest.mark.drill
def test_more_steps_recover_more():
    """Of 256 true features in 64 dimensions; 500, 1,500 and 3,000 steps."""
    features = SyntheticFeatures.random(d_model=64, n_true=256, active=8, seed=3)
    found = [recovered(features, steps) for steps in (500, 1500, 3000)]
    assert found == sorted(found) and found[-1] >= 0.95


def recovered(features: SyntheticFeatures, steps: int) -> float:
    weights = PRESETS.get("scaled").group_weights(2)
    sae = resolved_sae(d_model=64, n_features=512, k=8, group_sizes=(256, 256), group_weights=weights)
    trainer = Trainer(sae, TrainConfig.resolve(TrainSection(preset="scaled", steps=steps, batch_size=512), sae, 3))
    state = trainer.init(features.sample(512, (3, 0)), 3.0)
    for first in range(0, steps, 100):
        state, _ = trainer.run(
            state, trainer.place(np.stack([features.sample(512, (3, 1, first + i)) for i in range(100)])), 3.0
        )
    state = trainer.ordered(state)
    alive = np.asarray(state.tokens_since_fired) < 20_000
    return features.recovered(np.asarray(state.params["W_dec"]), alive)[0]
