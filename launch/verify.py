"""Compares all that the stages of a run directory wrote, and the answers of its judge, with their checksums.

Each stage compares what it reads when it begins. This reads everything, every chunk of every array included, for
instance after a run directory was copied.

  python -m launch.verify --workdir=runs/first
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from interp.llm import client
from launch import _main
from maira_jax.run.stages import verify


def run(config: ConfigDict, workdir: Path) -> Mapping[str, Any]:
    """Verifies the stages and the answers; see `maira_jax.run.stages.verify.verify`."""
    return verify.verify(workdir) | {"answers": client.verify_answers(workdir)}


if __name__ == "__main__":
    _main.main(run, __doc__ or "", reads=())
