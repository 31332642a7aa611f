"""ReFT-r1 against PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from steer.methods.learned import reft_r1
from steer.methods.learned.reft_r1 import RankOneEdit, update

B, T, D = 2, 40, 6


@pytest.fixture(scope="module")
def given():
    rng = np.random.default_rng(0)
    x, readout = rng.normal(size=(2, B, T, D)).astype(np.float32)
    edited = rng.random((B, T)) < 0.9
    v = rng.normal(size=D).astype(np.float32)
    return x, readout, edited, v / np.linalg.norm(v)


def torch_apply(x, edited, v):
    """h + mean(top k of ReLU(h . v)) v, and the mean of the other latents; after AxBench's description."""
    latent = torch.relu(x @ v) * edited
    top = latent.topk(reft_r1._TOP, dim=-1)
    others = latent.scatter(-1, top.indices, 0.0)
    moved = x + edited[..., None] * top.values.mean(-1)[:, None, None] * v
    return moved, (others.sum(-1) / edited.sum(-1)).mean()


def torch_loss(x, readout, edited, v, weight):
    moved, penalty = torch_apply(x, edited, v)
    return torch.log_softmax((moved * readout).sum(-1), -1)[:, 0].mean() + weight * penalty


def test_the_edit_and_its_gradient(given):
    """To 1e-5."""
    x, readout, edited, v = given
    moved, penalty = RankOneEdit(jnp.asarray(v)).apply(jnp.asarray(x), jnp.asarray(edited))
    tx, tr, te = torch.tensor(x), torch.tensor(readout), torch.tensor(edited).float()
    expected = torch_apply(tx, te, torch.tensor(v))
    np.testing.assert_allclose(moved, expected[0], atol=1e-5)
    assert float(penalty) == pytest.approx(float(expected[1]), abs=1e-6) and float(penalty) > 0

    def loss(v):
        moved, penalty = RankOneEdit(v).apply(jnp.asarray(x), jnp.asarray(edited))
        return jax.nn.log_softmax((moved * readout).sum(-1), -1)[:, 0].mean() + 0.3 * penalty

    tv = torch.tensor(v, requires_grad=True)
    torch_loss(tx, tr, te, tv, 0.3).backward()
    np.testing.assert_allclose(jax.grad(loss)(jnp.asarray(v)), tv.grad, atol=1e-5)


def test_ten_updates(given):
    """AdamW with a linearly falling rate, from length 1, across the direction: to 1e-5."""
    x, readout, edited, v = given
    tx, tr, te = torch.tensor(x), torch.tensor(readout), torch.tensor(edited).float()
    parameter = torch.nn.Parameter(torch.tensor(v))
    optimiser = torch.optim.AdamW([parameter], lr=reft_r1._RATE, weight_decay=reft_r1._WEIGHT_DECAY)
    falling = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / reft_r1._STEPS)
    ours, state = jnp.asarray(v), reft_r1._OPTIMISER.init(jnp.asarray(v))
    for step in range(10):
        optimiser.zero_grad()
        torch_loss(tx, tr, te, parameter, step / 10).backward()
        gradient = parameter.grad.clone().numpy()
        with torch.no_grad():
            parameter /= parameter.norm()
            parameter.grad -= (parameter.grad @ parameter) * parameter
        optimiser.step()
        falling.step()
        ours, state = update(ours, jnp.asarray(gradient), state)
        np.testing.assert_allclose(ours, parameter.detach(), atol=1e-5)
    assert not np.allclose(ours, v, atol=0.02)


@pytest.mark.parametrize("shares, expected, begun", [((1.0,), 0, 1), ((0.5, 1.0), 1, 2), ((0.5, 0.7, 0.7), 1, 3)])
def test_the_direction_under_which_most_studies_flip_is_kept(monkeypatch, shares, expected, begun):
    """No other one is begun where all flip."""
    made = []

    class Rewritten:
        def flipped(self, edit, batches):
            return shares[int(edit.learned[0])]

    def learned(rewriting, batches, d_model, seed):
        made.append(seed)
        return RankOneEdit(jnp.full(d_model, float(seed[1])))

    monkeypatch.setattr(reft_r1, "_learned", learned)
    found = reft_r1.learn_direction(Rewritten(), [], D, 7)
    assert int(found.learned[0]) == expected and made == [(7, start) for start in range(begun)]
