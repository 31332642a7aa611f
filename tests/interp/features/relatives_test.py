"""Parents, and near-duplicate explanations."""

import numpy as np

from interp.features import relatives


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


def test_the_other_side_or_a_denial_is_no_near_duplicate():
    texts = [
        "consolidation with air bronchograms in the left upper lobe",
        "consolidation with air bronchograms in the right upper lobe",
        "no consolidation with air bronchograms in the left upper lobe",
        "air bronchograms, with consolidation, in the left upper lobe",
    ]
    others = ["pacemaker", "tubes", "effusion", "enlarged heart", "prior", "pneumothorax", "oedema", "telephone"]
    assert relatives.near_duplicates([*texts, *others]).tolist()[:4] == [0, 1, 2, 0]
