"""The rows of a site in words: which token or patch each row of activations belongs to."""

import numpy as np
import pyarrow as pa

from maira_jax.inputs.tokens import SECTION_NAMES, Encoded, Kind, Tokenizer
from maira_jax.model.config import Maira2Config
from maira_jax.model.sites import Site

SCHEMA = pa.schema(
    [
        ("position", pa.int32()),  # in the sequence; at sites of images the row's place among all rows
        ("token", pa.string()),  # its text, a word boundary as a leading space; "" for a patch
        ("section", pa.string()),  # one of `SECTIONS`; "class" for the class token of an image
        ("image", pa.int32()),  # 0 for the current frontal image, then those after it; null for words
        ("patch", pa.int32()),  # of the image, row by row from the top left corner; null for words and class tokens
    ]
)


def of_sequence(encoded: Encoded, tokenizer: Tokenizer) -> pa.Table:
    """The table of a site of the language model, one row per token."""
    is_image = np.isin(encoded.kinds, (Kind.IMAGE, Kind.IMAGE_LAST))
    place = np.cumsum(is_image) - 1  # of each patch among all patches
    image, patch = np.divmod(np.where(is_image, place, 0), tokenizer.patches_per_image)
    pieces = tokenizer.pieces(encoded.ids)
    tokens = ["" if hidden else piece for hidden, piece in zip(is_image, pieces, strict=True)]
    sections = [SECTION_NAMES[Kind(kind)] for kind in encoded.kinds]
    masked = [pa.array(values.astype(np.int32), mask=~is_image) for values in (image, patch)]
    return pa.Table.from_arrays([pa.array(range(len(encoded)), pa.int32()), tokens, sections, *masked], schema=SCHEMA)


def of_images(site: Site, n_images: int, cfg: Maira2Config) -> pa.Table:
    """The table of a site of the vision tower or the projector, image by image."""
    classes = site.tower == "vision"  # each image has a class token before its patches
    each = np.arange(cfg.vision.patches + classes) - classes
    patch, image = np.tile(each, n_images), np.repeat(np.arange(n_images), len(each))
    sections = np.where(patch < 0, "class", "image")
    columns = [
        np.arange(len(patch)),
        [""] * len(patch),
        sections,
        image,
        pa.array(patch.astype(np.int32), mask=patch < 0),
    ]
    return pa.Table.from_arrays([pa.array(c).cast(f.type) for c, f in zip(columns, SCHEMA, strict=True)], schema=SCHEMA)


def rows_of_words(table: pa.Table, words: str) -> np.ndarray:
    """Which tokens the words are made of, wherever they occur in the table, case ignored: bool [rows]."""
    pieces = [piece or "\n" for piece in table["token"].to_pylist()]  # no words reach across an image
    starts = np.cumsum([0, *map(len, pieces)])
    text, wanted = "".join(pieces).lower(), " ".join(words.split()).lower()
    found = np.zeros(len(pieces), bool)
    at = text.find(wanted) if wanted else -1
    while at >= 0:
        found |= (starts[1:] > at) & (starts[:-1] < at + len(wanted))
        at = text.find(wanted, at + 1)
    return found


def word_at(table: pa.Table, row: int) -> str:
    """The whole word that a token is part of; for a patch, which one it is."""
    tokens, section = table["token"].to_pylist(), table["section"].to_pylist()
    if not tokens[row]:
        image, patch = table["image"][row].as_py(), table["patch"][row].as_py()
        return f"image {image}" + ("" if patch is None else f", patch {patch}")
    begin = row
    while begin and not tokens[begin].startswith(" ") and tokens[begin - 1] and section[begin - 1] == section[row]:
        begin -= 1
    stop = row + 1
    while stop < len(tokens) and tokens[stop] and not tokens[stop].startswith(" ") and section[stop] == section[row]:
        stop += 1
    return "".join(tokens[begin:stop]).strip()
