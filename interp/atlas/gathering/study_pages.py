"""What the atlas shows of a study: its images, its texts, and the features that are active on each of its tokens."""

import functools
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from interp.atlas.disclosure import Disclosure
from interp.atlas.gathering.image_places import ImagePlaces
from interp.atlas.gathering.pictures import Picture
from interp.exemplars.contexts import split_into_contexts
from interp.exemplars.corpus import is_of_images, pieces_of
from interp.medsae.similar import StudyCodes, nearest, shared_features
from maira_jax.inputs.tokens import SECTION_NAMES, SECTIONS, Kind, Tokenizer
from maira_jax.run.progress import progress
from sae.activations.store import ActivationStore
from sae.activations.token_rows import TokenRows
from sae.autoencoder import Sae, encode
from sae.saved import load_sae

MAX_STUDIES = 1000
# Rows of all shown studies, which are encoded anew, and products in that: some minutes of two processors.
_MAX_ROWS, _MAX_PRODUCTS = 1 << 17, 1 << 42
_BLOCK = 256  # rows encoded together
_MIN_PERCENT, _MAX_OF_ROW = 5, 32  # of the feature's largest activation, and features of a row
_MAX_SIMILAR, _MAX_SHARED = 6, 4  # studies that are like one, and features that two share
_IMAGES = (Kind.IMAGE, Kind.IMAGE_LAST)


