"""Features with what is known of them: names, concepts, exemplars, and where they are active in a study."""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import pyarrow as pa
import pyarrow.parquet as pq
from markupsafe import Markup

from interp import sets
from interp.exemplars import exemplar_table
from maira_jax.errors import UserError
from maira_jax.run import files, storage
from steer.selection.by_explanation import by_explanation
from steer.selection.catalogue import FeatureCatalogue
from steer.session import html, near

_SHOWN = 8  # exemplars that are shown of a feature
_LISTED = 12  # features that are shown of a list


@dataclasses.dataclass(frozen=True)
class FeatureExemplar:
    """A part of a study in which a feature is strongly active.

    Attributes:
      study_id: the study.
      section: the part of the study, e.g. "findings".
      tokens: its tokens, a word boundary as a leading space.
      activations: the feature's activation on each.
    """

    study_id: str
    section: str
    tokens: tuple[str, ...]
    activations: tuple[float, ...]

    def __repr__(self) -> str:
        return f"{max(self.activations, default=0):.3g} {''.join(self.tokens).strip()!r} ({self.study_id})"


@dataclasses.dataclass(frozen=True)
class Feature:
    """A feature of an autoencoder. It stands for its number wherever one is asked for.

    Attributes:
      number: which feature it is.
      name: what it is called by the set of interpretations; "" where it has no name.
      explanation: the whole explanation, or "".
      concept: the labelled concept that it detects best, or "".
      concept_f1: F1 of that on held-out studies; None if not known.
      max_activation: its largest activation over the run's studies; None if not known.
      density: share of the tokens on which it is active; None if not known.
    """

    number: int
    name: str = ""
    explanation: str = ""
    concept: str = ""
    concept_f1: float | None = None
    max_activation: float | None = None
    density: float | None = None
    _read_exemplars: Callable[[], list[FeatureExemplar]] = dataclasses.field(default=list, repr=False, compare=False)

    def __index__(self) -> int:
        return self.number

    @property
    def exemplars(self) -> list[FeatureExemplar]:
        """Where it is most active in the run's studies, strongest first; empty where it was not interpreted."""
        return self._read_exemplars()

    @property
    def title(self) -> str:
        """Number and name in one line."""
        return f"feature {self.number}" + (f": {self.name}" if self.name else "")

    def __repr__(self) -> str:
        concept = f" [{self.concept}, F1 {self.concept_f1:.2f}]" if self.concept and self.concept_f1 is not None else ""
        return f"<{self.title}{concept}>"

    def _repr_html_(self) -> str:
        known = (
            ("concept", self.concept and f"{self.concept} (F1 {self.concept_f1 or 0:.2f})"),
            ("largest activation", self.max_activation and f"{self.max_activation:.3g}"),
            ("density", self.density and f"{self.density:.2%}"),
            ("explanation", self.explanation if self.explanation != self.name else ""),
        )
        shown = self.exemplars[:_SHOWN]
        largest = max((max(one.activations, default=0.0) for one in shown), default=0.0)
        rows = [(one.study_id, one.section, html.shaded(one.tokens, one.activations, largest)) for one in shown]
        facts = html.table((), [row for row in known if row[1]])
        exemplars = html.table(("study", "section", "exemplar"), rows) if rows else html.EMPTY
        return html.heading(self.title) + facts + exemplars


class FoundFeatures(Sequence[Feature]):
    """Features in the order in which they were found, best first."""

    def __init__(self, features: Sequence[Feature]):
        self._features = tuple(features)

    @overload
    def __getitem__(self, place: int) -> Feature: ...

    @overload
    def __getitem__(self, place: slice) -> "FoundFeatures": ...

    def __getitem__(self, place: int | slice) -> "Feature | FoundFeatures":
        return FoundFeatures(self._features[place]) if isinstance(place, slice) else self._features[place]

    def __len__(self) -> int:
        return len(self._features)

    def __repr__(self) -> str:
        more = len(self) - _LISTED
        lines = [*map(repr, self._features[:_LISTED]), *([f"and {more} more"] if more > 0 else [])]
        return "\n".join(lines) or "no features"

    def _repr_html_(self) -> Markup:
        rows = [
            (one.number, one.name, one.concept, "" if one.concept_f1 is None else f"{one.concept_f1:.2f}")
            for one in self._features[:_LISTED]
        ]
        return html.table(("feature", "name", "concept", "F1"), rows)


