"""Trains a small model of MAIRA-2's architecture from scratch and writes it as a Hugging Face checkpoint.

Result: WORKDIR/pretrain/checkpoint, which any command takes as --config.model.checkpoint. Interrupted, it resumes.
On the phantom it then marks the model's reports of unseen studies against the truth (report_card.json).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from launch import _main
from maira_jax.phantom import evaluate
from maira_jax.phantom.pretraining import stage as pretrain


def run(config: ConfigDict, workdir: Path) -> Mapping[str, Any]:
    """Trains, and marks the result where the truth is known."""
    counts = pretrain.run(config, workdir)
    if config.studies.source == "phantom":
        print(evaluate.run(config, workdir))
    return counts


if __name__ == "__main__":
    _main.main(run, __doc__ or "", reads=("seed", "studies", "harvest", "pretrain"))
