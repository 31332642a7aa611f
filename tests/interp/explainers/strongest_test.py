"""The label that goes with the strength of a feature, against NumPy's own correlation."""

import numpy as np
import pytest

from interp.exemplars.shown import ImageAt
from interp.explainers import strongest
from interp.explainers.evidence import Example, ExplainTask


def images(strengths):
    return tuple(
        Example("image", (" <image>",), (float(s),), ImageAt(f"s{i}", 4) if s >= 0 else None)
        for i, s in enumerate(strengths)
    )


def task_of(strengths, n_active):
    found = images(strengths)
    return ExplainTask(0, found[:n_active], found[n_active:])


def test_it_is_the_one_with_the_largest_correlation():
    rng = np.random.default_rng(0)
    named = 0
    for _ in range(40):
        has = rng.random((30, 3)) < 0.4  # [images, labels]
        strengths = rng.random(30) + has[:, 1] * rng.choice([0.0, 1.0])
        shows = [frozenset(np.array(["a", "b", "c"])[row].tolist()) for row in has]
        correlations = [np.corrcoef(column, strengths)[0, 1] for column in has.T]
        best = max(range(3), key=lambda i: correlations[i])
        expected = "abc"[best] if correlations[best] >= strongest._MIN_CORRELATION else ""
        assert strongest.strongest_label(task_of(strengths, 20), shows) == expected
        named += bool(expected)
    assert 5 < named < 35


@pytest.mark.parametrize("n_with", [4, 5, 15, 16])
def test_it_is_seen_in_five_images_and_missing_in_five(n_with):
    strengths = [1.0] * n_with + [0.1] * (20 - n_with)
    shows = [frozenset({"a"} if i < n_with else ()) for i in range(20)]
    assert strongest.strongest_label(task_of(strengths, 20), shows) == ("a" if 5 <= n_with <= 15 else "")


def test_texts_and_features_of_one_strength_have_none():
    shows = [frozenset({"a"} if i < 5 else ()) for i in range(10)]
    assert not strongest.strongest_label(task_of([-1.0] * 10, 5), shows)
    assert not strongest.strongest_label(task_of([0.0] * 10, 5), shows)