class NamedFeatures:
    """What a run knows of the features of its autoencoder.

    Args:
      n_features: the number of features.
      workdir: the run directory; None where nothing is known of the features.
      interpretations: the set of interpretations that gives names, see `interp.sets`.

    Raises:
      UserError: there is no such set.
    """

    def __init__(self, n_features: int, workdir: Path | None, interpretations: str = sets.OWN_SET):
        self.n_features, self._workdir = n_features, workdir
        own, chosen = self._set(sets.OWN_SET), self._set(interpretations)
        self._rows = {row["feature"]: own.get(row["feature"], {}) | row for row in chosen.values()}

    def _set(self, name: str) -> dict[int, dict[str, Any]]:
        if self._workdir is None or (name == sets.OWN_SET and name not in sets.set_names(self._workdir)):
            return {}
        table = sets.read_set(self._workdir, name)
        wanted = ("feature", "name", "explanation", "concept", "concept_f1", "max_activation", "density")
        rows = table.select([column for column in wanted if column in table.column_names]).to_pylist()
        return {row["feature"]: row for row in rows}

    @functools.cached_property
    def _concepts(self) -> list[dict[str, Any]]:
        """The run's concepts with their best features, best first; empty where it was not interpreted."""
        if self._workdir is None:
            return []
        storage.fetch(self._workdir / sets.OWN_SET)
        path = self._workdir / sets.OWN_SET / "concepts.parquet"
        return sorted(pq.read_table(path).to_pylist(), key=lambda row: -(row["f1"] or 0.0)) if path.is_file() else []

    @property
    def _left_out(self) -> Mapping[str, str]:
        """The concepts that the interpretation left out, each with the reason."""
        path = None if self._workdir is None else self._workdir / sets.OWN_SET / "summary.json"
        return files.read_json(path)["concepts"]["left_out"] if path is not None and path.is_file() else {}

    def feature(self, number: int) -> Feature:
        """A feature with what is known of it.

        Raises:
          UserError: there is no such feature.
        """
        if not 0 <= number < self.n_features:
            raise UserError(
                f"there is no feature {number}: features are numbered from 0 to {self.n_features - 1}; "
                "find_by_words, find_by_concept and find_by_text find them"
            )
        row: Mapping[str, Any] = self._rows.get(number, {})
        explanation = row.get("explanation") or ""
        return Feature(
            number=number,
            name=row.get("name") or explanation,
            explanation=explanation,
            concept=row.get("concept") or "",
            concept_f1=row.get("concept_f1"),
            max_activation=row.get("max_activation"),
            density=row.get("density"),
            _read_exemplars=functools.partial(self._exemplars, number),
        )

    def _exemplars(self, number: int) -> list[FeatureExemplar]:
        path = None if self._workdir is None else self._workdir / sets.OWN_SET / "exemplars.parquet"
        if path is None or not path.is_file():
            return []
        table = exemplar_table.read(path, number, number + 1)
        if "tokens" not in table.column_names:  # of images: the atlas shows those
            return []
        rows = table.filter(pa.compute.equal(table["kind"], "top")).to_pylist()
        return [
            FeatureExemplar(row["study_id"], row["section"], tuple(row["tokens"]), tuple(row["activations"]))
            for row in sorted(rows, key=lambda row: -row["max_activation"])
        ]

    def by_words(self, words: str) -> FoundFeatures:
        """Features whose concept, name or explanation has these words; see `by_explanation` for their order.

        Raises:
          UserError: none has.
        """
        texts = {
            number: row
            | {"explanation": "; ".join(dict.fromkeys(filter(None, (row.get("name"), row.get("explanation")))))}
            | {"max_activation": row.get("max_activation") or 0.0}
            for number, row in self._rows.items()
        }
        concepts = [row for row in self._concepts if row["feature"] in texts]
        catalogue = FeatureCatalogue(texts, concepts, str(self._workdir))
        try:
            return FoundFeatures([self.feature(number) for number in by_explanation(catalogue, re.escape(words))])
        except UserError as error:
            known = [row["concept"] for row in self._concepts] + [row["explanation"] for row in texts.values()]
            kind = "concept, name or explanation with the words"
            raise near.unknown(kind, words, dict.fromkeys(known), self._remedy()) from error

    def by_concept(self, concept: str) -> FoundFeatures:
        """The features that detect a labelled concept best on the training studies, with their F1 on held-out ones.

        Raises:
          UserError: the run has no such concept, or left it out, for the reason that is given.
        """
        found = next((row for row in self._concepts if row["concept"].lower() == concept.lower()), None)
        if found is None:
            left_out = {name.lower(): why for name, why in self._left_out.items()}
            if concept.lower() in left_out:
                raise UserError(f"no feature was looked for that detects {concept!r}: {left_out[concept.lower()]}")
            raise near.unknown("concept", concept, [row["concept"] for row in self._concepts], self._remedy())
        scored = zip((found["feature"], *found["runners_up"]), (found["f1"], *found["runners_up_f1"]), strict=True)
        return FoundFeatures(
            [dataclasses.replace(self.feature(n), concept=found["concept"], concept_f1=f1) for n, f1 in scored]
        )

    def _remedy(self) -> str:
        if not self._rows:
            return "run launch.interpret, which names the features"
        return "choose other words, or find_by_text, which needs no names"
