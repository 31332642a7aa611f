"""The stage `pretrain`: a small model of MAIRA-2's architecture, trained from scratch, as a Hugging Face checkpoint."""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from maira_jax.checkpoint import convert
from maira_jax.errors import UserError
from maira_jax.inputs.image import ImageConfig
from maira_jax.inputs.prompt import IMAGE_TOKEN, reporting_prompt
from maira_jax.inputs.tokens import Tokenizer
from maira_jax.model import maira2
from maira_jax.model.config import Maira2Config, to_hf_dict
from maira_jax.model.layers import Params
from maira_jax.phantom.accuracy import accuracy_of_writer, checkpoint_writer
from maira_jax.phantom.grounding_accuracy import grounding_accuracy
from maira_jax.phantom.pretraining import report_phase, tokenizer_files, vision_phase
from maira_jax.phantom.pretraining.batch_streams import ImageBatchStream, ReportBatchStream, UpdateStream
from maira_jax.phantom.pretraining.recipe import RECIPES, PhaseSchedule, Recipe, ReportPhase, TaskBatch, model_config
from maira_jax.phantom.pretraining.study_source import StudySource, study_source
from maira_jax.phantom.pretraining.training_loop import fit
from maira_jax.run import files
from maira_jax.run.config import Section, setting
from maira_jax.run.stages.stage import Stage
from maira_jax.studies.study import Study

CHECKPOINT = "checkpoint"  # the result's folder, inside the stage's
_DTYPE = "bfloat16"  # of the checkpoint; training is in float32
_STUDIES_OF_A_PHASE = 1 << 16  # each phase begins with studies that the ones before have not reached


class PretrainSection(Section, name="pretrain"):
    """How `launch.pretrain` trains a small model of MAIRA-2's architecture from scratch."""

    recipe: str = setting("phantom", "Sizes of the model and phases of its training.", choices=RECIPES.names)
    tokenizer_model: str = setting("", "Sentencepiece file; empty: a tokenizer is trained on the studies.")
    n_held_out: int = setting(500, "Phantom studies that the model is evaluated on after the training.", ge=1)
    checkpoint_every: int = setting(
        200, "Steps between two checkpoints, from which training resumes.", ge=1, decides=False
    )


def run(config: ml_collections.ConfigDict, workdir: Path) -> Mapping[str, Any]:
    """Trains a model on `studies` by a recipe, and evaluates its reports where the truth of the studies is known.

    Writes `checkpoint/`, `losses.json` and, on the phantom, `accuracy.json` into `workdir/pretrain`.

    Raises:
      UserError: the studies and the recipe do not fit together.
    """
    section = PretrainSection.of(config)
    recipe = RECIPES.get(section.recipe)
    identity = {
        "seed": config.seed,
        "pretrain": section.deciding(),
        "recipe": dataclasses.asdict(recipe),
        "studies": config.studies.to_dict(),
        "held_out_fraction": config.harvest.held_out_fraction,
    }
    with Stage(workdir, "pretrain", identity, computing=section.computing(), config=config) as stage:
        if stage.finished:
            return stage.manifest["counts"]
        source = functools.partial(study_source, config, recipe.seed, recipe.vision.image_size, section.n_held_out)
        studies, directory = source(), stage.dir / CHECKPOINT
        directory.mkdir(exist_ok=True)
        cfg = _write_companions(section, recipe, directory, studies)
        image_cfg, tokenizer = ImageConfig.from_dir(directory), Tokenizer.from_dir(directory)

        def stream(phase: ReportPhase, batch: TaskBatch, first: int = 0) -> ReportBatchStream:
            return ReportBatchStream(source(phase.varied_wording), tokenizer, image_cfg, phase, batch, first)

        trainer = _PhaseTrainer(recipe, cfg, stage.dir, section.checkpoint_every)
        images = ImageBatchStream(studies, image_cfg, recipe.vision_phase.batch_size)
        vision_params, history = trainer.vision(images, len(studies.labels))
        params, losses = maira2.init(cfg, jax.random.key(recipe.seed + 1)) | vision_params, {"vision": history}
        for number, phase in enumerate(recipe.report_phases):
            batches = [stream(phase, batch, number * _STUDIES_OF_A_PHASE) for batch in phase.batches]
            params, losses[phase.name] = trainer.reports(phase, UpdateStream(batches), params)
        files.write_json(stage.dir / "losses.json", losses)
        stored = jax.tree.map(lambda leaf: leaf.astype(jnp.dtype(_DTYPE)), params)
        convert.to_hf(stored, cfg, directory, convert.DTYPES[_DTYPE])

        last = recipe.report_phases[-1]
        exact = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), stored)
        loss = validation_loss(exact, cfg, stream(last, last.reports), last.max_findings)
        if config.studies.source == "phantom":
            files.write_json(stage.dir / "accuracy.json", _accuracy(directory, studies.held_out, last))
        counts = _counts(recipe, params, len(studies.held_out), loss)
        stage.finish(counts)
        return counts


def _accuracy(directory: Path, studies: Sequence[Study], phase: ReportPhase) -> dict[str, Any]:
    """What held-out studies say of a checkpoint, as JSON; its tables are printed."""
    writer = checkpoint_writer(directory, max(batch.max_findings for batch in phase.batches))
    table, reports = accuracy_of_writer(writer, studies)
    print(table)
    found: dict[str, Any] = {"rows": table.rows, "reports": reports}
    if phase.further:
        grounded, texts = grounding_accuracy(writer, studies)
        print(grounded)
        found |= {"grounding": dataclasses.asdict(grounded), "grounded_reports": texts}
    return found


