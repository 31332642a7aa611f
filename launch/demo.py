"""Runs convert, harvest, train, export, interpret, steer, evaluate and atlas, on the phantom or as --config says.

Finished stages are skipped and an interrupted one resumes, so the same command always ends with the same result.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from interp import stage as interpret
from interp.atlas import stage as atlas
from launch import _main
from maira_jax.checkpoint import convert
from sae.activations import harvest
from sae.formats import export
from sae.training import stage as train
from steer import evaluate, run_summary
from steer import stage as steer

STAGES: tuple[tuple[str, _main.Run], ...] = (
    ("convert", convert.run),
    ("harvest", harvest.run),
    ("train", train.run),
    ("export", export.run),
    ("interpret", interpret.run),
    ("steer", steer.run),
    ("evaluate", evaluate.run),
    ("atlas", atlas.run),
)
READS = ("seed", "model", "studies", *(name for name, _ in STAGES if name not in ("convert", "atlas")), "sae", "judge")


def run(config: ConfigDict, workdir: Path) -> Mapping[str, Any]:
    """All stages in one process; returns nothing to report, since it prints its own summary.

    Raises:
      UserError: a field of any section is wrong, before the first stage begins; or what the stages raise.
    """
    for section in _main.sections(config, READS):
        if section.section != "judge" or config.interpret.judge == "llm":
            section.of(config)
    for number, (name, run_stage) in enumerate(STAGES, start=1):
        start = time.monotonic()
        result = run_stage(config, workdir)
        _main.report(f"[{number}/{len(STAGES)}] {name} ({time.monotonic() - start:.0f} s)", result)
    print(run_summary.text(workdir, config.steer.name))
    return {}


if __name__ == "__main__":
    _main.main(run, __doc__ or "", reads=READS, stages=[run_stage for _, run_stage in STAGES])
