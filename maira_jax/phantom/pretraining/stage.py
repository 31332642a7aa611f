"""The stage `pretrain`: a small model of MAIRA-2's architecture, trained from scratch, as a Hugging Face checkpoint."""

import functools
import math
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
from maira_jax.model.config import Maira2Config, TextConfig, VisionConfig, to_hf_dict
from maira_jax.model.layers import Params
from maira_jax.phantom.pretraining import source, text_phase, tokenizer_files, vision_phase
from maira_jax.phantom.pretraining.loop import fit
from maira_jax.phantom.pretraining.stream import PictureStream, TextStream
from maira_jax.run import files
from maira_jax.run.stage import Stage

CHECKPOINT = "checkpoint"  # the result's folder, inside the stage's
_ADDED_BEFORE_IMAGE, _ADDED = 204, 207


def model_config(section: ml_collections.ConfigDict, n_base: int) -> Maira2Config:
    """The architecture that `pretrain.vision` and `pretrain.text` describe, with `n_base` ordinary tokens."""
    v, t = section.vision, section.text
    return Maira2Config(
        VisionConfig(v.width, v.layers, v.heads, 4 * v.width, v.patch_size, v.image_size, 1e-6),
        TextConfig(
            vocab_size=n_base + _ADDED,
            hidden_size=t.width,
            intermediate_size=t.mlp_width,
            num_hidden_layers=t.layers,
            num_attention_heads=t.heads,
            num_key_value_heads=t.heads,
            head_dim=t.width // t.heads,
            rms_norm_eps=1e-5,
            rope_theta=10000.0,
            rope_factor=1.5,
        ),
        image_token_id=n_base + _ADDED_BEFORE_IMAGE,
        projector_n_layers=4,
    )


def _write_companions(section: ml_collections.ConfigDict, directory: Path, corpus: list[str]) -> Maira2Config:
    """Tokenizer files, `config.json` and `preprocessor_config.json`, as a MAIRA-2 checkpoint has them."""
    if section.tokenizer_model:
        tokenizer_files.from_sentencepiece(Path(section.tokenizer_model), directory)
    else:
        tokenizer_files.from_corpus(corpus, section.n_base, directory)
    image_id = files.read_json(directory / "added_tokens.json")["<image>"]
    cfg = model_config(section, image_id - _ADDED_BEFORE_IMAGE)
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


@functools.cache
def _optimiser(learning_rate: float, n_steps: int, warmup: int, weight_decay: float) -> optax.GradientTransformation:
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, warmup, n_steps, 0.02 * learning_rate)

    def matrices(params: Params) -> Params:
        return jax.tree.map(lambda leaf: leaf.ndim > 1, params)

    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(schedule, b1=0.9, b2=0.98, weight_decay=weight_decay, mask=matrices),
    )


def _pretrain_vision(
    section: ml_collections.ConfigDict, stage: Stage, cfg: Maira2Config, studies: source.Source, image_cfg: ImageConfig
) -> tuple[Params, list[list[float]]]:
    phase = section.vision_phase
    optimiser = _optimiser(phase.learning_rate, phase.steps, phase.warmup, section.weight_decay)
    params_key, directions_key = jax.random.split(jax.random.key(section.seed))
    params = vision_phase.init(cfg, params_key)
    along = vision_phase.directions(cfg, len(studies.labels), directions_key)

    def step(state: Any, batch: Any) -> tuple[Any, jax.Array]:
        *state, loss = vision_phase.step(*state, along, *batch, cfg=cfg, optimiser=optimiser)
        return state, loss

    stream = PictureStream(studies, image_cfg, phase.batch_size)
    state, history = fit(
        stage.dir / "vision", [params, optimiser.init(params)], stream, step, phase.steps,
        section.checkpoint_every, "vision phase",
    )  # fmt: skip
    return state[0], history


