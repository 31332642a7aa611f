"""Rows as ranges, compared with lists of their numbers."""

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from sae.activations import row_ranges
from sae.activations.row_ranges import RowRanges


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), max_size=30), st.integers(1, 9))
def test_it_is_the_list_of_its_numbers(gaps_and_sizes, chunk_rows):
    """Empty ranges and ranges that touch are among them."""
    starts, stops, end = [], [], 0
    for gap, size in gaps_and_sizes:
        starts.append(end + gap)
        end += gap + size
        stops.append(end)
    numbers = np.concatenate([np.empty(0, int), *map(np.arange, starts, stops)])
    rows = RowRanges.of(np.array(starts, np.int64), np.array(stops, np.int64))
    assert len(rows) == len(numbers)
    np.testing.assert_array_equal(rows.numbers(), numbers)
    assert (rows.starts[1:] > rows.stops[:-1]).all() and (rows.starts < rows.stops).all()
    places = np.random.default_rng(0).permutation(len(numbers))
    np.testing.assert_array_equal(rows.take(places), numbers[places])
    edges = rows.chunk_edges(np.append(np.arange(0, end + 3, chunk_rows), end + 3))
    _, counts = np.unique(numbers // chunk_rows, return_counts=True)
    np.testing.assert_array_equal(edges, np.cumsum([0, *counts]))


def test_the_rows_of_a_split_come_from_tables_in_parts():
    studies = pa.table(
        {
            "split": ["train", "train", "held_out", "train"],
            "start": [0, 5, 9, 12],
            "stop": [5, 9, 12, 20],
            "other": [1] * 4,
        }
    )
    train = RowRanges.of_split(studies.to_batches(max_chunksize=1), "train")
    np.testing.assert_array_equal(train.starts, [0, 12])
    np.testing.assert_array_equal(train.stops, [9, 20])
    assert not len(RowRanges.of_split(studies.to_batches(), "other"))


def test_many_chunks_are_cut_in_parts(monkeypatch):
    rows = RowRanges.of(np.array([3, 50]), np.array([40, 90]))
    bounds = np.arange(0, 101, 4)
    whole = rows.chunk_edges(bounds)
    monkeypatch.setattr(row_ranges, "_CHUNKS_AT_A_TIME", 7)
    np.testing.assert_array_equal(rows.chunk_edges(bounds), whole)
