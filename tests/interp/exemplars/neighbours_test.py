"""Nearest features against a plain loop, and their correlation against NumPy's."""

import numpy as np
import pytest

from interp.exemplars import neighbours


@pytest.mark.parametrize("n", [1030, 40])
def test_nearest_equals_a_loop(n):
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(n, 6)).astype(np.float32)  # more and fewer than a block
    numbers, cosines = neighbours.nearest(rows, 3)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    for i in (0, n // 2, n - 1):
        cosine = unit @ unit[i]
        cosine[i] = -2
        np.testing.assert_allclose(cosines[i], np.sort(cosine)[::-1][:3], atol=1e-6)
        assert numbers[i].tolist() == np.argsort(-cosine)[:3].tolist()
    assert neighbours.nearest(rows[:2], 5)[0].tolist() == [[1], [0]]


def test_cosine_of_activity_is_correlation():
    rng = np.random.default_rng(0)
    active = rng.random((500, 5)) < [0.5, 0.1, 0.3, 0.004, 1.0]
    active[:, 1] |= active[:, 0]
    numbers, found = neighbours.nearest(neighbours.centred_activity(active), 4)
    r = np.corrcoef(active[:, :3].T)
    # Lengths and products are sums of 500 in float32, which processors round in different orders.
    assert numbers[1][0] == 0 and found[1][0] == pytest.approx(r[0, 1], abs=3e-6)
    assert (found[3] == 0).all() and (found[4] == 0).all()  # too rare, and everywhere
