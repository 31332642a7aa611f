"""The contexts that the atlas shows of each feature, all from studies that scoring did not see."""

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from interp.atlas.disclosure import Disclosure
from interp.atlas.gathering.image_places import ImagePlaces
from interp.atlas.gathering.pictures import Picture
from interp.exemplars.selection import KINDS
from maira_jax.inputs.tokens import SECTION_NAMES, SECTIONS, Kind
from maira_jax.run.progress import progress
from sae.activations.store import TRAIN

# Contexts of a feature by kind, and of each decile: 40 in all.
MAX_SHOWN = {"top": 10, "decile": 1, "random": 6, "nearest": 7, "same study": 7}
# Rows that are looked at for each one shown: sentences are shown once.
_SPARE = 2
_BATCH = 256  # features whose exemplars are read together, a row group
_MIN_HEAT = 5  # percent of the feature's largest activation, for a patch of a heat map
_IMAGE = SECTION_NAMES[Kind.IMAGE]
_PLACES = ["feature", "kind", "decile", "study_id", "section", "position"]


@dataclasses.dataclass(frozen=True)
class ShownContexts:
    """Which studies and images the contexts of the atlas are from.

    Attributes:
      feature: the feature of each context. int32 [n]
      is_top: whether it is one of the feature's strongest. bool [n]
      study: row of the store's study table. int32 [n]
      image: number of the image in its study; -1 of text. int32 [n]
      is_spare: whether it is shown only if another one is left out, which repeats a sentence. bool [n]
    """

    feature: np.ndarray
    is_top: np.ndarray
    study: np.ndarray
    image: np.ndarray
    is_spare: np.ndarray

    def by_priority(self, features: Sequence[int]) -> "ShownContexts":
        """The same contexts, those of the first of `features` first, and spare ones last."""
        priority = np.empty(len(features), np.int64)
        priority[np.asarray(features, int)] = np.arange(len(features))
        order = np.lexsort((priority[self.feature], self.is_spare))
        return ShownContexts(*(getattr(self, field.name)[order] for field in dataclasses.fields(self)))


def survey(path: Path, n_features: int, study_ids: pa.Array, places: ImagePlaces) -> ShownContexts:
    """Finds the studies and images of all contexts that will be shown, without reading their words.

    Args:
      path: exemplars.parquet.
      n_features: number of features.
      study_ids: ids of the store's studies, in order.
      places: where images are among a study's tokens.
    """
    parts: dict[str, list[np.ndarray]] = defaultdict(list)
    for begin in progress(range(0, n_features, _BATCH), unit="batch", desc="atlas: survey"):
        table, is_spare = _first_rows(_read(path, begin, _PLACES))
        study = pc.index_in(table["study_id"], value_set=study_ids).to_numpy().astype(np.int32)  # [rows]
        image = np.full(len(study), -1, np.int32)  # [rows]
        seen = np.flatnonzero(pc.equal(table["section"], _IMAGE).to_numpy(zero_copy_only=False))
        image[seen] = places.numbers(study[seen], table["position"].to_numpy()[seen])
        parts["is_spare"].append(is_spare)
        parts["feature"].append(table["feature"].to_numpy())
        parts["is_top"].append(pc.equal(table["kind"], KINDS[0]).to_numpy(zero_copy_only=False))
        parts["study"].append(study)
        parts["image"].append(image)
    return ShownContexts(**{name: np.concatenate(arrays) for name, arrays in parts.items()})


def _read(path: Path, begin: int, columns: Sequence[str] | None = None) -> pa.Table:
    inside = (pc.field("feature") >= begin) & (pc.field("feature") < begin + _BATCH)
    return pq.read_table(path, columns=columns, filters=inside & (pc.field("split") == TRAIN))


def _first_rows(table: pa.Table) -> tuple[pa.Table, np.ndarray]:
    """The first rows of each feature's kinds and deciles, `_SPARE` times as many as are shown, and which are spare."""
    kind = pc.index_in(table["kind"], value_set=pa.array(KINDS)).to_numpy().astype(np.int64)  # [rows]
    decile = pc.fill_null(table["decile"], -1).to_numpy()  # [rows]
    group = (table["feature"].to_numpy().astype(np.int64) * len(KINDS) + kind) * 11 + decile + 1  # [rows]
    first = np.flatnonzero(np.diff(group, prepend=-1))  # the file has the rows of a group next to each other
    place = np.arange(len(group)) - np.repeat(first, np.diff(np.append(first, len(group))))  # [rows]
    limits = np.array([MAX_SHOWN[name] for name in KINDS])[kind]  # [rows]
    kept = np.flatnonzero(place < _SPARE * limits)
    return table.take(pa.array(kept)), (place >= limits)[kept]


