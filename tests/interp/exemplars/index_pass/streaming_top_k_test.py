"""The largest entries of a stream against a sort of all of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from interp.exemplars.index_pass import streaming_top_k

LOWEST = -1.0
add_list = jax.jit(streaming_top_k.add_list, static_argnames=("k", "lowest"))
add_matrix = jax.jit(streaming_top_k.add_matrix, static_argnames=("k", "lowest"))


def candidates(
    rows: np.ndarray, keys: np.ndarray, numbers: np.ndarray, n_rows: int, size: int
) -> streaming_top_k.Candidates:
    """Entries sorted by row, with unused places after them."""
    order = np.argsort(rows, kind="stable")
    rest = size - len(rows)
    starts = np.searchsorted(rows[order], np.arange(n_rows + 1)).astype(np.int32)
    arrays = [np.pad(values[order], (0, rest)) for values in (rows, keys, numbers)]
    row, key, number = (jnp.asarray(array) for array in arrays)
    used = jnp.arange(size) < len(rows)
    return streaming_top_k.Candidates(row, key, {"number": number}, used, jnp.asarray(starts))


def padded(n: int) -> int:
    """Of two lengths, each of which takes one program, that with unused places for a block of n entries."""
    return next(length for length in (57, 4517) if length > n)


def by_list(kept, row, key, numbers, k):
    new = candidates(row, key, numbers, kept.key.shape[1], padded(len(row)))
    return add_list(kept, new, k=k, lowest=LOWEST)


def by_matrix(kept, row, key, numbers, k):
    """Each entry in a line of its own, the others of which are no entries, and unused lines after them."""
    lines = padded(len(row))
    rest = (0, lines - len(row))
    present = np.pad(row, rest, constant_values=-1)[:, None] == np.arange(kept.key.shape[1])
    key, numbers = (np.pad(values, rest)[:, None] for values in (key, numbers))
    key = np.broadcast_to(key, present.shape)
    return add_matrix(kept, key, {"number": numbers.reshape(lines, 1)}, present, k=k, lowest=LOWEST)


@pytest.mark.parametrize("add", [by_list, by_matrix])
@pytest.mark.parametrize("distinct", [False, True], ids=["many ties", "distinct"])
@pytest.mark.parametrize("k", [1, 7, 90])
def test_as_a_sort_keeps_them(k, distinct, add):
    """Blocks of very different sizes: empty ones, and ones that exceed a row's capacity several times."""
    rng = np.random.default_rng(k)
    n_rows = 5
    kept = streaming_top_k.empty(n_rows, k, LOWEST, {"number": (-1, jnp.int32)})
    capacity = kept.key.shape[0]
    rows, keys = [], []
    for size in (3, 0, 40, 5 * n_rows * capacity, 2, 300, 3000):
        # Most of a block goes to one row; the last row gets nothing.
        row = np.where(rng.random(size) < 0.7, 1, rng.integers(0, n_rows - 1, size)).astype(np.int32)
        key = rng.random(size) if distinct else rng.integers(0, 6, size) / 8
        numbers = np.arange(size, dtype=np.int32) + sum(len(part) for part in rows)
        kept = add(kept, row, key.astype(np.float32), numbers, k)
        rows.append(row)
        keys.append(key.astype(np.float32))
    row, key = np.concatenate(rows), np.concatenate(keys)
    found_key, found = streaming_top_k.largest(kept, k)
    for number in range(n_rows):
        own = np.flatnonzero(row == number)
        best = own[np.argsort(-key[own], kind="stable")[:k]]
        np.testing.assert_array_equal(
            found_key[:, number], np.pad(key[best], (0, k - len(best)), constant_values=LOWEST)
        )
        np.testing.assert_array_equal(
            found["number"][:, number], np.pad(best, (0, k - len(best)), constant_values=-1), err_msg=str(number)
        )
