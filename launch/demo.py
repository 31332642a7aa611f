"""Runs all stages, each on what the ones before it have left.

They are convert, generate, harvest, train, export, localize, interpret, label, steer, evaluate, faithfulness and atlas.
Localize is left out where localize.autoencoder is not set, as for MAIRA-2: it is for before a site is chosen.

Of an image encoder (--config=configs/medsae.py) it runs harvest, train, export, label, interpret and atlas.

Finished stages are skipped and an interrupted one resumes, so the same command always ends with the same result.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from interp import stage as interpret
from interp.atlas import stage as atlas
from interp.medsae import stage as label
from launch import _judge_flags, _main
from maira_jax.checkpoint import convert
from maira_jax.checkpoint.convert import PHANTOM
from maira_jax.encoders import ENCODERS
from maira_jax.encoders.encoder import RANDOM
from maira_jax.generation import stage as generate
from sae.activations import harvest
from sae.activations.store import source_of
from sae.formats import export
from sae.import_sae import imported_counts
from sae.training import stage as train
from steer import evaluate, run_summary, stage_words
from steer import stage as steer
from steer.faithfulness import stage as faithfulness
from steer.localize import stage as localize


def _autoencoder(config: ConfigDict, workdir: Path) -> Mapping[str, Any]:
    """Trains an autoencoder, unless the run has imported one."""
    return imported_counts(workdir) or train.run(config, workdir)


STAGES: tuple[tuple[str, _main.Run], ...] = (
    ("convert", convert.run),
    ("generate", generate.run),
    ("harvest", harvest.run),
    ("train", _autoencoder),
    ("export", export.run),
    ("localize", localize.run),
    ("interpret", interpret.run),
    ("label", label.run),
    ("steer", steer.run),
    ("evaluate", evaluate.run),
    ("faithfulness", faithfulness.run),
    ("atlas", atlas.run),
)
STAGES_OF_IMAGES: tuple[tuple[str, _main.Run], ...] = (
    ("harvest", harvest.run),
    ("train", _autoencoder),
    ("export", export.run),
    ("label", label.run),
    ("interpret", interpret.run),
    ("atlas", atlas.run),
)
# What the files of some stages say, printed after each.
WORDS: Mapping[str, Callable[[ConfigDict, Path], str]] = {
    "export": stage_words.of_export,
    "interpret": stage_words.of_interpretation,
    "steer": stage_words.of_sweep,
    "evaluate": stage_words.of_evaluation,
}
_N_REPORTS = 8  # that are generated where the configuration names no number
READS = (
    "seed", "model", "studies", "generate", "harvest", "train", "export", "localize", "interpret", "label", "steer",
    "evaluate", "faithfulness", "sae", "judge",
)  # fmt: skip


def chain(config: ConfigDict) -> tuple[tuple[str, _main.Run], ...]:
    """The stages of a configuration, by name: an image encoder writes no reports that could be steered.

    Localize is among them where it reads the autoencoder's features; else it is run before the site is chosen.
    """
    encoder = config.harvest.encoder
    if not encoder:
        return tuple(stage for stage in STAGES if stage[0] != "localize" or config.localize.autoencoder)
    return (STAGES[:1] if ENCODERS.get(encoder).of_model else ()) + STAGES_OF_IMAGES


def run(config: ConfigDict, workdir: Path) -> Mapping[str, Any]:
    """All stages in one process; returns nothing to report, since it prints its own summary.

    Raises:
      UserError: a field of any section is wrong, before the first stage begins; or what the stages raise.
    """
    for section in _main.sections(config, READS):
        if section.section != "judge" or config.interpret.judge == "llm":
            section.of(config)
    config.generate.studies = config.generate.studies or _N_REPORTS
    stages = chain(config)
    for number, (name, run_stage) in enumerate(stages, start=1):
        start = time.monotonic()
        result = run_stage(config, workdir)
        _main.report(f"[{number}/{len(stages)}] {name} ({time.monotonic() - start:.0f} s)", result)
        if name in WORDS:
            print(WORDS[name](config, workdir))
    if config.harvest.encoder:
        print(run_summary.of_images(workdir, _control(config, workdir)))
    else:
        print(run_summary.text(workdir, config.steer.name))
    return {}


def _control(config: ConfigDict, workdir: Path) -> str:
    """Why an image encoder's figures are those of a control; empty if they are not."""
    if source_of(workdir / "activations")["weights"].startswith(RANDOM):
        return "the encoder's weights are random."
    of_phantom = ENCODERS.get(config.harvest.encoder).of_model and config.model.checkpoint == PHANTOM
    return "the encoder has seen synthetic images alone." if of_phantom and config.studies.source != "phantom" else ""


_judge_flags.define()

if __name__ == "__main__":
    _main.main(run, __doc__ or "", reads=READS, stages=lambda config: dict(chain(config)))
