"""Where contexts begin and end."""

import numpy as np

from interp.exemplars.contexts import split_into_contexts
from maira_jax.inputs.tokens import Kind
from tests.helpers.exemplar_world import PIECES


def cut_text(pieces, study=None, position=None, kind=None, max_length=32):
    ids = np.array([PIECES.index(piece) for piece in pieces])
    n = len(ids)
    return split_into_contexts(
        np.zeros(n, np.int32) if study is None else np.array(study),
        np.arange(n) if position is None else np.array(position),
        ids,
        np.full(n, Kind.FINDINGS) if kind is None else np.array(kind),
        PIECES,
        max_length,
    )


def test_cut_ends_a_context_after_a_full_stop_but_not_inside_a_number():
    found = cut_text([" lungs", ".", " 2", ".", "5", " clear", ".", " no"])
    assert found.start.tolist() == [0, 2, 7]
    assert found.length.tolist() == [2, 5, 1]


def test_cut_ends_a_context_where_study_section_or_position_breaks():
    words = [" lungs"] * 6
    assert cut_text(words, study=[0, 0, 1, 1, 1, 1]).start.tolist() == [0, 2]
    assert cut_text(words, kind=[5, 5, 5, 9, 9, 9]).start.tolist() == [0, 3]
    # Two images: only their last tokens are kept, of one kind but not neighbours.
    assert cut_text(words, position=[0, 9, 20, 21, 22, 23]).start.tolist() == [0, 1, 2]


def test_cut_limits_the_length():
    found = cut_text([" lungs"] * 7 + ["."] + [" no"] * 2, max_length=3)
    assert found.start.tolist() == [0, 3, 6, 8]
    assert found.length.tolist() == [3, 3, 2, 2]


def test_section_runs_are_those_of_a_loop(world):
    contexts = world["contexts"]
    begin, end = contexts.section_runs()
    for i in range(len(contexts)):
        same = np.flatnonzero((contexts.study == contexts.study[i]) & (contexts.kind == contexts.kind[i]))
        assert (begin[i], end[i]) == (same[0], same[-1] + 1)
