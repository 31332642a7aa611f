"""Examines a pretrained phantom model: what its reports of unseen studies state, against the truth."""

from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from maira_jax.checkpoint import convert
from maira_jax.generation.report_writer import ReportWriter, write_reports
from maira_jax.inputs.image import ImageConfig
from maira_jax.inputs.tokens import Tokenizer
from maira_jax.model.config import Maira2Config
from maira_jax.phantom.accuracy import ReportCard, report_card
from maira_jax.phantom.pretraining import source
from maira_jax.phantom.pretraining.stage import CHECKPOINT
from maira_jax.run import files

_BATCH_SIZE = 50


def examine(config: ml_collections.ConfigDict, directory: Path) -> tuple[ReportCard, list[dict[str, Any]]]:
    """Writes greedy reports for the held-out studies of `pretrain` and marks them.

    Args:
      directory: a checkpoint in the Hugging Face layout.

    Returns:
      The report card, and a record a study: study_id, written, reference.
    """
    cfg = Maira2Config.from_dir(directory)
    studies = source.make(config, cfg.vision.image_size).held_out
    writer = ReportWriter(
        convert.to_flax(directory, cfg, np.dtype(np.float32)),
        cfg,
        Tokenizer.from_dir(directory),
        ImageConfig.from_dir(directory),
        batch_size=_BATCH_SIZE,
        max_new_tokens=config.pretrain[config.pretrain.text_phases[-1]].max_findings,
    )
    reports = write_reports(writer, studies)
    records = [
        {"study_id": study.study_id, "written": report, "reference": study.findings}
        for study, report in zip(studies, reports, strict=True)
    ]
    return report_card(studies, reports), records


def run(config: ml_collections.ConfigDict, workdir: Path) -> ReportCard:
    """Marks `workdir/pretrain/checkpoint`, and leaves `report_card.json` beside it."""
    card, records = examine(config, workdir / "pretrain" / CHECKPOINT)
    files.write_json(workdir / "pretrain" / "report_card.json", {"rows": card.rows, "reports": records})
    return card
