"""Nearest features, parents and near-duplicate explanations against plain loops."""

import numpy as np
import pytest

from interp.features import relatives


@pytest.mark.parametrize("n", [1030, 40])
def test_nearest_equals_a_loop(n):
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(n, 6)).astype(np.float32)  # more and fewer than a block
    numbers, cosines = relatives.nearest(rows, 3)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    for i in (0, n // 2, n - 1):
        cosine = unit @ unit[i]
        cosine[i] = -2
        np.testing.assert_allclose(cosines[i], np.sort(cosine)[::-1][:3], atol=1e-6)
        assert numbers[i].tolist() == np.argsort(-cosine)[:3].tolist()
    assert relatives.nearest(rows[:2], 5)[0].tolist() == [[1], [0]]


def test_cosine_of_activity_is_correlation():
    rng = np.random.default_rng(0)
    active = rng.random((500, 5)) < [0.5, 0.1, 0.3, 0.004, 1.0]
    active[:, 1] |= active[:, 0]
    numbers, found = relatives.nearest(relatives.centred_activity(active), 4)
    r = np.corrcoef(active[:, :3].T)
    assert numbers[1][0] == 0 and found[1][0] == pytest.approx(r[0, 1], abs=1e-6)
    assert (found[3] == 0).all() and (found[4] == 0).all()  # too rare, and everywhere


def test_parents_are_those_whose_contexts_hold_the_childs():
    rng = np.random.default_rng(0)
    n = 2000
    effusion, everywhere = rng.random(n) < 0.2, np.ones(n, bool)
    left = effusion & (rng.random(n) < 0.5)
    right = effusion & ~left
    other, rare = rng.random(n) < 0.2, np.arange(n) < 3
    wide = effusion & (rng.random(n) < 0.9)  # of the same group as left and right: no parent of theirs
    active = np.stack([effusion, everywhere, other, left, right, wide, rare], axis=1)
    parent, share = relatives.parents(active, np.array([0, 0, 0, 1, 1, 1, 1]))
    assert parent.tolist() == [-1, -1, -1, 0, 0, 0, -1]
    assert share[3] == share[4] == 1.0


def test_explanations_that_say_nearly_the_same_are_grouped():
    texts = [
        "Pleural effusion on the left side, small.",
        "Mentions of a pacemaker and its leads.",
        None,
        "Small pleural effusion on the left side.",
        "Findings communicated by telephone to the referring team.",
        "Mentions of a pacemaker and its leads",
    ]
    assert relatives.near_duplicates(texts).tolist() == [0, 1, -1, 0, 4, 1]
    assert relatives.near_duplicates([None, None]).tolist() == [-1, -1]
    # What all explanations begin with does not make them near-duplicates.
    prefixed = [f"Offline judge: text that mentions {word}" for word in ("oedema", "tube", "heart", "tube")]
    assert relatives.near_duplicates(prefixed).tolist() == [0, 1, 2, 1]