def validation_loss(params: Params, cfg: Maira2Config, stream: ReportBatchStream, n_tail: int) -> float:
    """Mean cross-entropy per token of the held-out studies' findings, in nats.

    Raises:
      UserError: no held-out study fits into the stream's lengths.
    """
    total, count = 0.0, 0.0
    for batch in stream.held_out():
        value, number = report_phase.evaluate(params, cfg, batch, n_tail)
        total, count = total + float(value), count + float(number)
    if not count:
        raise UserError("no held-out study's findings fit: raise the lengths of the recipe's last phase")
    return total / count


def _counts(recipe: Recipe, params: Params, n_held_out: int, loss: float) -> dict[str, Any]:
    phases = recipe.report_phases
    return {
        "parameters": sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)),
        "training_images": recipe.vision_phase.steps * recipe.vision_phase.batch_size,
        "training_studies": sum(phase.schedule.steps * batch.n_rows for phase in phases for batch in phase.batches),
        "held_out_studies": n_held_out,
        "validation_loss_nats_per_token": round(loss, 6),
        "validation_perplexity": round(float(np.exp(loss)), 4),
    }


def _write_companions(section: PretrainSection, recipe: Recipe, directory: Path, studies: StudySource) -> Maira2Config:
    """Writes tokenizer files, `config.json` and `preprocessor_config.json`, as a MAIRA-2 checkpoint has them."""
    if section.tokenizer_model:
        n_vocabulary = tokenizer_files.from_sentencepiece(Path(section.tokenizer_model), directory)
    else:
        n_vocabulary = recipe.n_vocabulary
        # Prompts included, so that the instructions' words become tokens too.
        corpus = [
            text
            for study in studies.studies(0, recipe.n_corpus)
            for text in (reporting_prompt(study).text.replace(IMAGE_TOKEN, " "), study.findings or "")
        ]
        tokenizer_files.from_corpus(corpus, n_vocabulary, directory)
    cfg = model_config(recipe.vision, recipe.language, n_vocabulary)
    files.write_json(directory / "config.json", to_hf_dict(cfg))
    size = cfg.vision.image_size
    preprocessor = {
        "crop_size": {"height": size, "width": size},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5307] * 3,
        "image_processor_type": "BitImageProcessor",
        "image_std": [0.2583] * 3,
        "processor_class": "Maira2Processor",
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": size},
    }
    files.write_json(directory / "preprocessor_config.json", preprocessor)
    return cfg


@dataclasses.dataclass(frozen=True)
class _PhaseTrainer:
    """Runs the phases of a recipe, with their checkpoints in folders of `directory`."""

    recipe: Recipe
    cfg: Maira2Config
    directory: Path
    checkpoint_every: int

    def vision(self, stream: ImageBatchStream, n_labels: int) -> tuple[Params, list[list[float]]]:
        """Trains vision tower and projector; returns them and the history of the loss."""
        schedule = self.recipe.vision_phase
        optimiser = _optimiser(schedule, self.recipe.weight_decay)
        params_key, directions_key = jax.random.split(jax.random.key(self.recipe.seed))
        params = vision_phase.init(self.cfg, params_key)
        directions = vision_phase.directions(self.cfg, n_labels, directions_key)

        def step(state: Any, batch: Any) -> tuple[Any, jax.Array]:
            *state, loss = vision_phase.step(*state, directions, *batch, cfg=self.cfg, optimiser=optimiser)
            return state, loss

        state, history = self._fit("vision", [params, optimiser.init(params)], stream, step, schedule)
        return state[0], history

    def reports(self, phase: ReportPhase, stream: UpdateStream, params: Params) -> tuple[Params, list[list[float]]]:
        """Trains all parts that are not frozen; returns the model and the history of the loss."""
        optimiser = _optimiser(phase.schedule, self.recipe.weight_decay)
        frozen = {part: params[part] for part in phase.frozen}
        params = {part: tree for part, tree in params.items() if part not in frozen}

        n_tails = [batch.max_findings for batch in phase.batches]

        def step(state: Any, batches: Any) -> tuple[Any, jax.Array]:
            trained, moments = state
            *state, loss = report_phase.step(
                trained, moments, frozen, batches, cfg=self.cfg, optimiser=optimiser, n_tails=n_tails
            )
            return state, loss

        state, history = self._fit(phase.name, [params, optimiser.init(params)], stream, step, phase.schedule)
        return state[0] | frozen, history

    def _fit(self, name: str, state: Any, stream: Any, step: Any, schedule: PhaseSchedule) -> Any:
        return fit(self.directory / name, state, stream, step, schedule.steps, self.checkpoint_every, f"{name} phase")


@functools.cache
def _optimiser(schedule: PhaseSchedule, weight_decay: float) -> optax.GradientTransformation:
    """AdamW with a clipped gradient; only matrices decay."""
    peak = schedule.learning_rate
    rate = optax.warmup_cosine_decay_schedule(0.0, peak, schedule.warmup, schedule.steps, 0.02 * peak)

    def matrices(params: Params) -> Params:
        return jax.tree.map(lambda leaf: leaf.ndim > 1, params)

    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(rate, b1=0.9, b2=0.98, weight_decay=weight_decay, mask=matrices),
    )