def chosen(study: np.ndarray, store: ActivationStore, n_features: int) -> list[int]:
    """The studies that get a page: the first different ones of `study [n]`, while their rows are not too many."""
    most = min(_MAX_ROWS, _MAX_PRODUCTS // (store.d_model * n_features))
    start, stop = (store.studies[name].to_numpy() for name in ("start", "stop"))
    _, first = np.unique(study, return_index=True)
    different = study[np.sort(first)][:MAX_STUDIES]
    rows = np.cumsum(stop[different] - start[different])
    return different[rows <= most].tolist()


def similar_studies(folder: Path, study_ids: Sequence[str]) -> dict[str, list[tuple[str, float, list[Any]]]]:
    """The studies of other patients that are most like each of these, by their sparse codes.

    Args:
      folder: the codes of all studies.
      study_ids: those to compare.

    Returns:
      Study id -> the other's id, similarity, and [feature, its share of the similarity] of some features.
    """
    codes, found = StudyCodes.read(folder), dict[str, list[tuple[str, float, list[Any]]]]()
    known = {str(study_id): row for row, study_id in enumerate(codes.study_id)}
    for study_id in progress([name for name in study_ids if name in known], unit="study", desc="atlas: similar"):
        own = known[study_id]
        rows, cosines = nearest(codes, own, _MAX_SIMILAR) if codes.norm[own] else ((), ())
        found[study_id] = []
        for row, cosine in zip(rows, cosines, strict=True):
            features, shares = shared_features(codes, own, int(row))
            shared = [[int(f), round(float(s), 3)] for f, s in zip(features[:_MAX_SHARED], shares, strict=False)]
            found[study_id].append((str(codes.study_id[row]), round(float(cosine), 3), shared))
    return found


class StudyReader:
    """Reads studies in the form in which the page takes them.

    Args:
      workdir: the run directory.
      store: its activations.
      tokens: the token that each of its rows is.
      studies: rows of the store's study table, those to read.
      places: where images are among a study's tokens.
      pictures: the images that the atlas has, by study and number.
      largest: each feature's largest activation. [F]
      disclosure: what is told of studies.
      max_length: the longest context, in tokens.
    """

    def __init__(
        self,
        workdir: Path,
        store: ActivationStore,
        tokens: TokenRows,
        studies: Sequence[int],
        places: ImagePlaces,
        pictures: Mapping[tuple[str, int], Picture],
        largest: Sequence[float],
        disclosure: Disclosure,
        max_length: int,
    ):
        self._store, self._studies, self._places = store, studies, places
        self._pictures, self._disclosure, self._max_length = pictures, disclosure, max_length
        self._table = store.studies
        self._encoder = RowEncoder(load_sae(workdir / "sae"), np.asarray(largest, np.float32))
        self._of_images = is_of_images(store.source)
        if not self._of_images:
            self._tokens, self._pieces = tokens, pieces_of(Tokenizer.from_dir(workdir / "model"), tokens.token_id)

    def read(self) -> Iterator[dict[str, Any]]:
        """Each study, in the order in which they were given: that of the store would tell whose number is whose.

        A study has "id" and "name", "split", "labels" (those present), "images" (number of the file and of the first
        patch's row, -1 without, and the patch's rectangle), "tokens" (one text per row, empty ones of an image),
        "sentences" ([section, first row, one past the last] of those with text) and "features" ([feature, percent of
        its largest activation, row, percent, row, percent, …], the strongest first).
        """
        for study in progress(self._studies, unit="study", desc="atlas: studies"):
            row = {name: self._table[name][study].as_py() for name in self._table.column_names}
            x = self._store.read(row["start"], row["stop"])
            name, labels = row["study_id"], json.loads(row["labels"]).items()
            rows = slice(row["start"], row["stop"])
            texts, sentences = ([""] * len(x), []) if self._of_images else self._text(rows)
            yield {
                "id": name,
                "name": self._disclosure.study(name),
                "split": row["split"],
                "labels": [label for label, present in labels if present],
                "images": self._images(name, rows),
                "tokens": texts,
                "sentences": sentences,
                "features": self._encoder.strongest(x),
            }

    def _text(self, rows: slice) -> tuple[list[str], list[list[int]]]:
        tokens = self._tokens
        token_id = tokens.token_id[rows]
        columns = (tokens.study[rows], tokens.position[rows], token_id, tokens.kind[rows])
        cut = split_into_contexts(*columns, self._pieces, self._max_length)
        texts, sentences = [""] * len(token_id), []
        for start, length, kind in zip(cut.start.tolist(), cut.length.tolist(), cut.kind.tolist(), strict=True):
            if kind not in _IMAGES:
                words = [self._pieces[i] for i in token_id[start : start + length]]
                texts[start : start + length] = self._disclosure.tokens(words)
                sentences.append([SECTIONS.index(SECTION_NAMES[Kind(kind)]), start, start + length])
        return texts, sentences

    def _images(self, study_id: str, rows: slice) -> list[list[Any]]:
        first = {0: 0}
        if not self._of_images:
            last = np.flatnonzero(self._tokens.kind[rows] == Kind.IMAGE_LAST)
            height, width = self._places.grid or (1, 1)
            first = {number: int(row) - height * width + 1 for number, row in enumerate(last)}
        own = sorted((number, picture) for (name, number), picture in self._pictures_of(study_id))
        return [
            [picture.number, first.get(number, -1) if picture.cell else -1, picture.cell] for number, picture in own
        ]

    def _pictures_of(self, study_id: str) -> Iterator[tuple[tuple[str, int], Picture]]:
        for number in range(3):  # current frontal, current lateral, prior frontal
            if (study_id, number) in self._pictures:
                yield (study_id, number), self._pictures[study_id, number]


class RowEncoder:
    """Finds the features of rows of activations, in blocks of one size, so that it is compiled once.

    Args:
      sae: autoencoder of raw activations.
      largest: the largest activation of each feature. float32 [F]
    """

    def __init__(self, sae: Sae, largest: np.ndarray):
        self._sae, self._largest = sae, largest
        self._encode = jax.jit(functools.partial(encode, top_k=sae.top_k))

    def strongest(self, x: np.ndarray) -> list[list[int]]:
        """See "features" of `StudyReader.read`; `x` are the activations of a study. [rows, d_model]"""
        blocks = [self._entries(x[begin : begin + _BLOCK], begin) for begin in range(0, len(x), _BLOCK)]
        row, feature, percent = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
        order = np.lexsort((row, feature))
        row, feature, percent = row[order], feature[order], percent[order]
        bounds = np.append(np.flatnonzero(np.diff(feature, prepend=-1)), len(feature)).tolist()
        pairs = np.column_stack([row, percent]).ravel().tolist()
        found = [
            [int(feature[begin]), max(pairs[2 * begin + 1 : 2 * end : 2]), *pairs[2 * begin : 2 * end]]
            for begin, end in itertools.pairwise(bounds)
        ]
        return sorted(found, key=lambda entry: -entry[1])

    def _entries(self, x: np.ndarray, begin: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows, features and percents of the entries of a block that are shown."""
        padded = np.pad(x, ((0, _BLOCK - len(x)), (0, 0)))
        f = np.asarray(self._encode(self._sae.params, jnp.asarray(padded), self._sae.threshold))[: len(x)]  # [rows, F]
        share = 100 * np.divide(f, self._largest, out=np.zeros_like(f), where=self._largest > 0)
        row, feature = np.nonzero(share >= _MIN_PERCENT)
        percent = np.minimum(np.ceil(share[row, feature]), 100).astype(int)
        order = np.lexsort((-percent, row))
        row, feature, percent = row[order], feature[order], percent[order]
        place = np.arange(len(row)) - np.searchsorted(row, row)
        kept = place < _MAX_OF_ROW
        return row[kept] + begin, feature[kept], percent[kept]
