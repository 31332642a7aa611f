"""Probes against a general minimiser, and areas under ROC curves against all pairs."""

import itertools

import numpy as np
import pytest
from scipy.optimize import minimize

from sae.evaluation import probing


def objective(w, z, y):
    """The sum of log losses, plus half the squared weights without the bias."""
    return np.logaddexp(0, -np.where(y, 1, -1) * (z @ w[:-1] + w[-1])).sum() + (w[:-1] ** 2).sum() / 2


@pytest.fixture(scope="module")
def world():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 6)) * [1, 10, 0.1, 1, 1, 1] + 3
    x[:, 5] = 1.0  # constant
    y = np.stack([x[:, 0] + rng.normal(size=300) > 3, x[:, 1] > 10, rng.random(300) < 0.1], axis=1)
    return x, y


def test_sparse_probes_are_the_minima_each_on_its_own_studies(world):
    """The second label is separable, and only the penalty bounds the weights."""
    x, y = world
    counted = np.random.default_rng(1).random((3, 300)) < 0.8
    weights, biases = probing.fit_sparse(np.stack([x.astype(np.float32)] * 3), y.T, counted)
    for p, rows in enumerate(counted):
        mean, scale = x[rows].mean(0), np.where(x[rows].std(0) > 0, x[rows].std(0), 1)
        z = (x[rows] - mean) / scale
        best = minimize(objective, np.zeros(7), args=(z, y[rows, p]), tol=1e-10)
        found = np.append(weights[p] * scale, biases[p] + mean @ weights[p])
        assert objective(found, z, y[rows, p]) <= best.fun + 1e-3
        np.testing.assert_allclose(found, best.x, atol=2e-2)


def test_dense_probes_are_near_the_minimum_each_on_its_own_studies(world):
    x, y = world
    counted = np.random.default_rng(1).random(y.shape) < 0.8
    mean, scale = x.mean(0), np.where(x.std(0) > 0, x.std(0), 1)
    weights, bias = probing.fit_dense(lambda rows: x[rows], mean, scale, y, counted, 0)
    z = (x - mean) / scale
    for p in range(3):
        rows = counted[:, p]
        best = minimize(objective, np.zeros(7), args=(z[rows], y[rows, p]))
        found = objective(np.append(weights[:, p], bias[p]), z[rows], y[rows, p])
        assert best.fun - 1e-3 <= found <= 1.02 * best.fun + 0.1


def test_few_columns_give_the_dense_probes_of_many_directions(world):
    """Scores and the penalised sum are those of the best probe of all products, some of which are constant or equal."""
    rng = np.random.default_rng(4)
    x = world[0] @ np.diag([1, 1, 5, 0.1, 1, 1])
    directions = np.concatenate([rng.normal(size=(6, 11)), np.zeros((6, 1)), np.eye(6)[:, :2], np.eye(6)[:, :1]], 1)
    y = world[1]
    z = x @ directions
    z = (z - z.mean(0)) / np.where(z.std(0) > 1e-9, z.std(0), 1)
    few = (x - x.mean(0)) @ probing.factor_of(np.cov(x.T, bias=True), directions)
    assert few.shape == (300, 5)  # one dimension of x is constant
    counted, flat = np.ones(y.shape, bool), (np.zeros(5), np.ones(5))
    weights, bias = probing.fit_dense(lambda rows: few[rows], *flat, y, counted, 0)
    whole, whole_bias = probing.fit_dense(lambda rows: z[rows], np.zeros(15), np.ones(15), y, counted, 0)
    for p in range(3):
        best = minimize(objective, np.zeros(16), args=(z, y[:, p]))
        found = objective(np.append(weights[:, p], bias[p]), few, y[:, p])
        if p == 1:  # separable: in so few steps neither is at the minimum
            assert best.fun < found <= 1.05 * objective(np.append(whole[:, p], whole_bias[p]), z, y[:, p])
        else:
            assert best.fun - 1e-3 <= found <= best.fun + 0.01
            score = few @ weights[:, p] + bias[p]
            np.testing.assert_allclose(score, z @ best.x[:-1] + best.x[-1], atol=0.01 * score.std())


def test_pair_wins_give_the_area_under_the_curve_of_every_weighting():
    rng = np.random.default_rng(2)
    score, positive, group = rng.integers(0, 8, 60).astype(float), rng.random(60) < 0.4, rng.integers(0, 5, 60)
    wins = probing.pair_wins(score, positive, group, 6)  # nobody is in the last group
    for weights in (np.ones(6), np.array([0, 2, 1, 0, 3, 1])):
        w = weights[group]
        won = sum(
            w[i] * w[j] * (1.0 if score[i] > score[j] else 0.5 if score[i] == score[j] else 0.0)
            for i, j in itertools.product(np.flatnonzero(positive), np.flatnonzero(~positive))
        )
        assert weights @ wins @ weights == pytest.approx(won)


def test_the_threshold_has_the_best_f1_and_divides_no_equal_scores():
    rng = np.random.default_rng(3)
    for _ in range(20):
        score, positive = rng.integers(0, 6, 30).astype(float), rng.random(30) < 0.3
        positive[0] = True

        def f1(threshold, score=score, positive=positive):
            fires = score > threshold
            return 2 * (fires & positive).sum() / (fires.sum() + positive.sum())

        assert f1(probing.best_f1_threshold(score, positive)) == max(f1(t - 0.5) for t in range(7))
