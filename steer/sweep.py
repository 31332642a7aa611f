"""A sweep: what it needs of the earlier stages, read and checked to fit together."""

import dataclasses
import functools
import hashlib
import pickle
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import ml_collections
import numpy as np

from maira_jax.checkpoint import store
from maira_jax.checkpoint.convert import ModelSection
from maira_jax.errors import UserError
from maira_jax.inputs.image import ImageConfig
from maira_jax.inputs.tokens import Tokenizer
from maira_jax.model.config import Maira2Config
from maira_jax.model.sites import Site
from maira_jax.run import files, processes, storage
from maira_jax.run.config import RunSection
from maira_jax.studies.readers import load_studies, manifest
from maira_jax.studies.study import Study
from sae import formats
from sae.activations.store import HELD_OUT, TRAIN, ActivationStore
from sae.autoencoder import Sae
from sae.saved import load_sae
from steer.config import PriorImage, SteerSection
from steer.methods import MethodInputs
from steer.methods.combination import combination, members
from steer.methods.direction import Direction, make_directions
from steer.methods.learned.kept import KeptEdits
from steer.methods.learned.rewriting import Rewriting
from steer.methods.study_means import StudyMeans
from steer.program.effects import ProgramEffects
from steer.program.prompts import Prompts
from steer.program.sweep_writer import SweepWriter, plan_rows
from steer.selection.catalogue import FeatureCatalogue
from steer.selection.choose import Selected, SelectSize, choose
from steer.selection.rule import EditedModel, SelectionInputs
from steer.selection.target import Target


class SelectedDirections(NamedTuple):
    """What a sweep steers with, and rows of `steer.selection.choose.SCHEMA`: the scores of what it was chosen from."""

    directions: list[Direction]
    scores: list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A sweep that is ready to run.

    Attributes:
      section: the section of the configuration.
      directions: what it steers with.
      writer: the writer of its reports.
      scores: rows of `steer.selection.choose.SCHEMA`, of the features that the directions' were chosen from.
    """

    section: SteerSection
    directions: Sequence[Direction]
    writer: SweepWriter
    scores: Sequence[Mapping[str, Any]] = ()

    @property
    def studies(self) -> Sequence[Study]:
        """The studies that reports are written for."""
        return self.writer.prompts.studies

    @property
    def n_generations(self) -> int:
        """The number of reports."""
        return len(self.studies) * len(self.writer.rows)

    @classmethod
    def load(cls, config: ml_collections.ConfigDict, workdir: Path, shared: Path) -> Self:
        """Reads the earlier stages' results in `workdir`.

        Args:
          config: the whole configuration.
          workdir: the run directory.
          shared: a folder in which the first process of a run keeps the edits that methods learn (a dry run learns
            none), and leaves the directions until the others have read them.

        Raises:
          UserError: a field of `config.steer` is out of range, or an input does not fit the others.
        """
        section = SteerSection.of(config)
        activations = ActivationStore.open(workdir / "activations")
        mesh, weights = RunSection.of(config).mesh, ModelSection.of(config).weights
        params, cfg = store.load(workdir / "model", mesh, rows=section.batch_studies, weights=weights)
        site = edited_site(activations, cfg, section)
        folder = workdir / "model"
        texts, images = Tokenizer.from_dir(folder), ImageConfig.from_dir(folder)
        model = EditedModel(params, cfg, texts, images, site, section.measured)
        kept = KeptEdits(None if section.dry_run else shared)
        directions, scores = _of_first(lambda: _directions(config, section, workdir, activations, model, kept), shared)
        prompts = Prompts.of(_studies(config, section, activations), workdir / "model")
        rows = plan_rows(directions, section.nonzero_strengths, activations.d_model, site)
        return cls(section, directions, SweepWriter.of(params, cfg, prompts, section, config.seed, rows), scores)


def edited_site(activations: ActivationStore, cfg: Maira2Config, section: SteerSection) -> Site:
    """Where features are added: the site whose activations they are of.

    Raises:
      UserError: the tokens of `steer.positions` are not at that site.
    """
    site = Site.parse(str(activations.source["site"]), cfg)
    if site.tower != "language" and section.positions != ("image",):
        raise UserError(f"at {site.name} only images are edited: set steer.positions to image")
    return site


def _of_first(make: Callable[[], SelectedDirections], shared: Path) -> SelectedDirections:
    """The directions that the first process makes: the store is read once, and none differs by a host's rounding."""
    if processes.count() == 1:
        return make()
    path = shared / ".directions.tmp"
    directions = make() if processes.is_first() else SelectedDirections([], [])
    if processes.is_first():
        with files.atomic_path(path) as temporary:
            temporary.write_bytes(pickle.dumps(directions))
    digest = processes.broadcast(files.sha256(path) if processes.is_first() else None)
    if not processes.is_first():
        storage.fetch(path)
        written = path.read_bytes()
        if hashlib.sha256(written).hexdigest() != digest:  # others may write into the folder: nothing else is unpickled
            raise UserError(f"{path} is not what the first process wrote: steer again")
        directions = pickle.loads(written)
    processes.barrier()
    if processes.is_first():
        files.remove(path)
    return directions


