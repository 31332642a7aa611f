"""What features are found in: an activation store, its rows divided into contexts of text or images, and its splits."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from interp.exemplars.contexts import Contexts, image_contexts, split_into_contexts
from maira_jax.errors import UserError
from maira_jax.inputs.tokens import Tokenizer
from sae.activations.store import HELD_OUT, ActivationStore


def is_of_images(source: Mapping[str, Any]) -> bool:
    """Whether the rows of a store with this `source` are images or their patches, and not tokens of a language model.

    Arrays that somebody else computed count as images: nothing is known of their tokens.
    """
    return not source.keys().isdisjoint(("encoder", "arrays"))


@dataclasses.dataclass(frozen=True)
class Corpus:
    """All tokens, or all images, of a store.

    Attributes:
      store: the activations.
      studies: the store's study table.
      token_id: the id of every token; empty for images. int32 [n_tokens]
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

        The contexts of a store of images are whole images.

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
        if is_of_images(store.source):
            start, stop = (studies[name].to_numpy() for name in ("start", "stop"))
            return cls(store, studies, np.zeros(0, np.int32), (), image_contexts(start, stop), held_out)
        tokens = store.tokens
        pieces = pieces_of(Tokenizer.from_dir(workdir / "model"), tokens.token_id)
        columns = (tokens.study, tokens.position, tokens.token_id, tokens.kind)
        return cls(store, studies, tokens.token_id, pieces, split_into_contexts(*columns, pieces, max_length), held_out)

    @property
    def of_images(self) -> bool:
        """Whether the contexts are whole images."""
        return is_of_images(self.store.source)

    def text(self, number: int) -> str:
        """The text of the context with this number, with single spaces."""
        start = self.contexts.start[number]
        ids = self.token_id[start : start + self.contexts.length[number]]
        return " ".join("".join(self.pieces[i] for i in ids).split())


def pieces_of(tokenizer: Tokenizer, token_id: np.ndarray) -> list[str]:
    """The text of every token id that occurs, with a word boundary as a leading space; empty for the others."""
    used = np.unique(token_id)
    pieces = [""] * (int(used.max(initial=-1)) + 1)
    for i, piece in zip(used, tokenizer.pieces(used), strict=True):
        pieces[i] = piece
    return pieces
