"""Members of one program compared with the same autoencoders trained alone."""

import dataclasses
import subprocess
import sys

import jax
import numpy as np
import pytest

from sae.sweep.member_trainer import MemberTrainer, grouped
from sae.training.checkpoints import Checkpoints
from sae.training.trainer import Trainer
from tests.helpers.paths import ROOT
from tests.helpers.sae import activations, resolved_sae, resolved_train

D, F, BATCH, STEPS = 24, 64, 32, 30
# Of parameters after 30 steps: a rate that is an argument may be multiplied in another order than a constant.
TOLERANCE = 2e-5


def configs(kind):
    """Three members; those of relu have dead features, which are revived and replaced."""
    sae = resolved_sae(d_model=D, n_features=F, k=4, group_sizes=(32, 32), group_weights=(0.5, 0.5), kind=kind)
    dead = {"dead_tokens": 64, "auxk_alpha": 1 / 32, "resample_every": 10} if kind == "relu" else {"auxk_alpha": 0.0}
    train = resolved_train(steps=STEPS, batch_size=BATCH, warmup_steps=3, decay_start=20, **dead)
    rates = ((1e-3, 0.0), (5e-3, 0.05), (2e-2, 2.0))
    return [(dataclasses.replace(sae, l1=l1), dataclasses.replace(train, lr=lr)) for lr, l1 in rates]


def trained(trainer):
    x = activations(BATCH * STEPS, D).reshape(STEPS, BATCH, D)
    state, died = trainer.init(x[0], 2.0), False
    for part in np.split(x, 3):
        state, metrics = trainer.run(state, trainer.place(part), 2.0)
        died |= bool(metrics["dead"].any())
    return state, metrics, died


def assert_equal_to_alone(together, kind):
    states, metrics, _ = trained(together)
    assert metrics["loss"].shape == (10, 3) and int(states.step) == STEPS
    for index in (0, 2):
        state, own, died = trained(Trainer(*configs(kind)[index]))
        assert index == 0 or died == (kind == "relu")
        found = together.alone[index].ordered(together.member(states, index))
        for name, value in state.params.items():
            np.testing.assert_allclose(found.params[name], value, atol=TOLERANCE, err_msg=name)
        np.testing.assert_array_equal(found.tokens_since_fired, state.tokens_since_fired)
        np.testing.assert_allclose(metrics["loss"][:, index], own["loss"], rtol=1e-4)


@pytest.mark.parametrize("kind", ["relu", "batch_top_k"])
def test_members_equal_those_trained_alone(kind):
    assert_equal_to_alone(MemberTrainer(configs(kind)), kind)


@pytest.mark.drill
@pytest.mark.parametrize("kind", ["relu", "batch_top_k"])
def test_batched_members_equal_those_trained_alone(kind):
    """As they are trained on one device that is not a CPU."""
    together = MemberTrainer(configs(kind))
    together.on_one_cpu = False
    assert_equal_to_alone(together, kind)


@pytest.mark.drill
def test_members_on_a_mesh_equal_those_trained_alone():
    command = [sys.executable, "-m", "tests.helpers.devices8.sweep_members"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_checkpoint_gives_the_same_states(tmp_path):
    trainer = MemberTrainer(configs("relu"))
    states = trainer.init(activations(BATCH, D), 2.0)
    kept = jax.tree.map(np.asarray, states)
    checkpoints = Checkpoints(tmp_path, trainer)
    checkpoints.save(states, 2.0)
    checkpoints.close()
    again, scale = Checkpoints(tmp_path, trainer).load_latest()
    jax.tree.map(np.testing.assert_array_equal, again, kept)
    assert scale == 2.0


def test_members_of_one_shape_share_a_program():
    sae, train = configs("batch_top_k")[0]
    others = [
        (dataclasses.replace(sae, k=5), train),
        (dataclasses.replace(sae, l1=0.1), dataclasses.replace(train, lr=1.0)),
        (dataclasses.replace(sae, group_sizes=(16, 48)), train),
    ]
    assert grouped([(sae, train), *others]) == [[0, 2], [1], [3]]
