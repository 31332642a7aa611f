"""The text that features are found in: an activation store, its tokens divided into contexts, and its splits."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from interp.exemplars.contexts import Contexts, split_into_contexts
from maira_jax.errors import UserError
from maira_jax.inputs.tokens import Tokenizer
from sae.activations.store import HELD_OUT, ActivationStore


@dataclasses.dataclass(frozen=True)
class Corpus:
    """All tokens of a store.

    Attributes:
      store: the activations.
      studies: the store's study table.
      token_id: the id of every token. int32 [n_tokens]
      pieces: the text of every token id that occurs, with a word boundary as a leading space; empty for the others.
      contexts: the contexts of all tokens.
      held_out: which studies are held out. bool [n_studies]
    """

    store: ActivationStore
    studies: pa.Table
    token_id: np.ndarray
    pieces: Sequence[str]
    contexts: Contexts
    held_out: np.ndarray

    @classmethod
    def open(cls, workdir: Path, max_length: int) -> "Corpus":
        """Reads the tokens of `workdir/activations` and divides them into contexts of at most `max_length` tokens.

        Raises:
          UserError: the store cannot be read, or all its studies are of one split.
        """
        store = ActivationStore.open(workdir / "activations")
        studies = store.studies
        held_out = np.array([split == HELD_OUT for split in studies["split"].to_pylist()], bool)
        if held_out.all() or not held_out.any():
            raise UserError(
                f"{workdir / 'activations'} holds studies of one split only, and scores need both: "
                "harvest again with more studies or another harvest.held_out_fraction"
            )
        tokens = {name: store.tokens[name].to_numpy() for name in ("study", "position", "token_id", "kind")}
        pieces = _pieces(Tokenizer.from_dir(workdir / "model"), tokens["token_id"])
        cut = split_into_contexts(**tokens, pieces=pieces, max_length=max_length)
        return cls(store, studies, tokens["token_id"], pieces, cut, held_out)

    def text(self, number: int) -> str:
        """The text of the context with this number, with single spaces."""
        start = self.contexts.start[number]
        ids = self.token_id[start : start + self.contexts.length[number]]
        return " ".join("".join(self.pieces[i] for i in ids).split())


def _pieces(tokenizer: Tokenizer, token_id: np.ndarray) -> list[str]:
    used = np.unique(token_id)
    pieces = [""] * (int(used.max(initial=-1)) + 1)
    for i, piece in zip(used, tokenizer.pieces(used), strict=True):
        pieces[i] = piece
    return pieces
