"""The loss of the report phases counts the findings and nothing else."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

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
    batch = ReportBatchStream(
        source, Tokenizer.from_dir(checkpoint), image_cfg, FULL_PROMPT, FULL_PROMPT.reports
    ).next_batch()
    total, count = report_phase.evaluate(params, cfg, batch, 250)

    logits = np.asarray(forward(params, cfg, batch.tokens, batch.mask, batch.pixels).logits, np.float64)
    slow, number = 0.0, 0
    for row, column in zip(*np.nonzero(np.asarray(batch.target)), strict=True):
        scores = logits[row, column - 1]
        slow += np.log(np.exp(scores - scores.max()).sum()) + scores.max() - scores[batch.tokens[row, column]]
        number += 1
    assert int(count) == number
    assert abs(float(total) - slow) < 1e-5 * slow


def test_an_update_takes_the_mean_over_the_tokens_of_all_its_batches(tmp_path):
    """Two batches of different lengths and the two as one, whose padding is longer, change the parameters equally."""
    checkpoint = tmp_path / "hf"
    studies = phantom.get_config().studies
    studies.n = 12
    make_model(checkpoint, studies)
    cfg, image_cfg = Maira2Config.from_dir(checkpoint), ImageConfig.from_dir(checkpoint)
    params = jax.tree.map(jnp.asarray, convert.to_flax(checkpoint, cfg, np.dtype(np.float32)))
    source, tokenizer = PhantomStudySource(0, image_cfg.size, 8), Tokenizer.from_dir(checkpoint)

    def batch(n_rows, length):
        task = dataclasses.replace(FULL_PROMPT.reports, n_rows=n_rows, lengths=(length,))
        phase = dataclasses.replace(FULL_PROMPT, image_counts=(1,))
        return ReportBatchStream(source, tokenizer, image_cfg, phase, task).next_batch()

    whole, first, last = batch(6, 512), batch(6, 512), batch(6, 512)
    first = jax.tree.map(lambda leaf: leaf[:2], first)
    last = jax.tree.map(lambda leaf: leaf[2:], last)
    longest = int(last.mask.sum(1).max())
    last = last.replace(**{name: getattr(last, name)[:, :longest] for name in ("tokens", "mask", "target")})
    optimiser = optax.sgd(1.0)
    results = []
    for batches in ([whole], [first, last]):
        copy = jax.tree.map(jnp.copy, params)
        changed, _, mean = report_phase.step(
            copy, optimiser.init(copy), {}, batches, cfg=cfg, optimiser=optimiser, n_tails=[250] * len(batches)
        )
        results.append((changed, mean))
    (one, mean), (other, same) = results
    np.testing.assert_allclose(mean, same, rtol=1e-6)
    moved = jax.tree.map(lambda new, old: np.abs(np.asarray(new) - np.asarray(old)).max(), one, params)
    for a, b, size in zip(jax.tree.leaves(one), jax.tree.leaves(other), jax.tree.leaves(moved), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * float(size) + 1e-7)