def _pretrain_text(
    name: str,
    section: ml_collections.ConfigDict,
    stage: Stage,
    cfg: Maira2Config,
    stream: TextStream,
    params: Params,
) -> tuple[Params, list[list[float]]]:
    phase = section[name]
    optimiser = _optimiser(phase.learning_rate, phase.steps, phase.warmup, section.weight_decay)
    frozen = {part: params[part] for part in section.frozen}
    params = {part: tree for part, tree in params.items() if part not in frozen}

    def step(state: Any, batch: Any) -> tuple[Any, jax.Array]:
        *state, loss = text_phase.step(*state, frozen, batch, cfg=cfg, optimiser=optimiser, n_tail=phase.max_findings)
        return state, loss

    state, history = fit(
        stage.dir / name, [params, optimiser.init(params)], stream, step, phase.steps,
        section.checkpoint_every, f"{name} phase",
    )  # fmt: skip
    return state[0] | frozen, history


def validation_loss(params: Params, cfg: Maira2Config, stream: TextStream, n_tail: int) -> float:
    """Mean cross-entropy in nats of the held-out studies' findings, a token."""
    total, count = 0.0, 0.0
    for batch in stream.held_out():
        value, number = text_phase.evaluate(params, cfg, batch, n_tail)
        total, count = total + float(value), count + float(number)
    if not count:
        raise UserError("no held-out study's findings fit: raise the lengths of the last of pretrain.text_phases")
    return total / count


def run(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, Any]:
    """Trains the model that `pretrain` describes on `studies`; writes `workdir/pretrain/checkpoint`.

    Raises:
      UserError: the studies or the sizes do not fit together.
    """
    section = config.pretrain
    for name in ("vision_phase", *section.text_phases):
        phase = section[name]
        if not 0 <= phase.warmup < phase.steps:
            raise UserError(
                f"pretrain.{name}.warmup is {phase.warmup}, but must be below pretrain.{name}.steps ({phase.steps}): "
                "change one of them"
            )
    identity = {
        "seed": config.seed,
        "pretrain": section.to_dict(),
        "studies": config.studies.to_dict(),
        "held_out_fraction": config.harvest.held_out_fraction,
    }
    with Stage(workdir, "pretrain", identity) as stage:
        if stage.finished:
            return stage.manifest["counts"]
        studies = source.make(config, section.vision.image_size)
        # Prompts and all, so that the instructions' words become tokens too.
        corpus = [
            text
            for study in studies.studies(0, section.n_corpus)
            for text in (reporting_prompt(study).text.replace(IMAGE_TOKEN, " "), study.findings or "")
        ]
        directory = stage.dir / CHECKPOINT
        directory.mkdir(exist_ok=True)
        cfg = _write_companions(section, directory, corpus)
        image_cfg, tokenizer = ImageConfig.from_dir(directory), Tokenizer.from_dir(directory)

        def stream(phase: ml_collections.ConfigDict) -> TextStream:
            said = source.make(config, section.vision.image_size, phase.varied)
            return TextStream(
                said, tokenizer, image_cfg, phase.batch_size, tuple(phase.lengths), phase.max_findings,
                phase.bare, tuple(phase.images),
            )  # fmt: skip

        seeing, vision_history = _pretrain_vision(section, stage, cfg, studies, image_cfg)
        histories = {"vision": vision_history}
        params = maira2.init(cfg, jax.random.key(section.seed + 1)) | seeing
        for name in section.text_phases:
            batches = stream(section[name])
            params, histories[name] = _pretrain_text(name, section, stage, cfg, batches, params)
        stored = jax.tree.map(lambda leaf: leaf.astype(jnp.dtype(section.dtype)), params)
        convert.to_hf(stored, cfg, directory, convert.DTYPES[section.dtype])
        last = section[section.text_phases[-1]]
        exact = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), stored)
        loss = validation_loss(exact, cfg, stream(last), last.max_findings)
        files.write_json(stage.dir / "losses.json", histories)
        counts = {
            "parameters": sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)),
            "training_pictures": section.vision_phase.steps * section.vision_phase.batch_size,
            "training_studies": sum(section[name].steps * section[name].batch_size for name in section.text_phases),
            "held_out_studies": len(studies.held_out),
            "validation_loss_nats_per_token": round(loss, 6),
            "validation_perplexity": round(float(np.exp(loss)), 4),
        }
        stage.finish(counts)
        return counts