class ContextReader:
    """Reads the contexts of features in the form in which the page takes them.

    Args:
      path: exemplars.parquet.
      study_ids: ids of the store's studies, in order.
      largest: each feature's largest activation.
      places: where images are among a study's tokens.
      pictures: the images that the atlas has, by study and number.
      disclosure: what is told of studies.
    """

    def __init__(
        self,
        path: Path,
        study_ids: pa.Array,
        largest: Sequence[float],
        places: ImagePlaces,
        pictures: Mapping[tuple[str, int], Picture],
        disclosure: Disclosure,
    ):
        self._path, self._study_ids, self._largest = path, study_ids, largest
        self._places, self._pictures, self._disclosure = places, pictures, disclosure

    def batches(self) -> Iterator[dict[int, list[dict[str, Any]]]]:
        """Feature -> its contexts, some features at a time, in order.

        A context has "kind" and "section", indices into `KINDS` and `SECTIONS`; "decile", 0 weakest to 9 strongest or
        -1; "study", the study's name; "max", its largest activation; "tokens", texts; "heat", places of tokens or
        patches and whole percents of the feature's largest activation in turn; and of an image "picture", the
        `Picture` or None where the atlas has none.
        """
        for begin in progress(range(0, len(self._largest), _BATCH), unit="batch", desc="atlas: contexts"):
            found: dict[int, list[dict[str, Any]]] = defaultdict(list)
            for row in self._rows(begin):
                found[row["feature"]].append(self._context(row))
            yield {
                feature: _joined(found.get(feature, []))
                for feature in range(begin, min(begin + _BATCH, len(self._largest)))
            }

    def _rows(self, begin: int) -> Iterator[dict[str, Any]]:
        table, _ = _first_rows(_read(self._path, begin))
        study = pc.index_in(table["study_id"], value_set=self._study_ids)
        taken: dict[tuple[Any, ...], int] = defaultdict(int)
        sentences: set[tuple[Any, ...]] = set()
        for row in table.append_column("study", study).to_pylist():
            group = (row["feature"], row["kind"], row["decile"])
            words = tuple(row["tokens"]) if row["section"] != _IMAGE else (row["study_id"], row["position"])
            sentence = (row["feature"], row["kind"], words)
            if taken[group] < MAX_SHOWN[row["kind"]] and sentence not in sentences:
                sentences.add(sentence)
                taken[group] += 1
                yield row

    def _context(self, row: Mapping[str, Any]) -> dict[str, Any]:
        context = {
            "kind": KINDS.index(row["kind"]),
            "decile": -1 if row["decile"] is None else row["decile"],
            "section": SECTIONS.index(row["section"]),
            "study": self._disclosure.study(row["study_id"]),
            "max": float(f"{row['max_activation']:.4g}"),
        }
        scale = 100 / (self._largest[row["feature"]] or 1.0)
        percents = [min(int(np.ceil(value * scale)), 100) for value in row["activations"]]
        if row["section"] != _IMAGE:
            return context | {"tokens": self._disclosure.tokens(row["tokens"]), "heat": _pairs(percents, 0, 1)}
        (number,) = self._places.numbers(np.array([row["study"]]), np.array([row["position"]])).tolist()
        heat = []
        if self._places.grid is not None:
            heat = _pairs(percents, self._places.first_patch(row["study"], row["position"]), _MIN_HEAT)
        return context | {"tokens": [], "heat": heat, "picture": self._pictures.get((row["study_id"], number))}


def _pairs(percents: Sequence[int], first: int, minimum: int) -> list[int]:
    return [part for i, value in enumerate(percents) if value >= minimum for part in (first + i, value)]


def _joined(contexts: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The contexts, those that are parts of one image as one."""
    joined: dict[Any, dict[str, Any]] = {}
    for number, context in enumerate(contexts):
        whole = context.get("picture") is not None
        key = (context["kind"], context["decile"], context["picture"].number) if whole else number
        if key in joined:
            joined[key]["heat"] += context["heat"]
            joined[key]["max"] = max(joined[key]["max"], context["max"])
        else:
            joined[key] = context
    return list(joined.values())
