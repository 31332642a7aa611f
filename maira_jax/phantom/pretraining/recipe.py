"""How the phantom's models are trained: sizes, phases and lengths, as recipes with names.

`phantom` gives the model that ships with the package, and `nih_iu` one for NIH chest X-rays and Indiana University
reports. A module that a configuration file imports can register another.
"""

import dataclasses
from enum import StrEnum

from maira_jax.model.config import Maira2Config, TextConfig, VisionConfig
from maira_jax.phantom.pretraining.tokenizer_files import ADDED_TOKENS
from maira_jax.run.registry import Registry


@dataclasses.dataclass(frozen=True)
class VisionSize:
    """Sizes of the vision tower.

    Attributes:
      width: residual width.
      layers: number of blocks.
      heads: attention heads of a block.
      patch_size, image_size: sides of a patch and of the image, in pixels.
    """

    width: int
    layers: int
    heads: int
    patch_size: int
    image_size: int


@dataclasses.dataclass(frozen=True)
class LanguageSize:
    """Sizes of the language model.

    Attributes:
      width: residual width.
      mlp_width: hidden width of a block's MLP.
      layers: number of blocks.
      heads: attention heads of a block.
    """

    width: int
    mlp_width: int
    layers: int
    heads: int


@dataclasses.dataclass(frozen=True)
class PhaseSchedule:
    """Updates of one phase. The learning rate rises linearly, then falls to 2 % of its peak along a cosine.

    Attributes:
      steps: number of updates.
      batch_size: examples in an update.
      learning_rate: peak learning rate.
      warmup: updates until the peak.
    """

    steps: int
    batch_size: int
    learning_rate: float
    warmup: int


class Task(StrEnum):
    """What a model learns to write of a study."""

    REPORT = "report"
    GROUNDED_REPORT = "grounded_report"
    LOCATION = "location"  # the boxes of one sentence, in the frontal image


@dataclasses.dataclass(frozen=True)
class TaskBatch:
    """The part of every update that one task has.

    Attributes:
      task: what is learned.
      n_rows: number of studies.
      lengths: padded lengths in tokens that the batch may have; longer studies are skipped.
      max_findings: tokens that are written, end token included; studies of which more is to be written are skipped.
    """

    task: Task
    n_rows: int
    lengths: tuple[int, ...]
    max_findings: int


