"""The loss of the report phases counts the findings and nothing else."""

import numpy as np

from configs import phantom
from maira_jax.checkpoint import convert
from maira_jax.inputs.image import ImageConfig
from maira_jax.inputs.tokens import Tokenizer
from maira_jax.model.config import Maira2Config
from maira_jax.phantom.pretraining import report_phase
from maira_jax.phantom.pretraining.batch_streams import ReportBatchStream
from maira_jax.phantom.pretraining.study_source import PhantomStudySource
from tests.helpers.sae import make_model
from tests.helpers.tiny_model import forward
from tests.helpers.tiny_recipe import FULL_PROMPT


def test_the_loss_counts_the_findings_and_nothing_else(tmp_path):
    checkpoint = tmp_path / "hf"
    studies = phantom.get_config().studies
    studies.n = 12
    make_model(checkpoint, studies)
    cfg, image_cfg = Maira2Config.from_dir(checkpoint), ImageConfig.from_dir(checkpoint)
    params = convert.to_flax(checkpoint, cfg, np.dtype(np.float32))
    source = PhantomStudySource(0, image_cfg.size, 8)
    batch = ReportBatchStream(source, Tokenizer.from_dir(checkpoint), image_cfg, FULL_PROMPT).next_batch()
    total, count = report_phase.evaluate(params, cfg, batch, 250)

    logits = np.asarray(forward(params, cfg, batch.tokens, batch.mask, batch.pixels).logits, np.float64)
    slow, number = 0.0, 0
    for row, column in zip(*np.nonzero(np.asarray(batch.target)), strict=True):
        scores = logits[row, column - 1]
        slow += np.log(np.exp(scores - scores.max()).sum()) + scores.max() - scores[batch.tokens[row, column]]
        number += 1
    assert int(count) == number
    assert abs(float(total) - slow) < 1e-5 * slow
