"""Vectors of studies against a loop over their tokens, made by one process and by several."""

import jax
import numpy as np
import pytest

from interp.medsae import vectors
from interp.medsae.vectors import study_vectors
from maira_jax.inputs.tokens import Kind
from maira_jax.run import processes
from sae.activations.store import ActivationStore
from sae.saved import load_sae
from tests.helpers.interp_run import make_workdir


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return make_workdir(tmp_path_factory.mktemp("label"), 120)


def test_study_vectors_equal_a_loop(run_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(vectors, "_BLOCK_TOKENS", 100)
    sae, store = load_sae(run_dir / "sae"), ActivationStore.open(run_dir / "activations")
    found = study_vectors(sae, store, ("findings", "technique"), tmp_path / "vectors", jax.devices(), 5)
    x, tokens = store.read(0, store.n_tokens), store.tokens
    kind, study = tokens.kind, tokens.study
    f = np.asarray(sae.encode(x))
    counted = np.isin(kind, [Kind.FINDINGS, Kind.TECHNIQUE])
    assert found.study.tolist() == sorted(set(study[counted].tolist()))
    directions = vectors.random_directions(store.d_model, 5)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=0), 1, rtol=1e-6)
    for i in (0, 7, len(found.study) - 1):
        rows = counted & (study == found.study[i])
        np.testing.assert_allclose(found.embedding[i], x[rows].mean(0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.dimension[i], x[rows].max(0), rtol=1e-6)
        np.testing.assert_allclose(found.direction[i], (x[rows] @ directions).max(0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.feature[:, :][i], f[rows].max(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [3, 200])
def test_processes_give_what_one_gives(run_dir, tmp_path, monkeypatch, count):
    """Each writes its studies; of 200 processes some have none. Blocks are so small that studies lie in several."""
    monkeypatch.setattr(vectors, "_BLOCK_TOKENS", 7)
    sae, store = load_sae(run_dir / "sae"), ActivationStore.open(run_dir / "activations")
    given = (sae, store, ("findings",))
    one = study_vectors(*given, tmp_path / "one", jax.devices(), 5)
    monkeypatch.setattr(processes, "count", lambda: count)
    monkeypatch.setattr(processes, "barrier", lambda: None)
    for number in reversed(range(count)):
        monkeypatch.setattr(processes, "index", lambda number=number: number)
        several = study_vectors(*given, tmp_path / "several", jax.devices(), 5)
        assert (several is None) == (number > 0)
    for name in ("study", "embedding", "dimension", "direction"):
        np.testing.assert_array_equal(getattr(several, name), getattr(one, name))
    np.testing.assert_array_equal(several.feature[:, 2:9], one.feature[:, :][:, 2:9])
    assert 2 < len(list((tmp_path / "several").glob("feature-*"))) <= min(count, len(one.study))
