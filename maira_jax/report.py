"""Reports for studies: batches in, text out."""

from collections.abc import Sequence

import numpy as np

from maira_jax import inputs
from maira_jax.generate import generate
from maira_jax.model.config import Maira2Config
from maira_jax.model.layers import Params
from maira_jax.processing.image import ImageConfig
from maira_jax.processing.tokens import Tokenizer
from maira_jax.run.progress import progress
from maira_jax.studies.study import Study


def write_reports(
    params: Params,
    cfg: Maira2Config,
    tokenizer: Tokenizer,
    image_cfg: ImageConfig,
    studies: Sequence[Study],
    *,
    batch_size: int,
    max_new_tokens: int,
) -> list[str]:
    """The greedy report of each study, in the order of `studies`."""
    reports = [""] * len(studies)
    bar = progress(total=len(studies), unit="study", desc="reports")
    for batch in inputs.batches(studies, tokenizer, image_cfg, batch_size, findings=False):
        tokens, lengths = generate(
            params, cfg, batch.tokens, batch.mask, batch.pixels,
            max_new_tokens=max_new_tokens, eos_id=tokenizer.eos_id,
        )  # fmt: skip
        for row, ids, length in zip(batch.rows, np.asarray(tokens), np.asarray(lengths), strict=True):
            if row >= 0:
                reports[row] = tokenizer.decode(ids[:length])
        bar.update(int((batch.rows >= 0).sum()))
    bar.close()
    return reports
