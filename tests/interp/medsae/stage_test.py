"""The label stage on planted features: vectors of studies against a loop, tables, and what it refuses."""

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest

from interp.features.concepts import StudyLabels
from interp.medsae import monosemanticity, stage
from maira_jax.errors import UserError
from maira_jax.inputs.tokens import Kind
from maira_jax.run import files, processes
from sae.activations.store import ActivationStore
from sae.saved import load_sae
from tests.helpers.interp_run import config, make_workdir


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return make_workdir(tmp_path_factory.mktemp("label"), 120)


def test_study_vectors_equal_a_loop(run_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "_BLOCK_TOKENS", 100)
    sae, store = load_sae(run_dir / "sae"), ActivationStore.open(run_dir / "activations")
    found = stage.study_vectors(sae, store, ("findings", "technique"), tmp_path / "vectors", jax.devices())
    x, tokens = store.read(0, store.n_tokens), store.tokens
    kind, study = tokens["kind"].to_numpy(), tokens["study"].to_numpy()
    f = np.asarray(sae.encode(x))
    counted = np.isin(kind, [Kind.FINDINGS, Kind.TECHNIQUE])
    assert found.study.tolist() == sorted(set(study[counted].tolist()))
    for i in (0, 7, len(found.study) - 1):
        rows = counted & (study == found.study[i])
        np.testing.assert_allclose(found.embedding[i], x[rows].mean(0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.dimension[i], x[rows].max(0), rtol=1e-6)
        np.testing.assert_allclose(found.feature[:, :][i], f[rows].max(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [3, 200])
def test_processes_give_what_one_gives(run_dir, tmp_path, monkeypatch, count):
    """Each writes its studies; of 200 processes some have none. Blocks are so small that studies lie in several."""
    monkeypatch.setattr(stage, "_BLOCK_TOKENS", 7)
    sae, store = load_sae(run_dir / "sae"), ActivationStore.open(run_dir / "activations")
    given = (sae, store, ("findings",))
    one = stage.study_vectors(*given, tmp_path / "one", jax.devices())
    monkeypatch.setattr(processes, "count", lambda: count)
    monkeypatch.setattr(processes, "barrier", lambda: None)
    for number in reversed(range(count)):
        monkeypatch.setattr(processes, "index", lambda number=number: number)
        several = stage.study_vectors(*given, tmp_path / "several", jax.devices())
        assert (several is None) == (number > 0)
    for name in ("study", "embedding", "dimension"):
        np.testing.assert_array_equal(getattr(several, name), getattr(one, name))
    np.testing.assert_array_equal(several.feature[:, 2:9], one.feature[:, :][:, 2:9])
    assert 2 < len(list((tmp_path / "several").glob("feature-*"))) <= min(count, len(one.study))


def test_results_are_those_of_the_measures(run_dir, tmp_path):
    cfg = config()
    cfg.label.sections = ("findings",)
    counts = stage.run(cfg, run_dir)
    sae, store = load_sae(run_dir / "sae"), ActivationStore.open(run_dir / "activations")
    vectors = stage.study_vectors(sae, store, ("findings",), tmp_path / "vectors", jax.devices())
    labels = StudyLabels.from_json(store.studies["labels"].to_pylist())
    rows = pq.read_table(run_dir / "label" / "neurons.parquet").to_pylist()
    for basis, activation in (("features", vectors.feature), ("raw dimensions", vectors.dimension)):
        measured = monosemanticity.measure(activation, vectors.embedding, labels)
        own = [row for row in rows if row["basis"] == basis]
        assert [row["neuron"] for row in own] == list(range(activation.shape[1]))
        for name in ("monosemanticity", "entropy"):
            np.testing.assert_allclose(
                [np.nan if row[name] is None else row[name] for row in own], getattr(measured, name), rtol=1e-6
            )
        c = labels.concepts.index("communication")
        np.testing.assert_allclose(
            [np.nan if row["f1"]["communication"] is None else row["f1"]["communication"] for row in own],
            measured.f1[:, c],
        )
    summary = files.read_json(run_dir / "label" / "summary.json")
    assert counts["studies"] == summary["studies"] == 120
    # Feature 4 is active where somebody is told.
    assert summary["bases"]["features"]["classes"]["communication"]["neuron"] == 4
    assert not (run_dir / "label" / "vectors").exists()
    assert stage.run(cfg, run_dir) == counts


def test_wrong_configs_are_refused(run_dir, tmp_path):
    changes = (
        ({"sections": ("finding",)}, "label.sections is .*'finding'"),
        ({"sections": ("start token",)}, "has no tokens of the sections start token"),
        ({"concepts": ("measles",)}, "label.concepts names 'measles'"),
        ({"sections": ()}, "label.sections is empty"),
    )
    for i, (change, message) in enumerate(changes):
        workdir = tmp_path / str(i)
        workdir.mkdir()
        for folder in ("model", "activations", "sae"):
            (workdir / folder).symlink_to(run_dir / folder)
        cfg = config()
        cfg.label.update(change)
        with pytest.raises(UserError, match=message):
            stage.run(cfg, workdir)
