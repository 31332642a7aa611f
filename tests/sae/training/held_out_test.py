"""The held-out tokens on which a training run is measured."""

from typing import Any

import numpy as np
import pytest

from sae.activations.store import HELD_OUT, ActivationStore
from sae.training import held_out
from sae.training.trainer import Trainer
from tests.helpers.sae import make_store, numbered, resolved_sae, resolved_train


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    make_store(workdir, numbered(3000), shard_rows=256, chunk_rows=32)
    return ActivationStore.open(workdir / "activations")


def trainer_of(**train: Any) -> Trainer:
    sae = resolved_sae(d_model=3, n_features=8, k=2, group_sizes=(8,), group_weights=(1.0,))
    return Trainer(sae, resolved_train(steps=20, batch_size=8, warmup_steps=5, decay_start=10, mesh=(1, 1), **train))


def test_the_drawn_tokens_are_of_whole_chunks_but_the_last(store):
    rows = store.rows_of(HELD_OUT).numbers()
    drawn, other = (held_out.drawn(store, 100, seed) for seed in (0, 1))
    assert len(drawn) == 100 and set(drawn) != set(other) and set(drawn) <= set(rows)
    np.testing.assert_array_equal(drawn, np.sort(drawn))
    cut = [chunk for chunk in set(drawn // 32) if (drawn // 32 == chunk).sum() < (rows // 32 == chunk).sum()]
    assert len(cut) <= 1
    np.testing.assert_array_equal(held_out.drawn(store, 10**6, 0), rows)


def test_more_tokens_add_to_the_fewer(store):
    fewer, more = (held_out.drawn(store, n, 0) for n in (100, 250))
    assert set(fewer) < set(more) and len(more) == 250


@pytest.mark.parametrize("calibration, evaluation", [(100, 250), (250, 100), (100, 100), (10**6, 10**6)])
def test_calibration_and_evaluation_share_their_tokens(store, calibration, evaluation):
    trainer = trainer_of(calibration_tokens=calibration, held_out_tokens=evaluation)
    parts = held_out.final_tokens(store, trainer)
    for tokens, n in zip(parts, (calibration, evaluation), strict=True):
        values = np.concatenate([np.asarray(batch.x)[: batch.used, 0] for part in tokens for batch in part])
        np.testing.assert_array_equal(np.sort(values), held_out.drawn(store, n, 0))
    assert parts[0][0] is parts[1][0]
