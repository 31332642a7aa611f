"""Vectors of studies against a loop over their tokens, made by one process and by several."""

import jax
import numpy as np
import pytest

from interp.medsae import vectors
from interp.medsae.vectors import FEATURES, study_vectors
from maira_jax.inputs.tokens import Kind
from maira_jax.run import processes
from sae.activations.store import ActivationStore
from sae.saved import load_sae
from tests.helpers.interp_run import make_workdir


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return make_workdir(tmp_path_factory.mktemp("label"), 120)


def drawn(d_model):
    """Two bases of directions, of different widths."""
    rng = np.random.default_rng(5)
    return {
        "random directions": rng.normal(size=(d_model, 7)).astype(np.float32),
        "raw": np.eye(d_model, dtype=np.float32),
    }


def test_study_vectors_equal_a_loop(run_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(vectors, "_BLOCK_TOKENS", 100)
    sae, store = load_sae(run_dir / "sae"), ActivationStore.open(run_dir / "activations")
    found = study_vectors(
        sae, store, ("findings", "technique"), tmp_path / "vectors", jax.devices(), drawn(store.d_model)
    )
    x, tokens = store.read(0, store.n_tokens), store.tokens
    kind, study = tokens.kind, tokens.study
    f = np.asarray(sae.encode(x))
    counted = np.isin(kind, [Kind.FINDINGS, Kind.TECHNIQUE])
    assert found.study.tolist() == sorted(set(study[counted].tolist()))
    for i in (0, 7, len(found.study) - 1):
        rows = counted & (study == found.study[i])
        np.testing.assert_allclose(found.embedding[i], x[rows].mean(0), rtol=1e-4, atol=1e-5)
        expected = {basis: x[rows] @ columns for basis, columns in drawn(store.d_model).items()} | {FEATURES: f[rows]}
        assert expected.keys() == found.activation.keys()
        for basis, values in expected.items():
            np.testing.assert_allclose(found.activation[basis][:, :][i], values.max(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [3, 200])
def test_processes_give_what_one_gives(run_dir, tmp_path, monkeypatch, count):
    """Each writes its studies; of 200 processes some have none. Blocks are so small that studies lie in several."""
    monkeypatch.setattr(vectors, "_BLOCK_TOKENS", 7)
    sae, store = load_sae(run_dir / "sae"), ActivationStore.open(run_dir / "activations")
    given = (sae, store, ("findings",))
    one = study_vectors(*given, tmp_path / "one", jax.devices(), drawn(store.d_model))
    monkeypatch.setattr(processes, "count", lambda: count)
    monkeypatch.setattr(processes, "barrier", lambda: None)
    for number in reversed(range(count)):
        monkeypatch.setattr(processes, "index", lambda number=number: number)
        several = study_vectors(*given, tmp_path / "several", jax.devices(), drawn(store.d_model))
        assert (several is None) == (number > 0)
    for name in ("study", "embedding"):
        np.testing.assert_array_equal(getattr(several, name), getattr(one, name))
    for basis, whole in one.activation.items():
        np.testing.assert_array_equal(several.activation[basis][:, 2:9], whole[:, :][:, 2:9])
    assert 2 < len(list((tmp_path / "several").glob("features-*"))) <= min(count, len(one.study))
