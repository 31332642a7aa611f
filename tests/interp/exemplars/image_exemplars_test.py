"""Which images are drawn for each feature: against a loop, for sparse, dense and signed activations."""

import numpy as np
import pytest

from interp.exemplars import image_exemplars
from interp.exemplars.contexts import image_contexts
from interp.exemplars.index import SPLITS
from interp.exemplars.selection import DECILE, RANDOM, TOP
from interp.exemplars.study_peaks import StudyPeaks

N, N_FEATURES, N_TOP = 300, 5, 7
NEVER, SPARSE, DENSE, ONCE = 0, 1, 2, 3


@pytest.fixture(scope="module")
def peaks(tmp_path_factory):
    """A feature that is never active, a sparse one, a dense one, one that is active once, and one with ties."""
    rng = np.random.default_rng(0)
    values = np.zeros((N, N_FEATURES), np.float32)
    values[:, SPARSE] = rng.random(N) * (rng.random(N) < 0.3)
    values[:, DENSE] = rng.random(N) + 1
    values[17, ONCE] = 1
    values[::2, 4] = rng.integers(1, 4, N // 2)
    path = tmp_path_factory.mktemp("peaks") / "0.npy"
    np.save(path, values)
    return StudyPeaks((N, N_FEATURES), [(path, 0)])


@pytest.mark.parametrize("block", [2, 256])
def test_images_are_drawn_by_rank(peaks, block, monkeypatch):
    monkeypatch.setattr(image_exemplars, "_FEATURES", block)
    held_out = np.arange(N) % 3 == 0
    stop = np.arange(1, N + 1)
    found, value = image_exemplars.select(
        peaks, image_contexts(stop - 1, stop), held_out, N_TOP, {"train": 20, "held_out": 10}, seed=1
    )
    whole = peaks[:, :]
    np.testing.assert_array_equal(value, whole[found.context, found.feature])
    for split, (_, count) in enumerate(zip(SPLITS, (20, 10), strict=True)):
        own = np.flatnonzero(held_out == bool(split))
        for feature in range(N_FEATURES):
            here = (found.feature == feature) & (found.split == split)
            top, decile, inactive = (found.context[here & (found.kind == kind)] for kind in (TOP, DECILE, RANDOM))
            activation = whole[own, feature]
            active = own[activation > max(np.median(activation), 0)]
            strongest = sorted(active.tolist(), key=lambda image: (-whole[image, feature], image))
            assert top.tolist() == strongest[:N_TOP]
            assert len(set(decile.tolist())) == len(decile) and set(decile.tolist()) <= set(active.tolist())
            assert len(decile) == sum(
                min(count // 10, sum(9 - r * 10 // len(active) == d for r in range(len(active)))) for d in range(10)
            )
            for image, number in zip(decile, found.decile[here & (found.kind == DECILE)], strict=True):
                assert number == 9 - strongest.index(image) * 10 // len(active)
            assert (
                len(set(inactive.tolist())) == len(inactive) == min(count, len(own) - len(active)) * bool(len(active))
            )
            assert not set(inactive.tolist()) & set(active.tolist()) and set(inactive.tolist()) <= set(own.tolist())
            if feature == SPARSE:
                assert (whole[inactive, feature] == 0).all()
            if feature == DENSE:
                assert whole[inactive, feature].max() <= np.median(activation) < whole[decile, feature].min()
    assert not (found.feature == NEVER).any()
    assert set(found.split[found.feature == ONCE].tolist()) == {0}


def test_inactive_images_differ_from_feature_to_feature_and_seed_to_seed(peaks):
    stop = np.arange(1, N + 1)

    def inactive(seed, feature):
        chosen = (np.arange(N) % 2 == 0, 1, {"train": 20, "held_out": 20}, seed)
        found, _ = image_exemplars.select(peaks, image_contexts(stop - 1, stop), *chosen)
        return set(found.context[(found.feature == feature) & (found.kind == RANDOM)].tolist())

    assert inactive(0, SPARSE) == inactive(0, SPARSE) != inactive(1, SPARSE)
    assert inactive(0, DENSE) != inactive(0, SPARSE)


def test_studies_without_rows_have_no_image():
    found = image_contexts(np.array([0, 2, 2]), np.array([2, 2, 5]))
    assert found.study.tolist() == [0, 2] and found.start.tolist() == [0, 2] and found.length.tolist() == [2, 3]
