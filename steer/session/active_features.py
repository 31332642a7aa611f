"""Which features are active in a study, where, and how strongly."""

import dataclasses
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple, SupportsIndex, overload

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import scipy.sparse
from markupsafe import Markup

from maira_jax.errors import UserError
from maira_jax.inputs.image import to_grey
from maira_jax.inputs.prompt import study_images
from maira_jax.studies.study import Study
from sae import autoencoder
from sae.autoencoder import Sae
from steer.session import html, near, token_table
from steer.session.features import Feature, NamedFeatures

_BLOCK = 256  # rows that are encoded together; a row count of its own would be a program of its own
_SHOWN = 12  # features in a printed list
_UNSPOKEN = ("bos", "boilerplate", "eos")  # sections that are the same in every study
_encode = jax.jit(autoencoder.encode, static_argnames="top_k")


def encoded(sae: Sae, x: np.ndarray) -> scipy.sparse.csr_array:
    """The features of activations x, float32 [rows, d_model], as a sparse array float32 [rows, features]."""
    blocks = []
    for start in range(0, len(x), _BLOCK):
        block = np.zeros((_BLOCK, x.shape[1]), np.float32)
        block[: len(x) - start] = x[start : start + _BLOCK]
        found = np.asarray(_encode(sae.params, jnp.asarray(block), sae.threshold, top_k=sae.top_k))
        blocks.append(scipy.sparse.csr_array(found[: len(x) - start]))
    return scipy.sparse.vstack(blocks, format="csr")


class ActiveFeature(NamedTuple):
    """A feature where it is most active. It stands for its number wherever a feature is asked for.

    Attributes:
      feature: the feature.
      activation: its largest activation here.
      word: the word, or the image and patch, where it has it.
    """

    feature: Feature
    activation: float
    word: str

    def __index__(self) -> int:
        return self.feature.number

    def __repr__(self) -> str:
        return f"{self.activation:8.3g} at {self.word!r}: {self.feature!r}"


@dataclasses.dataclass(frozen=True)
class FeatureMap:
    """One feature over the words and images of a study.

    Attributes:
      study: the study.
      feature: the feature.
      tokens: the table of tokens, see `token_table.SCHEMA`.
      activations: float32 [tokens].
    """

    study: Study
    feature: Feature
    tokens: pa.Table
    activations: np.ndarray

    def _rows_by_section(self) -> dict[str, list[int]]:
        sections: dict[str, list[int]] = {}
        for row, (token, section) in enumerate(zip(*self._columns("token", "section"), strict=True)):
            if token and section not in _UNSPOKEN:
                sections.setdefault(section, []).append(row)
        return sections

    def _columns(self, *names: str) -> list[list[Any]]:
        return [self.tokens[name].to_pylist() for name in names]

    def heat_map(self, image: int = 0) -> np.ndarray:
        """The activation on each patch of an image (0: the current frontal one), float32 [rows, columns]."""
        images, patches = (self.tokens[name].to_numpy() for name in ("image", "patch"))
        rows = np.flatnonzero((images == image) & ~np.isnan(patches.astype(float)))
        side = round(len(rows) ** 0.5)
        return self.activations[rows].reshape(side, side)

    def __repr__(self) -> str:
        lines = [self.feature.title]
        for section, rows in self._rows_by_section().items():
            marked = [self._marked(row) for row in rows]
            lines.append(f"{section}: {''.join(marked).strip()}")
        return "\n".join(lines)

    def _marked(self, row: int) -> str:
        token, value = self.tokens["token"][row].as_py(), float(self.activations[row])
        return f"{token}[{value:.3g}]" if value > 0 else str(token)

    def _repr_html_(self) -> Markup:
        largest = float(self.activations.max(initial=0.0))
        tokens = self.tokens["token"].to_pylist()
        parts = [html.heading(self.feature.title)]
        for number, image in enumerate(study_images(self.study)):
            heat = self.heat_map(number)
            if heat.size and heat.max() > 0:
                parts.append(html.x_ray(to_grey(image), heat, largest))
        for section, rows in self._rows_by_section().items():
            text = html.shaded([tokens[row] for row in rows], self.activations[rows], largest)
            parts.append(html.paragraph(Markup("<b>{}</b> {}").format(section.replace("_", " "), text)))
        return html.join(parts)


