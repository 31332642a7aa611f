"""A session with a model, for notebooks: read studies, look at features, steer, and compare."""

import dataclasses
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, SupportsIndex, TypeAlias

import jax
import numpy as np
import pyarrow as pa

from maira_jax.errors import UserError
from maira_jax.inputs.batches import GenerationRequest
from maira_jax.inputs.tokens import FRONTAL, token_filter_mask
from maira_jax.model.config import Maira2Config
from maira_jax.model.sites import Site
from maira_jax.studies.study import Study
from sae.autoencoder import Sae
from steer.config import GENERATED, PARTS, SteerSection
from steer.methods.intervention import FeatureClamp, Intervention
from steer.session import near, token_table
from steer.session.active_features import ActiveFeatures, encoded
from steer.session.features import Feature, FoundFeatures, NamedFeatures
from steer.session.loaded_model import EditFunction, LoadedModel
from steer.session.reports import Report, ReportDifference
from steer.session.run_studies import RunStudies

StudyLike: TypeAlias = str | Study | Report
"""A study by its id, a study, or a report that the model wrote of a study."""
Steering: TypeAlias = SupportsIndex | Mapping[SupportsIndex, float] | np.ndarray | jax.Array | EditFunction
"""A feature, features with their strengths, a direction [d_model], or a function of the residual stream."""


@dataclasses.dataclass(frozen=True)
class SiteActivations:
    """The activations of one site in one study.

    Attributes:
      study: the study.
      site: the name of the site.
      array: float32 [rows, d].
      tokens: the token or patch that each row is of, see `token_table.SCHEMA`.
    """

    study: Study
    site: str
    array: np.ndarray
    tokens: pa.Table

    def __repr__(self) -> str:
        rows, width = self.array.shape
        return f"<{rows} rows of width {width} at {self.site} in study {self.study.study_id}>"


