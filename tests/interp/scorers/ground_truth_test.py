"""Detection scores rank features as the truth does, and statements are those that the phantom wrote."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.stats import spearmanr

from interp import stage
from interp.exemplars.corpus import Corpus
from interp.explainers.rules import words
from interp.scorers import ground_truth
from maira_jax.inputs.tokens import Kind
from maira_jax.run import files
from maira_jax.studies.readers import phantom
from sae.saved import load_sae
from tests.helpers.interp_run import config, make_workdir, sentences

STATEMENTS = (
    "mention of pleural effusion", "no pneumothorax", "cardiomegaly", "pacemaker", "no oedema",
    "mention of consolidation", "comparison with prior", "endotracheal tube", "communication", "central venous line",
)  # fmt: skip
# Of the sentences in which a feature is active, the share that makes its statement; the others are any.
PURITY = (1.0, 0.75, 0.5, 0.25)
N = len(STATEMENTS) * len(PURITY)


def graded(study, pieces, kinds, rng):
    """Feature 4 i + j is active on most sentences that make statement i, and on others by 1 - purity j."""
    out = np.zeros((len(pieces), N), np.float32)
    for rows, text in sentences(pieces, kinds):
        states = study.stated.get(text, frozenset()) if kinds[rows[0]] != Kind.INDICATION else frozenset()
        for i, statement in enumerate(STATEMENTS):
            for j, purity in enumerate(PURITY):
                # A statement is made in about a tenth of the sentences.
                active = 0.9 * purity if statement in states else 0.1 * (1 - purity)
                if rng.random() < active:
                    out[rng.choice(rows), 4 * i + j] = rng.uniform(1, 5)
    return out


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = make_workdir(tmp_path_factory.mktemp("graded"), 240, strengths_of=graded, group_sizes=(N,))
    stage.run(config(n_control=4), workdir)
    return workdir


@pytest.fixture(scope="module")
def features(finished):
    return pq.read_table(finished / "interp" / "features.parquet").to_pylist()


def test_detection_ranks_features_as_the_truth_does(features, finished):
    known = [row for row in features if row["detection"] is not None and row["true_f1"] is not None]
    assert len(known) >= 36
    detection, true = [row["detection"] for row in known], [row["true_f1"] for row in known]
    assert spearmanr(detection, true)[0] >= 0.8
    summary = files.read_json(finished / "interp" / "summary.json")["truth"]
    assert summary["features"] == len(known)
    assert summary["spearman"] == pytest.approx(spearmanr(detection, true)[0])


def test_pure_features_are_described_by_their_statement(features):
    described = [(i, name) for i, name in enumerate(STATEMENTS) if features[4 * i]["true_f1"] is not None]
    assert len(described) >= 7  # the others are rare
    for i, statement in described:
        # Another statement can hold in the same sentences ("no pneumothorax" is said of effusions too).
        assert statement in features[4 * i]["true_description"] or features[4 * i]["true_f1"] > 0.9
        fact_f1 = [features[4 * i + j]["fact_f1"] for j in range(4)]
        assert 0.95 < fact_f1[0] > fact_f1[1] > fact_f1[2] > fact_f1[3] - 0.05
        # A few words may fit the few contexts of an impure feature by chance, but none as well as a pure one.
        true_f1 = [features[4 * i + j]["true_f1"] for j in range(4)]
        assert true_f1[0] == max(true_f1) > 0.95


def test_statements_table_names_the_planted_features(finished):
    rows = {row["statement"]: row for row in pq.read_table(finished / "interp" / "statements.parquet").to_pylist()}
    for i, statement in enumerate(STATEMENTS):
        if statement in rows:
            assert rows[statement]["feature"] == 4 * i
            assert rows[statement]["f1"] > 0.8 and rows[statement]["name"]
    assert len(set(STATEMENTS) & rows.keys()) >= 8


def test_statements_of_contexts_are_those_of_their_sentences(finished):
    corpus = Corpus.open(finished, 32)
    studies = {study.study_id: study for study in phantom.studies(0, 240, seed=0, size=8)}
    found = ground_truth.statements(corpus, {name: study.stated for name, study in studies.items()}, 20)
    contexts = corpus.contexts
    reports = np.isin(contexts.kind, [Kind.FINDINGS, Kind.PRIOR_REPORT])
    assert found.known[reports].mean() > 0.75  # the others are pieces of long sentences
    ids = corpus.studies["study_id"].to_pylist()
    for i in np.flatnonzero(reports & found.known)[::37]:
        text = corpus.text(i)
        said = {"not given"} if text == "N/A" else studies[ids[contexts.study[i]]].stated[text]
        section = "any findings" if contexts.kind[i] == Kind.FINDINGS else "any prior report"
        true = {name for name, holds in zip(found.names, found.holds[i], strict=True) if holds}
        assert true & set(found.facts().names) == said | {section}
        assert {f'"{word}"' for word in words(text)} & set(found.names) == true - said - {section}
    assert ground_truth.statements(corpus, {}, 20) is None


def test_fit_of_a_statement_equals_counting(finished):
    """Over all held-out contexts, by the definition, within the sampling error of a pool that is the whole split."""
    corpus = Corpus.open(finished, 32)
    studies = phantom.studies(0, 240, seed=0, size=8)
    found = ground_truth.statements(corpus, {study.study_id: study.stated for study in studies}, 20).facts()
    rows = pq.read_table(finished / "interp" / "statements.parquet").to_pylist()
    x = corpus.store.read(0, corpus.store.n_tokens)
    sae = load_sae(finished / "sae")
    w = np.asarray(sae.params["W_enc"])
    for row in rows[:6]:
        active = (x @ w[:, row["feature"]]) > sae.threshold
        contexts = corpus.contexts
        fires = np.maximum.reduceat(active, contexts.start)
        counted = found.known & corpus.held_out[contexts.study]
        true = found.holds[:, found.names.index(row["statement"])]
        hits = (fires & true & counted).sum()
        assert row["f1"] == pytest.approx(2 * hits / ((fires & counted).sum() + (true & counted).sum()), abs=0.05)
