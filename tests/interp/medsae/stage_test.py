"""The label stage on planted features: its tables, and what it refuses."""

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest

from interp.controls.control import bases
from interp.features.concepts import StudyLabels
from interp.medsae import stage
from interp.medsae.vectors import study_vectors
from maira_jax.errors import UserError
from maira_jax.run import files
from sae.activations.store import ActivationStore
from sae.saved import load_sae
from tests.helpers import image_run
from tests.helpers.interp_run import config, make_workdir
from tests.helpers.measured_neurons import measure


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return make_workdir(tmp_path_factory.mktemp("label"), 120)


def column(rows, name, concept=None):
    values = [row[name] if concept is None else row[name][concept] for row in rows]
    return [np.nan if value is None else value for value in values]


def test_results_are_those_of_the_measures(run_dir, tmp_path):
    cfg = config()
    cfg.label.sections = ("findings",)
    counts = stage.run(cfg, run_dir)
    sae, store = load_sae(run_dir / "sae"), ActivationStore.open(run_dir / "activations")
    vectors = study_vectors(sae, store, ("findings",), tmp_path / "vectors", jax.devices(), bases(sae, store, cfg.seed))
    labels = StudyLabels.from_json(store.studies["labels"].to_pylist())
    rows = pq.read_table(run_dir / "label" / "neurons.parquet").to_pylist()
    n_active = (vectors.activation["features"][:, :] > 0).sum(0)
    for basis, activation in vectors.activation.items():
        activation, own = activation[:, :], [row for row in rows if row["basis"] == basis]
        assert [row["neuron"] for row in own] == list(range(activation.shape[1]))
        if basis != "features":
            assert set(column(own, "active_by_rank")) <= set(n_active[n_active > 0].tolist()) | {len(labels.value) - 1}
        cut = np.sort(activation, axis=0)[
            len(activation) - 1 - np.array(column(own, "active_by_rank"), int), range(len(own))
        ]
        for suffix, counted in (("", activation), ("_by_rank", np.maximum(activation - cut, 0))):
            measured = measure(counted, vectors.embedding, labels)
            for name in ("monosemanticity", "entropy"):
                np.testing.assert_allclose(column(own, name + suffix), getattr(measured, name), rtol=1e-6)
            c = labels.concepts.index("communication")
            np.testing.assert_allclose(column(own, f"f1{suffix}", "communication"), measured.f1[:, c])
    assert stage.run(cfg, run_dir) == counts
    assert not (run_dir / "label" / "vectors").exists()


def test_the_summary_has_intervals_and_paired_differences(run_dir):
    cfg = config()
    cfg.label.sections = ("findings",)
    assert stage.run(cfg, run_dir)["studies"] == 120
    summary = files.read_json(run_dir / "label" / "summary.json")
    assert summary["studies"] == summary["patients"] == 120
    assert summary["probing"]["bases"]["features"]["1"]["auroc"] > 0.5
    rows = pq.read_table(run_dir / "label" / "probing.parquet").to_pylist()
    assert {row["neurons"][0] for row in rows if (row["k"], row["concept"]) == ("1", "communication")} >= {4}
    found = summary["bases"]
    # Feature 4 is active where somebody is told.
    assert found["features"]["classes"]["communication"]["neuron"] == 4
    for part in (found["features"], found["raw dimensions"], found["random directions"]["by_rank"]):
        low, high = part["intervals"]["monosemanticity"]
        assert low < high and low - 0.1 < part["monosemanticity"]["mean"] < high + 0.1
    gained = summary["differences"]["features minus random directions"]
    for rule, part in (("medsae", found), ("by_rank", {name: part["by_rank"] for name, part in found.items()})):
        r = part["features"]["mean_over_classes"]["r"] - part["random directions"]["mean_over_classes"]["r"]
        assert gained[rule]["r"]["difference"] == pytest.approx(r)
        low, high = gained[rule]["r"]["interval"]
        assert low < r < high and r > 0


def test_heat_maps_are_scored_where_studies_have_boxes(tmp_path):
    """The padded square around these small images has patches that they share half of."""
    assert stage.run(image_run.config(), image_run.make_workdir(tmp_path, patches=True))["studies"] == 210
    summary = files.read_json(tmp_path / "label" / "summary.json")["localisation"]
    rows = pq.read_table(tmp_path / "label" / "localisation.parquet").to_pylist()
    own = [row for row in rows if row["map"] == "features"]
    assert {(row["concept"], row["neuron"]) for row in own} == {("bright", image_run.BRIGHT)}
    assert len(own) == summary["images"]["bright"] > 80
    assert summary["maps"]["features"]["touching"] == 1.0 > summary["maps"]["random features"]["touching"]


def test_wrong_configs_are_refused(run_dir, tmp_path):
    changes = (
        ({"sections": ("finding",)}, "label.sections is .*'finding'"),
        ({"sections": ("bos",)}, "has no tokens of the sections bos"),
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