@dataclasses.dataclass(frozen=True)
class Session:
    """A model that stays loaded, with an autoencoder and what is known of its features.

    The first call of `report` or `steer` compiles; later ones run the same program, whatever the study, the features
    and the strengths are. Other tokens to edit (`at`), another function, a site in another tower, and a study that is
    longer than all before it are compiled once more.

    Attributes:
      model: the model.
      folder: the run directory or the checkpoint.
      studies: the studies of the run; of a checkpoint there are none.
      max_new_tokens: the largest number of tokens of a report.
      positions: which tokens `steer` edits where it is not told: the run's `steer.positions`.
    """

    model: LoadedModel
    folder: Path
    studies: RunStudies
    max_new_tokens: int
    positions: tuple[str, ...]
    _sae: Sae | None
    _site: str
    _names: NamedFeatures

    @property
    def study_ids(self) -> list[str]:
        """The studies of the run."""
        return self.studies.ids

    @property
    def held_out_ids(self) -> list[str]:
        """The studies of the run that the autoencoder was not trained on."""
        return self.studies.held_out_ids

    @property
    def sae(self) -> Sae:
        """The autoencoder.

        Raises:
          UserError: there is none.
        """
        if self._sae is None:
            raise UserError(
                f"{self.folder} has no autoencoder: train one with launch.train, or give a file to "
                "open_checkpoint(..., sae=FILE)"
            )
        return self._sae

    @property
    def site(self) -> Site:
        """The site that the autoencoder is of."""
        return Site.parse(self._site, self.model.cfg)

    def study(self, study: StudyLike) -> Study:
        """A study of the run by its id; a study or a report's study as it is.

        Raises:
          UserError: the run has no such study.
        """
        if isinstance(study, Report):
            return study.study
        found = study if isinstance(study, Study) else self.studies.get(study)
        images = {name: getattr(found, name) for name in ("frontal", "lateral", "prior_frontal")}
        texts = {name: image for name, image in images.items() if isinstance(image, str)}
        paths: dict[str, Any] = {name: Path(image).expanduser() for name, image in texts.items()}
        return dataclasses.replace(found, **paths) if paths else found

    def report(self, study: StudyLike, *, grounded: bool = False) -> Report:
        """Writes the report of a study, with the most likely token at each step.

        Args:
          study: a study or its id.
          grounded: whether findings come with boxes.

        Raises:
          UserError: the study does not exist, cannot be prompted for, or an image cannot be read.
        """
        found, site = self.study(study), Site.last(self.model.cfg)
        request = self.model.request(found, grounded=grounded)
        (text,) = self.model.write(request, self.model.edits(None, 0.0, site), site, self._section((GENERATED,)), 1)
        return Report.of(found, text.text, text.finished, grounded)

    def read(self, study: StudyLike, site: str | None = None) -> SiteActivations:
        """The activations of a site while the model reads a study.

        Args:
          study: a study or its id, whose findings are read after its prompt where it has any; of a report, its text.
          site: a site's name, see `maira_jax.model.sites`; None: that of the autoencoder.

        Raises:
          UserError: there is no such study or site, or the study has no image and the site is of images.
        """
        request, place = self._read_request(study), self.site if site is None else self._parsed(site)
        if place.tower == "language":
            table = token_table.of_sequence(request.encoded, self.model.tokenizer)
        elif request.images:
            table = token_table.of_images(place, len(request.images), self.model.cfg)
        else:
            raise UserError(f"study {self.study(study).study_id} has no image: {place.name} is a site of images")
        array = self.model.read(request, place)
        return SiteActivations(self.study(study), place.name, array.reshape(-1, array.shape[-1]), table)

    def _read_request(self, study: StudyLike) -> GenerationRequest:
        found = self.study(study)
        return self.model.request(found, study.text if isinstance(study, Report) else found.findings)

    def _parsed(self, name: str) -> Site:
        try:
            return Site.parse(name, self.model.cfg)
        except UserError as error:
            raise near.unknown("site", name, _site_names(self.model.cfg), "choose one of them") from error

    def features(self, study: StudyLike) -> ActiveFeatures:
        """The features that are active in a study, strongest first, as `read` reads it.

        Raises:
          UserError: as `read`, or there is no autoencoder.
        """
        sae, found = self.sae, self.read(study)
        token_filter = sae.meta.get("source", {}).get("token_filter", "paper")
        counted = np.ones(len(found.array), bool)
        if self.site.tower == "language":
            counted = token_filter_mask(self._read_request(study).encoded.kinds, token_filter)
        return ActiveFeatures(found.study, found.tokens, encoded(sae, found.array), counted, self._names)

    def feature(self, feature: SupportsIndex) -> Feature:
        """A feature by its number, with its name, concept and exemplars.

        Raises:
          UserError: there is no such feature.
        """
        if isinstance(feature, str):
            raise UserError(
                f"a feature is asked for by its number, not {feature!r}: find_by_words({feature!r}) finds it"
            )
        return self._names.feature(operator.index(feature))

    def find_by_words(self, words: str) -> FoundFeatures:
        """Features whose concept, name or explanation has these words; those of a concept first, by F1.

        Raises:
          UserError: none has; the nearest names are listed.
        """
        return self._names.by_words(words)

    def find_by_concept(self, concept: str) -> FoundFeatures:
        """The features that detect a labelled concept best on the training studies, with their F1 on held-out ones.

        Raises:
          UserError: the run has no such concept; the nearest are listed.
        """
        return self._names.by_concept(concept)

    def find_by_text(self, text: str) -> ActiveFeatures:
        """The features that are strongest on a text of your own, which the model reads as the findings of a report."""
        return self.features(Study("text", "text", frontal=None, findings=text)).on_section("findings")

    def steer(
        self,
        study: StudyLike,
        what: Steering,
        strength: float = 1.0,
        *,
        at: str | Sequence[str] | None = None,
        method: Literal["add", "clamp"] = "add",
        unit: Literal["max_activation", "raw"] = "max_activation",
        site: str | None = None,
        grounded: bool = False,
    ) -> ReportDifference:
        """Writes the report of a study twice, as it is and with the residual stream edited.

        Args:
          study: a study or its id.
          what: what is done to the residual stream x: features (one, or a dictionary of features with a strength each),
            a direction (float [d_model], which is added), or a function from x [batch, positions, d_model] to an array
            of the same shape.
          strength: multiplies what is done; below 0 steers away. At a site, x + strength * (function(x) - x).
          at: which tokens are edited: "generated", parts of the prompt ("image", "frontal", "indication", "technique",
            "comparison", "prior_report", "boilerplate", "bos"), "prompt" for the whole of it, or several of these;
            None: `positions`.
          method: "add" adds the features' decoder rows; "clamp" sets features, to 0 at a strength of 0.
          unit: of the strength of features: each one's largest activation over the run's studies, or 1.
          site: where; None: the site of the autoencoder.
          grounded: whether findings come with boxes.

        Raises:
          UserError: a study, feature, site or part of the prompt does not exist, or the direction is of another width.
        """
        found, place = self.study(study), self.site if site is None else self._parsed(site)
        section = self._section(self.positions if at is None else (at,) if isinstance(at, str) else tuple(at))
        if place.tower != "language" and section.positions != ("image",):
            raise UserError(f"at {place.name} only images are edited: say at='image'")
        concept, title, change, strength = self._change(what, strength, method, unit, place)
        edits = self.model.edits(change, strength, place)
        before, after = self.model.write(self.model.request(found, grounded=grounded), edits, place, section)
        reports = [Report.of(found, text.text, text.finished, grounded) for text in (before, after)]
        return ReportDifference(reports[0], reports[1], concept, f"{title} at {', '.join(section.positions)}")

    def _section(self, at: tuple[str, ...]) -> SteerSection:
        """The section of a sweep that edits these tokens."""
        known = (GENERATED, FRONTAL, *PARTS)
        for name in at:
            if name not in known:
                raise near.unknown("part of a prompt", name, known, "choose one of them")
        return SteerSection.parse({"positions": at, "max_new_tokens": self.max_new_tokens})

    def _change(
        self, what: Steering, strength: float, method: str, unit: str, site: Site
    ) -> tuple[str, str, Intervention | EditFunction, float]:
        """The concept that is meant to change, what is done in words, the change, and the strength to do it at."""
        if isinstance(what, np.ndarray | jax.Array):
            what = np.asarray(what, np.float32)
            width = self.model.cfg.vision.hidden_size if site.tower == "vision" else self.model.cfg.text.hidden_size
            if what.shape != (width,):
                raise UserError(
                    f"the direction has the shape {what.shape}, but {site.name} is of width {width}: change it"
                )
            return "", f"a direction added, strength {strength:g},", Intervention.adding(what, _norm(what)), strength
        if callable(what):
            return "", f"{getattr(what, '__name__', 'a function')}, strength {strength:g},", what, strength
        if site != self.site:
            raise UserError(
                f"features are of {self.site.name}, not of {site.name}: leave out site, or give a direction"
            )
        chosen = what if isinstance(what, Mapping) else {what: 1.0}
        if not chosen:
            raise UserError("no feature is to be steered: give at least one")
        strengths = {self.feature(feature): strength * value for feature, value in chosen.items()}
        return (*self._words(strengths, method), self._intervention(strengths, method, unit), 1.0)

    def _words(self, strengths: Mapping[Feature, float], method: str) -> tuple[str, str]:
        strongest = max(strengths, key=lambda feature: abs(strengths[feature]))
        listed = "; ".join(f"{feature.title}, strength {value:g}" for feature, value in strengths.items())
        return strongest.concept, f"{'added' if method == 'add' else 'set'}: {listed};"

    def _intervention(self, strengths: Mapping[Feature, float], method: str, unit: str) -> Intervention:
        sizes = {feature.number: value * self._unit(feature, unit) for feature, value in strengths.items()}
        if method == "clamp":
            return Intervention.setting(FeatureClamp.of_features(self.sae, sizes), 1.0)
        if method != "add":
            raise near.unknown("method", method, ("add", "clamp"), "choose one of them")
        rows = np.asarray(self.sae.params["W_dec"])[list(sizes)]  # [features, d_model]
        vector = np.asarray(list(sizes.values()), np.float32) @ rows  # [d_model]
        return Intervention.adding(vector, _norm(vector))

    def _unit(self, feature: Feature, unit: str) -> float:
        if unit == "raw":
            return 1.0
        if unit != "max_activation":
            raise near.unknown("unit", unit, ("max_activation", "raw"), "choose one of them")
        if feature.max_activation is None:
            raise UserError(
                f"the largest activation of feature {feature.number} is not known here: say unit='raw' and give the "
                "strength in the residual stream's own units, or run launch.interpret"
            )
        return feature.max_activation

    def __repr__(self) -> str:
        sae = "no autoencoder" if self._sae is None else f"{self._sae.n_features} features at {self._site}"
        return f"<Session of {self.folder}: {sae}, {len(self.study_ids)} studies>"


def _site_names(cfg: Maira2Config) -> list[str]:
    blocks = (("vision", cfg.vision.num_hidden_layers), ("language", cfg.text.num_hidden_layers))
    names = ["vision.embed", "vision.output", "language.embed"]
    names += [f"projector.{i}" for i in range(cfg.projector_n_layers)]
    return names + [f"{tower}.{i}.{at}" for tower, n in blocks for i in range(n) for at in ("resid_mid", "resid_post")]


def _norm(vector: np.ndarray) -> float:
    return float(np.linalg.norm(vector))
