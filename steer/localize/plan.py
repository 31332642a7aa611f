"""What a run of localize reads and writes, and what that takes."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import ml_collections
import numpy as np

from interp.features.concepts import StudyLabels
from maira_jax.checkpoint import store
from maira_jax.checkpoint.convert import ModelSection
from maira_jax.errors import UserError
from maira_jax.inputs.batches import GenerationRequest, plan_batches, reporting_request
from maira_jax.inputs.tokens import Tokenizer
from maira_jax.model.sites import Site
from maira_jax.reports import labeller
from maira_jax.reports.changes import TargetFindings
from maira_jax.run.config import RunSection
from maira_jax.studies.readers import load_studies
from maira_jax.studies.splits import split_of
from maira_jax.studies.study import Study
from sae.activations.store import HELD_OUT
from sae.saved import load_sae
from steer.config import SteerSection
from steer.localize import writing
from steer.localize.reading import ReadModel
from steer.localize.section import LocalizePoint, LocalizeSection, editing, points_of
from steer.localize.writing import WritingGroup


class LocalizePlan(NamedTuple):
    """What is read and written.

    Attributes:
      section: the section of the configuration.
      steer: the section of the sweeps.
      seed: the seed of splits and resamples.
      points: the sites with their sections.
      studies: the studies that are read.
      labels: the labels of the chosen concepts.
      held_out: which studies are held out, bool [studies].
      requests: their prompts with findings.
    """

    section: LocalizeSection
    steer: SteerSection
    seed: int
    points: list[LocalizePoint]
    studies: list[Study]
    labels: StudyLabels
    held_out: np.ndarray
    requests: list[GenerationRequest]

    @property
    def concepts(self) -> tuple[str, ...]:
        """The concepts."""
        return self.labels.concepts

    def groups(self) -> list[WritingGroup]:
        """The groups of points, with the studies that each writes."""
        own = [study for study, held in zip(self.studies, self.held_out, strict=True) if held]
        boxed = []
        for concept in self.concepts:
            there = [
                study for study in own if study.frontal is not None and concept in {box.name for box in study.boxes}
            ]
            boxed += [(study, concept) for study in there[: self.section.write_studies]]
        section_of = {point.section: editing(point.section, self.section, self.steer) for point in self.points}
        return writing.groups_of(self.points, section_of, own[: self.section.write_studies], boxed)


def budget(plan: LocalizePlan) -> dict[str, int]:
    """The passes of the model over studies, and the reports that are written."""
    section, reports, again = plan.section, 0, 0
    for group in plan.groups():
        written = 0 if group.patches else len(plan.concepts) * len(section.strengths)
        rows = 1 + len(group.points) * (written + group.section.edits_prompt)
        reports += rows * len(group.studies)
        again += rows * len(group.studies) * group.section.edits_prompt
    passes = len(plan_batches(plan.requests, section.batch_size))
    return {"studies_read": len(plan.studies), "passes": passes, "reports": reports, "prompts_read_again": again}


def load(config: ml_collections.ConfigDict, workdir: Path) -> tuple[ReadModel, LocalizePlan]:
    """The model, the autoencoder where the section asks for it, and what is read and written.

    Raises:
      UserError: a site, a study or a concept cannot be used.
    """
    section, model_dir = LocalizeSection.of(config), workdir / "model"
    mesh, weights = RunSection.of(config).mesh, ModelSection.of(config).weights
    params, cfg = store.load(model_dir, mesh, rows=section.batch_size, weights=weights)
    sae = load_sae(workdir / "sae") if section.autoencoder else None
    trained = None if sae is None else (Site.parse(str(sae.meta["source"]["site"]), cfg), sae)
    model = ReadModel(params, cfg, model_dir, trained)
    studies = list(load_studies(config.studies))[: section.studies]
    split = [split_of(study.patient_id, section.held_out_fraction, config.seed) for study in studies]
    held_out = np.array(split) == HELD_OUT
    labels = chosen_labels(section, studies, held_out)
    tokenizer = Tokenizer.from_dir(model_dir)
    requests = [reporting_request(study, tokenizer, findings=study.findings) for study in studies]
    points, steer = points_of(section, cfg), SteerSection.of(config)
    return model, LocalizePlan(section, steer, config.seed, points, studies, labels, held_out, requests)


def chosen_labels(section: LocalizeSection, studies: Sequence[Study], held_out: np.ndarray) -> StudyLabels:
    """The labels of the concepts that are read and written, in the order in which they were chosen.

    Raises:
      UserError: a named concept cannot be measured, or none can.
    """
    labels = StudyLabels.of([study.labels for study in studies])
    spoken = labeller.parse("").concepts
    fewest = {
        name: min(
            int((labels.known[:, c] & (labels.value[:, c] == value) & (held_out == split)).sum())
            for value in (False, True)
            for split in (False, True)
        )
        for c, name in enumerate(labels.concepts)
        if name in spoken
    }
    enough = [name for name in fewest if fewest[name] >= section.min_studies]
    for name in section.concepts:
        if name not in enough:
            raise UserError(
                f"localize.concepts names {name!r}, which too few studies are labelled with or the labeller does "
                f"not know: choose from {', '.join(enough) or 'none'}, or lower localize.min_studies"
            )
    about = [name for name in enough if TargetFindings.of(name).name not in ("", "*")]
    chosen = section.concepts or sorted(about, key=lambda name: -fewest[name])[: section.top]
    if not chosen:
        raise UserError(
            f"no concept about a finding has {section.min_studies} studies with and without it on both sides of "
            "localize.held_out_fraction: raise localize.studies, or lower localize.min_studies"
        )
    columns = [labels.concepts.index(name) for name in chosen]
    return StudyLabels(tuple(chosen), labels.value[:, columns], labels.known[:, columns])
