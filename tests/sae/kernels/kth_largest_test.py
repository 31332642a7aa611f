"""Selection against a sort."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sae.kernels import kth_largest
from sae.kernels.kth_largest import Search

# The guesses are right, close, far off, and no threshold at all.
GUESSES = (0.0, 1.0, 0.9999, 1e-20, 3e38, np.inf)
SEARCHES = [Search(candidates=True), *(Search(guess=guess) for guess in GUESSES)]


def _top_k(z, count, candidates, guess):
    return kth_largest.batch_top_k(z, count, Search(candidates, guess))


def _threshold_of(z, count, candidates, guess):
    return kth_largest.kth_largest(z, count, Search(candidates, guess))


def _compiled(function):
    """By whether candidates are searched: their number follows the count, while counting takes one program for all."""
    names = {True: ("count", "candidates"), False: ("candidates",)}
    return {candidates: jax.jit(function, static_argnames=static) for candidates, static in names.items()}


_TOP_K, _THRESHOLD = _compiled(_top_k), _compiled(_threshold_of)


def top_k(z, count, search):
    return _TOP_K[search.candidates](z, count=count, candidates=search.candidates, guess=np.float32(search.guess))


def threshold_of(z, count, search):
    return _THRESHOLD[search.candidates](z, count=count, candidates=search.candidates, guess=np.float32(search.guess))


def expected_mask(z: np.ndarray, count: int) -> np.ndarray:
    """The `count` largest positive entries; among equal ones the first in reading order."""
    flat = np.where(z > 0, z, 0).reshape(-1)
    order = np.argsort(-flat, kind="stable")[:count]
    mask = np.zeros(flat.size, bool)
    mask[order] = flat[order] > 0
    return mask.reshape(z.shape)


def check(z: np.ndarray, count: int, search: Search) -> None:
    mask, smallest = top_k(z, count, search)
    expected = expected_mask(z, count)
    np.testing.assert_array_equal(mask, expected)
    assert smallest == (z[expected].min() if expected.any() else 0)


@pytest.mark.parametrize("search", SEARCHES, ids=str)
def test_the_cut_is_that_of_a_partition(search):
    rng = np.random.default_rng(0)
    z = np.maximum(rng.normal(size=(300, 200)), 0).astype(np.float32)
    for count in (1, 2, 77, 3000, 29_000):
        cut = threshold_of(z, count, search)
        assert cut == np.partition(z.reshape(-1), -count)[-count]


@pytest.mark.parametrize(("times", "passes"), [(0.0, 14), (1.0, 2), (1.003, 10), (0.9, 15), (3.0, 15)])
@pytest.mark.parametrize("count", [64, 4096, 50_000])
def test_passes_over_the_matrix_are_few(monkeypatch, times, passes, count):
    """Bisection takes 31. A guess of `times` the threshold saves most of them, and a bad one costs next to none."""
    taken = []

    def counted(unfinished, narrow, carry):
        while unfinished(carry):
            carry = narrow(carry)
            taken.append(carry)
        return carry

    monkeypatch.setattr(kth_largest.lax, "while_loop", counted)
    z = np.maximum(np.random.default_rng(0).normal(size=(256, 1024)), 0).astype(np.float32)
    threshold = np.partition(z.reshape(-1), -count)[-count]
    search = Search(guess=np.float32(times * threshold))
    assert kth_largest.kth_largest(jnp.asarray(z), count, search) == threshold
    assert 0 < len(taken) <= passes


@pytest.mark.parametrize("count", [640, 8192, 60_000])
def test_candidates_are_few_and_suffice(monkeypatch, count):
    """Two slots for each wanted entry hold all candidates of evenly spread entries; one row of them has 1,024 slots."""
    searched, sizes, entries = [], [], kth_largest.kept_entries.entries

    def chosen(enough, of_candidates, of_all):
        searched.append(bool(enough))
        return of_candidates()

    def of_size(mask, size):
        sizes.append(size)
        return entries(mask, size)

    monkeypatch.setattr(kth_largest.lax, "cond", chosen)
    monkeypatch.setattr(kth_largest.kept_entries, "entries", of_size)
    z = np.maximum(np.random.default_rng(0).normal(size=(1000, 512)), 0).astype(np.float32)
    found = kth_largest.kth_largest(jnp.asarray(z), count, Search(candidates=True))
    assert found == np.partition(z.reshape(-1), -count)[-count]
    assert searched == [True]
    assert 2 * count <= sizes[0] < 2 * count + 1024


def test_more_entries_than_float32_counts():
    """Above 2^24 in one row a float32 sum would no longer count."""
    n = 4100
    z = np.random.default_rng(0).permutation(np.arange(n * n, dtype=np.int32) + 0x3F000000).view(np.float32)
    count = n * n - 1003  # odd, and rounded down in float32
    cut = threshold_of(z.reshape(n, n), count, Search(candidates=True))
    assert np.asarray(cut).view(np.int32) == 0x3F000000 + 1003


@pytest.mark.parametrize("search", SEARCHES, ids=str)
@pytest.mark.parametrize(
    "z, count",
    [
        (np.ones((5, 7), np.float32), 12),
        (np.zeros((5, 7), np.float32), 12),
        (np.full((4, 4), -0.0, np.float32), 3),
        (np.array([[0.0, -0.0, 1e-30, 2.0], [-1.0, -0.0, 1e30, 0.0]], np.float32), 6),
        (np.array([[2.0, 1.0, 1.0], [1.0, 1.0, 3.0]], np.float32), 4),
        (np.array([[2.0, 1.0], [1.0, 0.5]], np.float32), 2),
        (np.array([[np.nan, 1.0, -3.0]], np.float32), 2),
        (np.array([[5.0]], np.float32), 1),
    ],
    ids=["equal", "zero", "negative zero", "few positive", "ties", "one tie too many", "nan", "one"],
)
def test_corner_cases(z, count, search):
    mask, smallest = top_k(z, count, search)
    expected = expected_mask(np.nan_to_num(z), count)
    np.testing.assert_array_equal(mask, expected)
    assert smallest == (z[expected].min() if expected.any() else 0)


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_any_matrix_with_many_ties(data):
    rows, columns = data.draw(st.sampled_from([(1, 9), (6, 5), (8, 16)]))
    values = st.sampled_from([0.0, -0.0, -1.0, 1e-20, 0.5, 0.5000001, 1.0, 2.0, 3e20])
    z = np.array(data.draw(st.lists(values, min_size=rows * columns, max_size=rows * columns)), np.float32)
    count = data.draw(st.sampled_from([1, 4, rows * columns // 2, rows * columns]))
    for search in SEARCHES:
        check(z.reshape(rows, columns), count, search)


def test_columns_that_are_not_in_order_win_ties_by_their_rank():
    order = jnp.array([2, 0, 3, 1], jnp.int32)
    mask, _ = kth_largest.batch_top_k(jnp.ones((2, 4)), 6, Search(), order)
    np.testing.assert_array_equal(mask, [[True] * 4, [False, True, False, True]])


def test_row_threshold_keeps_the_largest_of_each_row():
    rng = np.random.default_rng(1)
    z = np.maximum(rng.normal(size=(40, 60)), 0).astype(np.float32)
    z[3] = 0
    for count in (1, 7, 25):
        kept = np.asarray(z >= np.asarray(kth_largest.row_threshold(jnp.asarray(z), jnp.int32(count)))[:, None]) & (
            z > 0
        )
        largest = np.sort(z, axis=1)[:, -count:]
        np.testing.assert_array_equal(kept.sum(1), (largest > 0).sum(1))
        np.testing.assert_array_equal(np.where(kept, z, 0).sum(1, dtype=np.float64), largest.sum(1, dtype=np.float64))


@pytest.mark.parametrize("reversed_columns", [False, True])
def test_every_row_keeps_its_largest_and_of_equal_ones_the_first_columns(reversed_columns):
    """Rows with fewer positive entries than `k`, as many, and more; ties of one entry too many, and of all."""
    z = np.random.default_rng(2).choice([0.0, -0.0, -1.0, 0.25, 0.5, 0.75], size=(64, 9)).astype(np.float32)
    z[:3] = [[0] * 9, [1] * 9, [3, 2, 2, 2, 0, 0, 0, 0, 0]]
    rank = np.arange(9)[::-1] if reversed_columns else np.arange(9)
    order = jnp.asarray(rank, jnp.int32) if reversed_columns else None
    for k in (1, 3, 9):
        keep, smallest = kth_largest.row_top_k(jnp.asarray(z), k, order)
        expected = np.zeros_like(z, bool)
        for row, values in enumerate(z):
            first = np.lexsort((rank, -values))[:k]
            expected[row, first] = values[first] > 0
        np.testing.assert_array_equal(keep, expected)
        assert smallest == z[expected].min()
