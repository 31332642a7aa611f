"""MedSAE's measures against their definitions, over all pairs, in float64."""

import itertools

import numpy as np
import pytest
from scipy.stats import pearsonr

from interp.features.concepts import StudyLabels
from interp.medsae import monosemanticity
from tests.helpers.measured_neurons import measure


def by_definition(a, e):
    """Every pair, as MedSAE writes it."""
    if a.max() == a.min():
        return np.nan
    a = (a - a.min()) / (a.max() - a.min())
    top = below = 0.0
    for i, j in itertools.combinations(range(len(a)), 2):
        top += a[i] * a[j] * (e[i] @ e[j]) / np.linalg.norm(e[i]) / np.linalg.norm(e[j])
        below += a[i] * a[j]
    return top / below if below else np.nan


@pytest.fixture(scope="module")
def world():
    rng = np.random.default_rng(0)
    n, d = 70, 5
    value = rng.random((n, 3)) < [0.5, 0.2, 0.0]
    known = rng.random((n, 3)) < 0.9
    embedding = rng.normal(size=(n, d)) * rng.uniform(0.1, 50, (n, 1))
    activation = np.maximum(rng.normal(size=(n, 600)), 0)  # more than one block of neurons
    activation[:, 1] = 0
    activation[:, 2] = np.eye(n)[3]  # active once: no pair
    activation[:, 3] = rng.normal(size=n)  # signed, as a raw dimension
    activation[:, 4] = 1e6 * activation[:, 5]  # the scale does not matter
    activation[:, 550] = 3.0 * value[:, 1] + 0.01 * rng.random(n)
    return activation, embedding, StudyLabels(("a", "b", "never"), value, known)


def test_closed_form_equals_the_sum_over_pairs(world):
    activation, embedding, labels = world
    found = measure(activation, embedding, labels).monosemanticity
    for neuron in (0, 3, 4, 5, 511, 512, 550, 599):
        assert found[neuron] == pytest.approx(by_definition(activation[:, neuron], embedding), rel=1e-11)
    assert np.isnan(found[[1, 2]]).all()
    assert found[4] == pytest.approx(found[5], rel=1e-11)


def test_a_neuron_of_similar_images_has_a_score_of_one_and_of_random_ones_of_zero():
    rng = np.random.default_rng(1)
    embedding = np.concatenate([np.tile(rng.normal(size=64), (20, 1)), rng.normal(size=(400, 64))])
    similar, any_ = np.zeros(420), rng.random(420) + 1
    similar[:20] = rng.random(20) + 1
    labels = StudyLabels(("a",), similar[:, None] > 0, np.ones((420, 1), bool))
    found = measure(np.stack([similar, any_], 1), embedding, labels).monosemanticity
    assert found[0] == pytest.approx(1.0, abs=1e-12)
    assert abs(found[1]) < 0.02


def test_correlation_entropy_and_firing_equal_their_definitions(world):
    activation, embedding, labels = world
    found = measure(activation, embedding, labels)
    for neuron in (0, 3, 550, 599):
        a = activation[:, neuron]
        r = []
        for c in range(2):
            known = labels.known[:, c]
            r.append(pearsonr(a[known], labels.value[known, c])[0])
            assert found.correlation[neuron, c] == pytest.approx(r[-1], rel=1e-9)
            threshold = np.percentile(a[a > 0], 70)
            fires, true = a[known] > threshold, labels.value[known, c]
            hits = (fires & true).sum()
            assert found.threshold[neuron] == pytest.approx(threshold)
            assert found.precision[neuron, c] == pytest.approx(hits / fires.sum())
            assert found.recall[neuron, c] == pytest.approx(hits / true.sum())
            assert found.f1[neuron, c] == pytest.approx(2 * hits / (fires.sum() + true.sum()))
        p = np.abs(r) / np.abs(r).sum()
        assert found.entropy[neuron] == pytest.approx(-(p * np.log(p)).sum())
    assert np.isnan(found.correlation[:, 2]).all() and np.isnan(found.f1[:, 2]).all()
    assert np.isnan(found.correlation[1]).all() and np.isnan(found.entropy[1]) and np.isnan(found.f1[1]).all()


def test_entropy_is_between_nothing_and_all_labels():
    r = np.array([[0.9, 0.0, 0.0], [0.3, -0.3, 0.3], [0.0, 0.0, 0.0]])
    np.testing.assert_allclose(monosemanticity.entropy(r), [0.0, np.log(3), np.nan])


def test_summary_takes_the_neuron_with_the_highest_signed_r(world):
    activation, embedding, labels = world
    found = measure(activation, embedding, labels)
    figures = monosemanticity.summary(found, labels.concepts)
    assert figures["classes"]["b"]["neuron"] == 550 and figures["classes"]["b"]["r"] > 0.99
    assert "never" not in figures["classes"]
    assert figures["neurons"] == 600 and figures["alive"] == 598
    opposite = measure(-activation[:, 550:551], embedding, labels)
    assert monosemanticity.summary(opposite, labels.concepts)["classes"]["b"]["r"] < -0.99
