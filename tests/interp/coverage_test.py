"""Concepts found by features and controls, against trying every threshold; intervals by counting studies."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from interp import stage
from interp.controls.control import bases
from interp.exemplars.corpus import Corpus
from interp.features.concepts import StudyLabels
from maira_jax.inputs.tokens import Kind
from maira_jax.run import files
from sae.saved import load_sae
from tests.helpers.interp_run import config, make_workdir


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = make_workdir(tmp_path_factory.mktemp("coverage"), 120)
    stage.run(config(n_control=1), workdir)
    return workdir


def best_f1(score, value):
    """The best F1 over every threshold, and that threshold."""
    cuts = np.concatenate([[score.min() - 1], (np.unique(score)[:-1] + np.unique(score)[1:]) / 2])
    f1 = [2 * ((score > cut) & value).sum() / ((score > cut).sum() + value.sum()) for cut in cuts]
    return max(f1), cuts[int(np.argmax(f1))]


def test_coverage_equals_trying_every_neuron_and_threshold(finished):
    rows = pq.read_table(finished / "interp" / "coverage.parquet").to_pylist()
    concepts = {row["concept"]: row for row in pq.read_table(finished / "interp" / "concepts.parquet").to_pylist()}
    own = {row["concept"]: row for row in rows if row["basis"] == "features"}
    assert {name: (row["feature"], row["f1"]) for name, row in concepts.items()} == {
        name: (row["neuron"], row["f1"]) for name, row in own.items()
    }
    sae, corpus = load_sae(finished / "sae"), Corpus.open(finished, 32)
    x, tokens, n = corpus.store.read(0, corpus.store.n_tokens), corpus.store.tokens, len(corpus.held_out)
    axes = bases(sae, corpus.store, 0)["raw dimensions"]
    both = x @ np.concatenate([axes, -axes], axis=1)
    counted = tokens.kind == Kind.FINDINGS
    peak = np.stack([both[counted & (tokens.study == i)].max(0) for i in range(n)])
    labels = StudyLabels.from_json(corpus.studies["labels"].to_pylist())
    for name in list(concepts)[:5]:
        value = labels.value[:, labels.concepts.index(name)]
        train, test = ~corpus.held_out, corpus.held_out
        scores = [best_f1(peak[train, i], value[train]) for i in range(peak.shape[1])]
        row = next(row for row in rows if (row["basis"], row["concept"]) == ("raw dimensions", name))
        f1, cut = scores[row["neuron"]]
        assert f1 == pytest.approx(max(found for found, _ in scores))
        fires = peak[test, row["neuron"]] > cut
        assert row["f1"] == pytest.approx(2 * (fires & value[test]).sum() / (fires.sum() + value[test].sum()))


def test_the_summary_counts_and_has_paired_intervals(finished):
    rows = pq.read_table(finished / "interp" / "coverage.parquet").to_pylist()
    found = files.read_json(finished / "interp" / "summary.json")["coverage"]
    for basis, part in found["bases"].items():
        f1 = np.array([row["f1"] for row in rows if row["basis"] == basis])
        assert part["found"] == (f1 >= 0.8).sum() and part["f1"] == pytest.approx(f1.mean())
        assert part["f1_interval"][0] < part["f1"] < part["f1_interval"][1]
    gained = found["differences"]["features minus shuffled weights"]["f1"]
    bases_f1 = found["bases"]["features"]["f1"], found["bases"]["shuffled weights"]["f1"]
    assert gained["difference"] == pytest.approx(bases_f1[0] - bases_f1[1])
    assert gained["interval"][0] < gained["difference"] < gained["interval"][1]
