"""A sweep: its members equal those trained alone, its table and plot, and what becomes of the best one."""

import json
import shutil
import xml.etree.ElementTree as ET

import numpy as np
import pyarrow.parquet as pq
import pytest

from maira_jax.errors import UserError
from sae.saved import load_sae
from sae.sweep import stage
from sae.training import stage as train
from tests.helpers.sae import activations, make_store, sweep_config

# Differences of the last bits, since rates are arguments of the members' program, grow in 20 steps to this.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished sweep: its directory and counts."""
    workdir = tmp_path_factory.mktemp("sweep")
    make_store(workdir, activations(2000, 24))
    return workdir, stage.run(sweep_config(), workdir)


def rows(workdir):
    return pq.read_table(workdir / "sweep" / "sweep.parquet").to_pylist()


def test_every_combination_is_measured(finished):
    workdir, counts = finished
    found = [(row["n_features"], row["lr"], row["l1"]) for row in rows(workdir)]
    assert found == [(f, lr, l1) for f in (48, 96) for lr in (2e-3, 5e-3) for l1 in (0.02, 0.2)]
    assert (counts["members"], counts["groups"]) == (8, 2)  # a program for each width
    assert len({row["fvu"] for row in rows(workdir)}) == 8


def test_the_best_one_is_what_training_it_alone_writes(finished, tmp_path):
    workdir, counts = finished
    (best,) = [row for row in rows(workdir) if row["best"]]
    assert counts["fvu"] == best["fvu"]
    config = sweep_config()
    config.sae.update({"expansion": best["n_features"] / 24, "l1": best["l1"]})
    config.train.lr = best["lr"]
    (tmp_path / "activations").symlink_to(workdir / "activations")
    train.run(config, tmp_path)
    swept, alone = load_sae(workdir / "sae"), load_sae(tmp_path / "sae")
    for name, value in alone.params.items():
        np.testing.assert_allclose(swept.params[name], value, atol=TOLERANCE, err_msg=name)
    assert dict(swept.meta) == dict(alone.meta)
    measured = json.loads((tmp_path / "sae" / "metrics.json").read_text())
    for name in ("fvu", "l0", "cosine"):
        assert best[name] == pytest.approx(measured[name], rel=TOLERANCE), name
    own = [json.loads((folder / "sae" / "manifest.json").read_text()) for folder in (workdir, tmp_path)]
    assert own[0]["section"] == own[1]["section"]
    assert train.run(config, workdir) == own[0]["counts"]  # finished, so that companions could follow


def test_the_plot_shows_every_member(finished):
    workdir, counts = finished
    plot = ET.parse(workdir / "sweep" / "pareto.svg").getroot()
    titles = [title.text for title in plot.iter("{http://www.w3.org/2000/svg}title")]
    assert len(titles) == counts["members"]
    assert all(f"FVU {row['fvu']:.4f}" in title for row, title in zip(rows(workdir), titles, strict=True))


def test_an_interrupted_sweep_ends_with_the_same_table(finished, tmp_path, monkeypatch):
    whole, _ = finished
    (tmp_path / "activations").symlink_to(whole / "activations")
    advance, calls = train.TrainingRun.advance, []

    def interrupted(self, *arguments):
        calls.append(self)
        if len(calls) == 4:
            raise KeyboardInterrupt
        advance(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train.TrainingRun, "advance", interrupted)
        stage.run(sweep_config(), tmp_path)
    assert not (tmp_path / "sweep" / "manifest.json").exists()
    stage.run(sweep_config(), tmp_path)
    assert rows(tmp_path) == rows(whole)


def test_another_autoencoder_is_refused_before_the_training(finished, tmp_path):
    (tmp_path / "activations").symlink_to(finished[0] / "activations")
    shutil.copytree(finished[0] / "sae", tmp_path / "sae")
    config = sweep_config()
    config.sweep.l1s = (0.5,)
    with pytest.raises(UserError, match="is no member of this sweep"):
        stage.run(config, tmp_path)
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    "kind, fields, message",
    [
        ("relu", {}, "nothing to sweep"),
        ("relu", {"l1s": (0.5, 0.25, 0.5)}, "several members with l1 0.5 that are the same: give it once"),
        ("relu", {"ks": (3,)}, "sweep.ks is set, but sae.kind='relu' ignores sae.k"),
        ("batch_top_k", {"ks": (0,)}, "sweep.ks"),
        ("batch_top_k", {"ks": (3, 500)}, "between 1 and the 96 features"),
    ],
)
def test_bad_values_leave_no_folder(finished, tmp_path, kind, fields, message):
    (tmp_path / "activations").symlink_to(finished[0] / "activations")
    config = sweep_config()
    config.sae.kind = kind
    config.sweep.update({"expansions": (), "learning_rates": (), "l1s": (), "ks": ()} | fields)
    with pytest.raises(UserError, match=message):
        stage.run(config, tmp_path)
    assert not (tmp_path / "sweep").exists()


def test_the_rule_of_the_best():
    def of(fvu, l0, dead):
        return {"fvu": fvu, "l0": l0, "dead": dead}

    found = [of(0.1, 40.0, 0), of(0.2, 32.4, 9), of(0.2015, 10.0, 3), of(0.21, 5.0, 0)]
    assert stage.choose(found, 32) == 2  # the first has too many, the third fewer dead than the second
    assert stage.choose(found, 50) == 0
    assert stage.choose(found, 5) == 3
    assert stage.choose(found, 1) == 3  # none has so few: the sparsest


def test_the_front_holds_what_no_other_beats():
    points = [(0.3, 5), (0.2, 10), (0.25, 12), (0.1, 20), (0.1, 25)]
    rng = np.random.default_rng(0)
    order = rng.permutation(len(points))
    table = [{"fvu": points[i][0], "l0": points[i][1]} for i in order]
    beaten = {
        i for i, a in enumerate(table) for b in table
        if b != a and b["fvu"] <= a["fvu"] and b["l0"] <= a["l0"]
    }  # fmt: skip
    assert set(stage.pareto.front(table)) == set(range(len(table))) - beaten
