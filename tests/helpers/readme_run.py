"""The README's first run, small, which several files of tests read: the first one to need it makes it."""

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.paths import ROOT
from tests.helpers.shared import made_once

WORKDIR = "runs/first"
COMMAND = (
    f"python -m launch.demo --workdir={WORKDIR} --config.studies.n=600 --config.train.steps=600 "
    "--config.train.decay_start=400 --config.steer.studies=8"
)
_PRINTED = "printed.txt"
# The sizes of every small run of a demo, so that what one compiled the next ones read.
SMALL = {
    "studies.n": 120,
    "sae.expansion": 2,
    "train.steps": 60,
    "train.warmup_steps": 10,
    "train.decay_start": 40,
    "train.checkpoint_every": 20,
    "interpret.n_explain": 20,
    "interpret.n_score": 10,
    "interpret.min_contexts": 5,
    "interpret.min_studies": 3,
    "localize.sites": ("language.0.resid_post",),
    "localize.sections": ("frontal",),
    "localize.studies": 80,
    "localize.top": 1,
    "localize.min_studies": 3,
    "localize.write_studies": 2,
    "steer.studies": 3,
    "steer.concepts": ("cardiomegaly", "consolidation"),
    "steer.batch_studies": 2,
    "steer.batch_rows": 8,
    "evaluate.bootstrap": 50,
    "faithfulness.n": 3,
    "faithfulness.studies": 2,
    "generate.studies": 2,
    "label.bootstrap": 20,
    "label.probe_seeds": 1,
}


def flags(fields: Mapping[str, Any]) -> str:
    """Fields of the configuration as a shell's command line has them."""
    return " ".join(shlex.quote(f"--config.{name}={value}") for name, value in fields.items())


def shell(folder: Path, command: str) -> str:
    """Runs a shell's command in a folder, by this Python, where the package is.

    Returns:
      What it printed.

    Raises:
      AssertionError: it failed.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | {"PYTHONPATH": str(ROOT), "PATH": path}
    done = subprocess.run(command, shell=True, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def first_run(factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Makes the run, unless another worker of this session of tests has.

    Returns:
      The folder in which the command was given, and what it printed. Nobody changes it.
    """
    folder = made_once(factory, "first_run", _make)
    return folder, (folder / _PRINTED).read_text()


def _make(folder: Path) -> None:
    (folder / _PRINTED).write_text(shell(folder, f"{COMMAND} {flags(SMALL)}"))
