"""Measures of a basis in resamples of the patients, against their definitions over weighted studies and all pairs."""

import itertools

import numpy as np
import pytest

from interp.features.concepts import StudyLabels
from interp.medsae import basis_measures, group_sums
from interp.medsae.basis_measures import cut_by_rank, measure_basis
from interp.medsae.patient_groups import PatientGroups
from tests.helpers.measured_neurons import measure


def weighted_r(a, y, w):
    a, y = a - np.average(a, weights=w), y - np.average(y, weights=w)
    return (w * a * y).sum() / np.sqrt((w * a * a).sum() * (w * y * y).sum())


def weighted_score(a, e, w):
    """Over all pairs of two studies, each as often as both are drawn."""
    a = (a - a.min()) / (a.max() - a.min())
    top = below = 0.0
    for i, j in itertools.combinations(range(len(a)), 2):
        pair = w[i] * w[j] * a[i] * a[j]
        top += pair * (e[i] @ e[j]) / np.linalg.norm(e[i]) / np.linalg.norm(e[j])
        below += pair
    return top / below if below else np.nan


@pytest.fixture(scope="module", params=[4, 40], ids=["narrower than groups", "wider"])
def world(request):
    rng = np.random.default_rng(3)
    n, d = 60, request.param
    value = rng.random((n, 2)) < [0.5, 0.3]
    labels = StudyLabels(("a", "b"), value, rng.random((n, 2)) < 0.9)
    embedding = rng.normal(size=(n, d)) + 0.5
    activation = np.maximum(rng.normal(size=(n, 9)) + 0.3, 0)
    activation[:, 0] += 2 * value[:, 0]
    activation[:, 1] += 2 * value[:, 1]
    activation[:, 2] = 0
    activation[:, 3] = rng.normal(size=n)  # signed
    activation[:, 4] = np.eye(n)[5]  # active once
    activation[:, 5] = 2 * (np.arange(n) < 2)
    groups = PatientGroups.of([str(i // 2) for i in range(n)], 6, 0)
    return activation, embedding, labels, groups


@pytest.fixture(scope="module", params=[0.0, 1.1], ids=["whole", "sparse"])
def found(world, request):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(group_sums, "_SPARSE", request.param)
        patch.setattr(basis_measures, "_NEURONS", 4)
        patch.setattr(group_sums, "_RESAMPLED", 3)
        patch.setattr(basis_measures, "_RESAMPLED", 3)
        patch.setattr(basis_measures, "_TURNED", 7)
        return measure_basis(*world, train=world[3].folds(5))


def test_blocks_of_neurons_give_the_measures_of_all(world, found):
    activation, embedding, labels, _ = world
    whole = measure(activation, embedding, labels)
    for name in ("monosemanticity", "correlation", "entropy", "threshold", "precision", "recall", "f1"):
        np.testing.assert_allclose(getattr(found.measures, name), getattr(whole, name), rtol=1e-12)
    assert found.n_active.tolist() == (activation > activation.min(0)).sum(0).tolist()


def test_resampled_means_equal_their_definitions(world, found):
    activation, embedding, labels, groups = world
    kept = found.measures.kept()
    assert 2 <= kept.sum() < 9
    for b, weights in enumerate(groups.weights):
        w = weights[groups.of_study]
        scores = np.array([weighted_score(a, embedding, w) if np.ptp(a) else np.nan for a in activation.T])
        defined = np.isfinite(found.measures.monosemanticity)
        assert found.resampled["monosemanticity"][b] == pytest.approx(np.nanmean(scores[defined]), rel=1e-5)
        assert found.resampled["monosemanticity_kept"][b] == pytest.approx(np.nanmean(scores[defined & kept]), rel=1e-5)
        entropies = []
        for a in activation[:, kept].T:
            known = labels.known.T
            r = [abs(weighted_r(a[k], v[k], w[k])) for k, v in zip(known, labels.value.T, strict=True)]
            p = np.array(r) / sum(r)
            entropies.append(-(p * np.log(p)).sum())
        assert found.resampled["entropy_kept"][b] == pytest.approx(np.mean(entropies), rel=1e-4)


def test_resampled_figures_of_classes_equal_their_definitions(world, found):
    activation, _, labels, groups = world
    best = found.measures.best_of_classes()
    assert best == {0: 0, 1: 1}
    for b, weights in enumerate(groups.weights):
        rows = []
        for c, neuron in best.items():
            known = labels.known[:, c]
            w, a, y = weights[groups.of_study][known], activation[known, neuron], labels.value[known, c]
            fires = a > found.measures.threshold[neuron]
            hits, fired, true = ((w * x).sum() for x in (fires & y, fires, y))
            rows.append((weighted_r(a, y, w), hits / fired, hits / true, 2 * hits / (fired + true)))
        for name, mean in zip(("r", "precision", "recall", "f1"), np.mean(rows, axis=0), strict=True):
            assert found.resampled[name][b] == pytest.approx(mean, rel=1e-9)


def test_a_resample_in_which_a_neuron_is_constant_has_no_correlation():
    n = 30
    here = np.arange(n) == 4
    labels = StudyLabels(("a",), np.isin(np.arange(n), (4, 9, 17))[:, None], np.ones((n, 1), bool))
    groups = PatientGroups.of([str(i) for i in range(n)], 50, 0)
    embedding = np.random.default_rng(0).normal(size=(n, 4))
    found = measure_basis(0.1 * here[:, None], embedding, labels, groups, train=groups.folds(5))
    drawn = groups.weights[:, groups.of_study[4]] > 0
    assert 0 < drawn.sum() < len(drawn)
    np.testing.assert_array_equal(np.isfinite(found.resampled["r"]), drawn)
    assert np.isnan(found.resampled["r"][~drawn]).all()


def test_train_correlation_is_that_of_the_training_patients_alone(world, found):
    activation, _, labels, groups = world
    for split, train in enumerate(groups.folds(5)):
        for neuron, c in itertools.product((0, 3, 8), (0, 1)):
            rows = train[groups.of_study] & labels.known[:, c]
            expected = np.corrcoef(activation[rows, neuron], labels.value[rows, c])[0, 1]
            assert found.train_correlation[split, neuron, c] == pytest.approx(expected, abs=1e-5)
    assert (found.train_correlation[:, 2] == 0).all()


def test_a_cut_leaves_as_many_active_studies_as_features_have():
    activation = np.random.default_rng(0).normal(size=(50, 40)).astype(np.float32)
    cut = cut_by_rank(activation, np.array([3, 11]), seed=0)[:, :]
    active = (cut > 0).sum(0)
    assert set(active.tolist()) == {3, 11}
    for neuron in range(40):
        strongest = set(np.argsort(-activation[:, neuron])[: active[neuron]].tolist())
        assert set(np.flatnonzero(cut[:, neuron]).tolist()) == strongest
    assert (cut_by_rank(activation, np.array([50]), 0)[:, :] > 0).sum(0).tolist() == [49] * 40
