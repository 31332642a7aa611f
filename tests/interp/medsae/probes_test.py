"""k-sparse probing of planted neurons: what it chooses from, what it scores, and its resamples."""

import itertools

import numpy as np
import pytest

from interp.exemplars.study_peaks import StudyPeaks
from interp.features.concepts import StudyLabels
from interp.medsae import probes
from interp.medsae.basis_measures import measure_basis
from interp.medsae.patient_groups import PatientGroups

BASES = ("features", "raw dimensions")


def made(seed=0, n=240):
    """A basis in which single neurons hold the labels, and one in which all of them do together."""
    rng = np.random.default_rng(seed)
    value = rng.random((n, 3)) < [0.4, 0.3, 0.005]
    labels = StudyLabels(("a", "b", "rare"), value, rng.random((n, 3)) < 0.95)
    noise = rng.normal(size=(n, 20)).astype(np.float32)
    features = np.maximum(noise, 0)
    features[:, 4] += 4 * value[:, 0]
    features[:, 7] += 4 * value[:, 1]
    mixing = rng.choice([-1, 1], (2, 20)) * 0.6
    groups = PatientGroups.of([str(i // 2) for i in range(n)], 7, seed)
    return {"features": features, "raw dimensions": (noise + value[:, :2] @ mixing).astype(np.float32)}, labels, groups


def probed(activations, labels, groups, splits):
    found = {
        basis: dict.fromkeys(("medsae", "by_rank"), measure_basis(a, a + 5, labels, groups, splits))
        for basis, a in activations.items()
    }
    return probes.probe_bases(activations, activations["features"], {}, found, labels, groups, splits, 0)


@pytest.fixture(scope="module")
def results():
    activations, labels, groups = made()
    splits = groups.random_splits(2, 0.6, 0)
    return (activations, labels, groups, splits), *probed(activations, labels, groups, splits)


def test_one_feature_is_enough_where_raw_dimensions_need_many(results):
    (_, labels, groups, splits), summary, table = results
    features, raw = (summary["bases"][basis] for basis in BASES)
    assert features["1"]["auroc"] > 0.97 and raw["1"]["auroc"] < 0.85 and raw["dense"]["auroc"] > 0.9
    gained = summary["differences"]["features minus raw dimensions"]["1"]["auroc"]
    assert gained["difference"] == pytest.approx(features["1"]["auroc"] - raw["1"]["auroc"])
    assert 0 < gained["interval"][0] < gained["difference"] < gained["interval"][1]
    rare = labels.known[:, 2] & labels.value[:, 2]
    counts = [(rare & (train[groups.of_study] == side)).sum() for train in splits for side in (True, False)]
    side = "training" if counts.index(min(counts)) % 2 == 0 and counts.count(min(counts)) == 1 else "test"
    reason = f"{side} studies with it in one of the splits: {min(counts)}, but a probe needs 5"
    assert summary["concepts"] == ["a", "b"] and summary["left_out"] == {"rare": reason}
    rows = [row for row in table.to_pylist() if row["basis"] == "features" and row["k"] == "1"]
    assert {(row["concept"], *row["neurons"]) for row in rows} == {("a", 4), ("b", 7)}
    assert table.num_rows == 2 * 2 * 2 * 6


def test_scores_are_those_of_the_patients_left_out_alone(results):
    """What the scored patients' labels are changes no choice of neurons; and the area is that of all pairs."""
    (activations, labels, groups, splits), _, table = results
    one = splits[:1]
    left_out = ~one[0][groups.of_study]
    value = np.where(left_out[:, None], np.roll(labels.value, 2, axis=0), labels.value)
    _, changed = probed(activations, StudyLabels(labels.concepts, value, labels.known), groups, one)
    rows = [row for row in table.to_pylist() if row["split"] == 0]
    assert [row["neurons"] for row in rows] == [row["neurons"] for row in changed.to_pylist()]
    row = next(row for row in rows if (row["basis"], row["k"], row["concept"]) == ("features", "1", "a"))
    test = left_out & labels.known[:, 0]
    score, y = activations["features"][test, 4], labels.value[test, 0]
    wins = [np.sign(s - t) / 2 + 0.5 for s, t in itertools.product(score[y], score[~y])]
    assert row["auroc"] == pytest.approx(np.mean(wins))


def test_activations_that_are_read_for_every_step_give_the_same_probes(results, tmp_path, monkeypatch):
    (activations, labels, groups, splits), _, table = results
    np.save(tmp_path / "peaks.npy", activations["features"])
    peaks = StudyPeaks(activations["features"].shape, [(tmp_path / "peaks.npy", 0)])
    monkeypatch.setattr(probes, "_HELD_VALUES", 0)
    common = StudyLabels(labels.concepts[:2], labels.value[:, :2], labels.known[:, :2])
    rows = probes._dense_probes(peaks, None, activations["features"], common, groups, splits, 0)
    found = [(row.split, row.concept, row.auroc, row.f1) for row in rows]
    expected = [
        (row["split"], row["concept"], row["auroc"], row["f1"])
        for row in table.to_pylist()
        if (row["basis"], row["k"]) == ("features", "dense")
    ]
    assert found == expected and len(expected) == 4


def test_resamples_weight_whole_patients(results):
    (activations, labels, groups, splits), _, _ = results
    found = measure_basis(activations["features"], activations["features"] + 5, labels, groups, splits)
    rows = list(probes._sparse_probes(activations["features"], found.train_correlation, labels, groups, splits[:1]))
    row = next(row for row in rows if (row.concept, row.k) == ("b", 1))
    test = np.flatnonzero(~splits[0][groups.of_study] & labels.known[:, 1])
    score, y = activations["features"][test, 7], labels.value[test, 1]
    for b, weights in enumerate(groups.weights):
        w = weights[groups.of_study[test]]
        top = below = 0.0
        for i, j in itertools.product(np.flatnonzero(y), np.flatnonzero(~y)):
            top += w[i] * w[j] * (np.sign(score[i] - score[j]) / 2 + 0.5)
            below += w[i] * w[j]
        assert row.resampled[0][b] == pytest.approx(top / below)


def test_dense_probes_of_products_with_directions_are_those_of_all_products():
    activations, labels, groups = made()
    embedding = activations["raw dimensions"]
    directions = np.random.default_rng(5).normal(size=(20, 60)).astype(np.float32)
    activations = {"features": activations["features"], "random directions": embedding @ directions}
    splits = groups.random_splits(2, 0.6, 0)
    found = {
        basis: dict.fromkeys(("medsae", "by_rank"), measure_basis(a, embedding, labels, groups, splits))
        for basis, a in activations.items()
    }
    rest = found, labels, groups, splits, 0
    tables = [
        probes.probe_bases(activations, embedding, linear, *rest)[1].to_pylist()
        for linear in ({}, {"random directions": directions})
    ]
    for one, other in zip(*tables, strict=True):
        if (one["basis"], one["k"]) == ("random directions", "dense"):
            assert one["auroc"] > 0.8 and other["auroc"] == pytest.approx(one["auroc"], abs=0.01)
        else:
            assert one == other