@dataclasses.dataclass(frozen=True)
class ReportPhase:
    """One phase of learning to write reports.

    Attributes:
      name: name of the phase, and of its folder.
      schedule: number, size and learning rate of its updates.
      lengths: padded lengths in tokens that a batch may have; longer studies are skipped.
      max_findings: tokens of the findings, end token included; studies with longer findings are skipped.
      bare_prompt: whether a prompt is its images alone, without instructions and without the prior report.
      image_counts: studies with one of these numbers of images are used; empty: all studies.
      varied_wording: whether the phantom's reports word the same findings differently from study to study.
      further: batches of other tasks, of studies with `grounded_findings`, that every update has too.
      frozen: parts of the model that the phase leaves unchanged.

    Raises:
      ValueError: prompts are bare and ask for grounded reports, which only the instructions tell from others.
    """

    name: str
    schedule: PhaseSchedule
    lengths: tuple[int, ...]
    max_findings: int
    bare_prompt: bool = False
    image_counts: tuple[int, ...] = ()
    varied_wording: bool = True
    further: tuple[TaskBatch, ...] = ()
    frozen: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.bare_prompt and any(batch.task == Task.GROUNDED_REPORT for batch in self.further):
            raise ValueError(f"a grounded report needs its instructions, and the prompts of {self.name} are bare")

    @property
    def reports(self) -> TaskBatch:
        """The batch of reports that every update has."""
        return TaskBatch(Task.REPORT, self.schedule.batch_size, self.lengths, self.max_findings)

    @property
    def batches(self) -> tuple[TaskBatch, ...]:
        """All batches of an update."""
        return self.reports, *self.further


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that decides how a model is trained, except for the studies.

    Attributes:
      vision, language: sizes of the two towers.
      vision_phase: updates of the vision tower and the projector, before any report is written.
      report_phases: the phases of learning to write reports, in their order; the last also gives the lengths with
        which held-out studies are evaluated.
      n_vocabulary: tokens of a trained tokenizer, not counting MAIRA-2's 207 added ones.
      n_corpus: studies that the tokenizer is trained on.
      weight_decay: decay of the weight matrices.
      seed: seed of the initial parameters and of the phantom's training studies.
    """

    vision: VisionSize
    language: LanguageSize
    vision_phase: PhaseSchedule
    report_phases: tuple[ReportPhase, ...]
    n_vocabulary: int
    n_corpus: int
    weight_decay: float = 0.02
    seed: int = 0


RECIPES: Registry[Recipe] = Registry("pretrain.recipe")

# A batch with the whole prompt is padded to one of these lengths.
_FULL_PROMPT_LENGTHS = (144, 176, 208, 280)

# The first words need little of what the vision phase has taught; the rest would be forgotten meanwhile.
_TOWER = ("vision", "projector")

RECIPES.register("phantom")(
    Recipe(
        vision=VisionSize(width=128, layers=4, heads=4, patch_size=28, image_size=112),
        language=LanguageSize(width=128, mlp_width=352, layers=6, heads=4),
        vision_phase=PhaseSchedule(steps=1800, batch_size=64, learning_rate=2e-3, warmup=50),
        report_phases=(
            # What a word means in an image: one image and its findings, equal findings always worded equally. With
            # nothing to guess, few studies suffice.
            ReportPhase(
                name="one_image",
                schedule=PhaseSchedule(steps=1500, batch_size=16, learning_rate=2e-3, warmup=100),
                lengths=(56, 72, 88, 112),
                max_findings=96,
                bare_prompt=True,
                image_counts=(1,),
                varied_wording=False,
                frozen=_TOWER,
            ),
            # What differs between the current and the prior image.
            ReportPhase(
                name="prior_image",
                schedule=PhaseSchedule(steps=2200, batch_size=16, learning_rate=1.5e-3, warmup=100),
                lengths=(72, 96, 120, 160),
                max_findings=128,
                bare_prompt=True,
                image_counts=(1, 2),
                varied_wording=False,
                frozen=_TOWER,
            ),
            # The whole prompt, with the same wording as before.
            ReportPhase(
                name="full_prompt",
                schedule=PhaseSchedule(steps=700, batch_size=16, learning_rate=1.5e-3, warmup=100),
                lengths=_FULL_PROMPT_LENGTHS,
                max_findings=136,
                varied_wording=False,
                frozen=_TOWER,
            ),
            # The wording of real reports, which varies.
            ReportPhase(
                name="varied_wording",
                schedule=PhaseSchedule(steps=1000, batch_size=16, learning_rate=1.5e-3, warmup=100),
                lengths=_FULL_PROMPT_LENGTHS,
                max_findings=136,
                frozen=_TOWER,
            ),
            # The same at a lower rate: comparisons of sides and sizes suffer from the change of wording, and recover.
            ReportPhase(
                name="refinement",
                schedule=PhaseSchedule(steps=1100, batch_size=16, learning_rate=1e-3, warmup=100),
                lengths=_FULL_PROMPT_LENGTHS,
                max_findings=136,
                frozen=_TOWER,
            ),
            # Boxes, together with reports, so that nothing is forgotten. They need the image to a fraction of a patch,
            # which no label does: the vision tower learns on.
            ReportPhase(
                name="grounding",
                schedule=PhaseSchedule(steps=900, batch_size=16, learning_rate=1e-3, warmup=50),
                lengths=_FULL_PROMPT_LENGTHS,
                max_findings=136,
                further=(
                    TaskBatch(Task.GROUNDED_REPORT, n_rows=6, lengths=(352, 424), max_findings=200),
                    TaskBatch(Task.LOCATION, n_rows=10, lengths=(144, 168), max_findings=40),
                ),
            ),
        ),
        n_vocabulary=960,
        n_corpus=2000,
    )
)


RECIPES.register("nih_iu")(
    Recipe(
        vision=VisionSize(width=128, layers=4, heads=4, patch_size=28, image_size=224),
        language=LanguageSize(width=160, mlp_width=432, layers=6, heads=5),
        vision_phase=PhaseSchedule(steps=300, batch_size=32, learning_rate=5e-4, warmup=50),
        report_phases=(
            # Findings written from labels, and radiologists' reports without images, in one phase. The labels are few
            # and say less than the reports, so that the vision tower learns from both.
            ReportPhase(
                name="reports",
                schedule=PhaseSchedule(steps=800, batch_size=24, learning_rate=1.5e-3, warmup=100),
                lengths=(112, 144, 176, 256),
                max_findings=160,
            ),
        ),
        n_vocabulary=2500,
        n_corpus=8000,  # about two passes over the studies
    )
)

#: Added tokens that precede `<image>`.
_ADDED_BEFORE_IMAGE = ADDED_TOKENS.index("<image>")


def model_config(vision: VisionSize, language: LanguageSize, n_vocabulary: int) -> Maira2Config:
    """MAIRA-2's architecture with these sizes, and with `n_vocabulary` tokens before the added ones."""
    return Maira2Config(
        VisionConfig(
            vision.width, vision.layers, vision.heads, 4 * vision.width, vision.patch_size, vision.image_size, 1e-6
        ),
        TextConfig(
            vocab_size=n_vocabulary + len(ADDED_TOKENS),
            hidden_size=language.width,
            intermediate_size=language.mlp_width,
            num_hidden_layers=language.layers,
            num_attention_heads=language.heads,
            num_key_value_heads=language.heads,
            head_dim=language.width // language.heads,
            rms_norm_eps=1e-5,
            rope_theta=10000.0,
            rope_factor=1.5,
        ),
        image_token_id=n_vocabulary + _ADDED_BEFORE_IMAGE,
        projector_n_layers=4,
    )
