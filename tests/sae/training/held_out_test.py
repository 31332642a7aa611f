"""The sample of held-out tokens on which a training run is measured."""

import numpy as np
import pytest

from sae.activations.store import HELD_OUT, ActivationStore
from sae.training import held_out
from tests.helpers.sae import make_store, numbered


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    make_store(workdir, numbered(3000), shard_rows=256, chunk_rows=32)
    return ActivationStore.open(workdir / "activations")


def test_a_sample_of_held_out_tokens_is_of_whole_chunks(store, monkeypatch):
    monkeypatch.setattr(held_out, "_SAMPLE", 100)
    rows = store.rows_of(HELD_OUT)
    drawn, other = (np.concatenate(held_out.sample(store, seed))[:, 0].astype(int) for seed in (0, 1))
    assert 100 <= len(drawn) < 132 and set(drawn) != set(other)
    np.testing.assert_array_equal(drawn, rows[np.isin(rows // 32, drawn // 32)])
    monkeypatch.setattr(held_out, "_SAMPLE", 10**6)
    np.testing.assert_array_equal(np.concatenate(held_out.sample(store, 0))[:, 0], rows)
