"""Contexts: the parts of studies' sections, at most a sentence long, that an activation store is divided into."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from maira_jax.inputs.tokens import Kind

_SENTENCE_ENDS = (".", "?", "!")


@dataclasses.dataclass(frozen=True)
class Contexts:
    """Runs of consecutive store rows that cover the store without gaps, in order.

    Attributes:
      start: the first store row. int64 [n]
      length: the number of rows. int32 [n]
      study: index into the store's studies; never falling. int32 [n]
      position: the place of the first token in the study's sequence; the others follow it. int32 [n]
      kind: the `Kind` that all tokens of the context share. int8 [n]
    """

    start: np.ndarray
    length: np.ndarray
    study: np.ndarray
    position: np.ndarray
    kind: np.ndarray

    def __len__(self) -> int:
        return len(self.start)

    def rows(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The store rows of the contexts `chosen [m]`, one context after the other.

        Returns:
          Rows int64 [sum of lengths], and offsets int64 [m + 1]: context i has rows[offsets[i]:offsets[i + 1]].
        """
        length = self.length[chosen].astype(np.int64)
        offsets = np.concatenate([[0], np.cumsum(length)])
        return np.arange(offsets[-1]) + np.repeat(self.start[chosen] - offsets[:-1], length), offsets

    def section_runs(self) -> tuple[np.ndarray, np.ndarray]:
        """For every context the first and one past the last context of its study's section, int64 [n] each."""
        changes = (np.diff(self.study, prepend=-1) != 0) | (np.diff(self.kind, prepend=-1) != 0)
        begins = np.flatnonzero(changes)
        ends = np.append(begins[1:], len(self))
        lengths = ends - begins
        return np.repeat(begins, lengths), np.repeat(ends, lengths)


def image_contexts(start: np.ndarray, stop: np.ndarray) -> Contexts:
    """A context per image of a store of an image encoder: its one row, or all its patches.

    Args:
      start, stop: the columns of the store's study table. [n_studies] each

    Returns:
      The contexts of the studies that have rows, all of the kind `Kind.IMAGE`.
    """
    length = (stop - start).astype(np.int32)  # [n_studies]
    study = np.flatnonzero(length)  # [n]
    zeros = np.zeros(len(study), np.int32)
    kind = np.full(len(study), Kind.IMAGE, np.int8)
    return Contexts(start[study].astype(np.int64), length[study], study.astype(np.int32), zeros, kind)


def split_into_contexts(
    study: np.ndarray,
    position: np.ndarray,
    token_id: np.ndarray,
    kind: np.ndarray,
    pieces: Sequence[str],
    max_length: int,
) -> Contexts:
    """Ends a context where its study, section or sentence ends, where tokens were left out, and at a maximum length.

    Args:
      study, position, token_id, kind: of the store's rows (see `TokenRows`). [n] each
      pieces: the text of every token id, with a word boundary as a leading space.
      max_length: length of the longest context, in tokens.

    Returns:
      The contexts of all n rows.
    """
    n = len(study)
    if n == 0:
        empty = np.zeros(0, np.int32)
        return Contexts(np.zeros(0, np.int64), empty, empty, empty, np.zeros(0, np.int8))
    ends = np.array([piece.strip().endswith(_SENTENCE_ENDS) or piece == "\n" for piece in pieces])
    begins = np.array([not piece or piece[0].isspace() for piece in pieces])
    begins_here = np.ones(n, bool)
    begins_here[1:] = (
        (np.diff(study) != 0)
        | (np.diff(position) != 1)
        | (np.diff(kind) != 0)
        # A full stop inside a number or a word ("2.5", "e.g") ends nothing.
        | (ends[token_id[:-1]] & begins[token_id[1:]])
    )
    first = np.flatnonzero(begins_here)
    within = np.arange(n) - np.repeat(first, np.diff(np.append(first, n)))
    start = np.flatnonzero(within % max_length == 0)
    length = np.diff(np.append(start, n))
    return Contexts(
        start.astype(np.int64),
        length.astype(np.int32),
        study[start].astype(np.int32),
        position[start].astype(np.int32),
        kind[start].astype(np.int8),
    )