def _directions(
    config: ml_collections.ConfigDict,
    section: SteerSection,
    workdir: Path,
    activations: ActivationStore,
    model: EditedModel,
    kept: KeptEdits,
) -> SelectedDirections:
    combined = [number for text in section.combinations for number, _ in members(text)]
    sae, catalogue = _autoencoder(section, workdir, activations, (*section.features, *combined))
    # All features are chosen before anything is measured: a wrong one fails before the pass over the store.
    known = {number: catalogue.target(number) for number in combined}
    targets, scores, n_asked_for = Selected([], [])
    training = functools.cache(lambda: _training(config, activations))
    if section.features or section.concepts or section.match or not section.combinations:
        given = (section.features, section.match, section.concepts)
        size = SelectSize(section.top, section.candidates, section.pool)
        inputs = _selection_inputs(config, section, workdir, activations, model, sae, catalogue, training)
        targets, scores, n_asked_for = choose(catalogue, *given, size, section.select, inputs)
        print(_announced(section, targets, n_asked_for), file=sys.stderr)
        unknown = set(section.concepts) - {target.concept for target in targets}
        if unknown and not (section.features or section.match):
            print(f"steer: no feature is known for {', '.join(sorted(unknown))}", file=sys.stderr)
    rewriting = Rewriting(model, training, section.learn_studies, section.batch_studies, kept)
    measured = MethodInputs.measure(
        sae, section.unit, config.seed, activations, section.measured, section.methods, rewriting
    )
    if section.unit == "residual_norm" and not measured.statistic(StudyMeans).residual_norm:
        raise UserError(
            f"{activations.directory} has no token of steer.positions to measure: choose another steer.unit"
        )
    directions = make_directions(targets, section.methods, measured)
    directions += [combination(text, known, measured) for text in section.combinations]
    if not directions:
        raise UserError("no method of steer.methods can steer these features: add the method 'add'")
    return SelectedDirections(directions, scores)


def _announced(section: SteerSection, targets: Sequence[Target], n_asked_for: int) -> str:
    """What is steered, in words: one line for each feature, with its explanation, and how many others match."""
    lines = [f"{target}: {target.explanation}" if target.explanation else str(target) for target in targets]
    if section.match:
        lines = [f"{len(targets)} of {n_asked_for} features that match (steer.top)", *lines]
    return "\n".join(f"steer: {line}" for line in lines)


def _selection_inputs(
    config: ml_collections.ConfigDict,
    section: SteerSection,
    workdir: Path,
    activations: ActivationStore,
    model: EditedModel,
    sae: Sae,
    catalogue: FeatureCatalogue,
    training: Callable[[], Sequence[Study]],
) -> SelectionInputs:
    """What rules score features by; studies are read, and effects prepared, once a rule asks for them."""

    @functools.cache
    def effects() -> ProgramEffects:
        inputs = MethodInputs.measure(sae, section.unit, config.seed, activations, section.measured, ())
        return ProgramEffects(
            model, workdir / "model", section, inputs, training()[: section.select_studies], config.seed
        )

    w_dec = np.asarray(sae.params["W_dec"])
    return SelectionInputs(catalogue, w_dec, model, training, section.select_studies, effects)


def _training(config: ml_collections.ConfigDict, activations: ActivationStore) -> list[Study]:
    """The studies that the autoencoder was trained on."""
    table = activations.studies.select(["study_id", "split"]).to_pylist()
    train = {row["study_id"] for row in table if row["split"] == TRAIN}
    return [study for study in load_studies(config.studies) if study.study_id in train]


def _autoencoder(
    section: SteerSection, workdir: Path, activations: ActivationStore, named: Sequence[int]
) -> tuple[Sae, FeatureCatalogue]:
    """The autoencoder to steer with, and what is known of its features; `named` are those that the section names."""
    if section.sae:
        source = Path(section.sae).expanduser()
        sae: Sae = formats.load(source)
        catalogue = FeatureCatalogue.measured(sae, activations, named, str(source))
    else:
        source = workdir / "sae"
        sae, catalogue = load_sae(source), FeatureCatalogue.read(workdir, section.set)
    if sae.d_model != activations.d_model:
        raise UserError(
            f"{source} is of width {sae.d_model}, but the activations are of width {activations.d_model}: "
            "choose an autoencoder of these activations"
        )
    return sae, catalogue


def _studies(config: ml_collections.ConfigDict, section: SteerSection, activations: ActivationStore) -> Sequence[Study]:
    if section.manifest:
        found = manifest.read(Path(section.manifest).expanduser())
        if not found:
            raise UserError(f"{section.manifest} holds no study: add some, or leave steer.manifest empty")
    else:
        found = held_out(load_studies(config.studies), activations)
    return with_prior_image(found, section.prior_image)[: section.studies]


def with_prior_image(studies: Sequence[Study], prior_image: PriorImage) -> Sequence[Study]:
    """The studies that are steered, as `steer.prior_image` has them.

    Raises:
      UserError: none is without a prior image.
    """
    if prior_image == "own":
        return studies
    found = [study for study in studies if study.prior_frontal is None and study.frontal is not None]
    if not found:
        raise UserError(f"steer.prior_image is {prior_image}, but every study has a prior image: set it to own")
    if prior_image == "repeated":
        found = [dataclasses.replace(study, prior_frontal=study.frontal) for study in found]
    return found


def held_out(studies: Iterable[Study], activations: ActivationStore, limit: int | None = None) -> list[Study]:
    """The first `limit` studies that the autoencoder was not trained on, in the store's order.

    Raises:
      UserError: the store's held-out studies are not among `studies`, or there are none.
    """
    table = activations.studies.select(["study_id", "split"]).to_pylist()
    wanted = [row["study_id"] for row in table if row["split"] == HELD_OUT][:limit]
    if not wanted:
        raise UserError(f"{activations.directory} holds out no study to steer: raise harvest.held_out_fraction")
    by_id = {study.study_id: study for study in studies}
    missing = [study for study in wanted if study not in by_id]
    if missing:
        raise UserError(
            f"study {missing[0]} of {activations.directory} is not in the studies section: "
            "steer with the studies section that the harvest had"
        )
    return [by_id[study] for study in wanted]