@dataclasses.dataclass(frozen=True)
class ActiveFeatures(Sequence[ActiveFeature]):
    """The features that are active in a study, or in a part of it, strongest first.

    Attributes:
      study: the study.
      tokens: the table of all tokens, see `token_table.SCHEMA`.
      activations: float32 [tokens, features], sparse.
      counted: which tokens decide what is strongest: all on which the autoencoder was trained, unless a part was asked
        for. bool [tokens]
      names: what is known of the features.
    """

    study: Study
    tokens: pa.Table
    activations: scipy.sparse.csr_array
    counted: np.ndarray
    names: NamedFeatures

    def __post_init__(self) -> None:
        rows = np.flatnonzero(self.counted)
        largest = np.zeros(self.activations.shape[1], np.float32)
        if len(rows):
            largest = self.activations[rows].max(axis=0).toarray().ravel()  # [features]
        object.__setattr__(self, "_largest", largest)
        order = np.argsort(-largest, kind="stable")
        object.__setattr__(self, "_order", order[: int((largest > 0).sum())])

    _largest: np.ndarray = dataclasses.field(init=False, repr=False)
    _order: np.ndarray = dataclasses.field(init=False, repr=False)

    def __len__(self) -> int:
        return len(self._order)

    @overload
    def __getitem__(self, place: int) -> ActiveFeature: ...

    @overload
    def __getitem__(self, place: slice) -> list[ActiveFeature]: ...

    def __getitem__(self, place: int | slice) -> ActiveFeature | list[ActiveFeature]:
        if isinstance(place, slice):
            return [self._active(number) for number in self._order[place].tolist()]
        return self._active(int(self._order[place]))

    def _active(self, number: int) -> ActiveFeature:
        row = int(np.where(self.counted, self.of(number), -1.0).argmax())
        word = token_table.word_at(self.tokens, row)
        return ActiveFeature(self.names.feature(number), float(self._largest[number]), word)

    def of(self, feature: SupportsIndex) -> np.ndarray:
        """The activation of one feature on every token, float32 [tokens].

        Raises:
          UserError: there is no such feature.
        """
        number = self.names.feature(operator.index(feature)).number
        return self.activations[:, [number]].toarray()[:, 0]

    def show(self, feature: SupportsIndex) -> FeatureMap:
        """One feature over all words and images of the study."""
        return FeatureMap(self.study, self.names.feature(operator.index(feature)), self.tokens, self.of(feature))

    def on_words(self, words: str) -> "ActiveFeatures":
        """The features that are strongest on these words, wherever they occur in the study's text.

        Raises:
          UserError: they do not occur.
        """
        found = token_table.rows_of_words(self.tokens, words)
        if not found.any():
            spoken = pa.compute.invert(pa.compute.is_in(self.tokens["section"], pa.array(_UNSPOKEN)))
            text = "".join(self.tokens.filter(spoken)["token"].to_pylist()).strip()
            raise UserError(f"the text of study {self.study.study_id} does not hold {words!r}: it is {text!r}")
        return dataclasses.replace(self, counted=found)

    def on_section(self, section: str) -> "ActiveFeatures":
        """The features that are strongest in a section of the study: "findings", "indication", "image" and others.

        Raises:
          UserError: the study has no such section.
        """
        sections = np.asarray(self.tokens["section"].to_pylist())
        found = sections == section
        if not found.any():
            known = dict.fromkeys(sections.tolist())
            raise near.unknown(f"section of study {self.study.study_id}", section, known, "choose one that it has")
        return dataclasses.replace(self, counted=found)

    def __repr__(self) -> str:
        lines = [f"{len(self)} features are active in study {self.study.study_id}, the strongest:"]
        return "\n".join([*lines, *map(repr, self[:_SHOWN])])

    def _repr_html_(self) -> Markup:
        rows = [
            (f"{one.activation:.3g}", one.word, one.feature.number, one.feature.name, one.feature.concept)
            for one in self[:_SHOWN]
        ]
        listed = html.table(("activation", "at", "feature", "name", "concept"), rows)
        return listed + (self.show(self[0])._repr_html_() if len(self) else html.EMPTY)
