"""Which contexts are drawn for each feature."""

import numpy as np

from interp.exemplars import index, selection
from interp.exemplars.contexts import Contexts
from tests.helpers.exemplar_world import build


def test_exemplars_are_uniform_within_true_deciles(world):
    """With a sample as large as the split, deciles are exact and every context of a decile is as likely as another."""
    found, _ = build(world, 512, n_sample=400)
    exemplars = selection.select(found, world["contexts"], {"train": 20, "held_out": 20}, seed=5)
    peak, contexts = world["peak"], world["contexts"]
    for split, name in enumerate(index.SPLITS):
        for feature in range(2, 24):
            here = (exemplars.feature == feature) & (exemplars.split == split)
            numbers = np.flatnonzero(world["held_out"][contexts.study] == bool(split))
            active = numbers[peak[numbers, feature] > 0]
            ranked = active[np.argsort(peak[active, feature], kind="stable")].tolist()
            by_decile = here & (exemplars.kind == selection.DECILE)
            for number, decile in zip(exemplars.context[by_decile], exemplars.decile[by_decile], strict=True):
                assert ranked.index(number) * 10 // len(ranked) == decile
            assert np.bincount(exemplars.decile[by_decile], minlength=10).tolist() == [2] * 10
            non_activating = exemplars.context[here & (exemplars.kind == selection.RANDOM)]
            assert len(non_activating) == len(set(non_activating.tolist())) > 0
            assert not np.isin(non_activating, active).any() and np.isin(non_activating, numbers).all()
        assert found[name].n_contexts[0] == 0
    assert not (exemplars.feature == 0).any()
    assert not ((exemplars.feature == 1) & (exemplars.kind == selection.RANDOM)).any()


def test_non_activating_contexts_are_drawn_in_proportion_to_their_length():
    """Over 4000 features active in one context, the first drawn context has a length in proportion to its tokens."""
    length = np.tile(np.array([1, 4, 15], np.int32), 40)
    n, n_features = len(length), 4000
    found = index.SplitIndex(
        **{name: np.zeros((n_features, 1), int) for name in ("top_context", "top_peak", "sample_context")},
        **{name: np.zeros((n_features, 1)) for name in ("sample_peak", "n_tokens", "position_sum", "histogram")},
        n_contexts=np.ones(n_features, int), pool=np.arange(n), pool_active=np.zeros((n, n_features), bool),
        total_contexts=n, total_tokens=int(length.sum()),
    )  # fmt: skip
    start = np.concatenate([[0], np.cumsum(length)[:-1]])
    contexts = Contexts(start, length, *(np.zeros(n, np.int32),) * 3)
    exemplars = selection.select({name: found for name in index.SPLITS}, contexts, {"train": 10, "held_out": 10}, 0)
    non_activating = exemplars.take(np.flatnonzero((exemplars.kind == selection.RANDOM) & (exemplars.split == 0)))
    first = non_activating.context[np.flatnonzero(np.diff(non_activating.feature, prepend=-1))]
    share = np.array([(length[first] == size).mean() for size in (1, 4, 15)])
    assert len(first) == n_features
    np.testing.assert_allclose(share, [1 / 20, 4 / 20, 15 / 20], atol=5 * np.sqrt(0.25 / n_features))
