"""The loss of the report phases counts the findings and nothing else."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

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


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A model with random weights."""
    folder = tmp_path_factory.mktemp("model") / "hf"
    studies = phantom.get_config().studies
    studies.n = 12
    make_model(folder, studies)
    return folder


def first_batch(checkpoint, phase, task):
    image_cfg = ImageConfig.from_dir(checkpoint)
    source = PhantomStudySource(0, image_cfg.size, 8)
    return ReportBatchStream(source, Tokenizer.from_dir(checkpoint), image_cfg, phase, task).next_batch()


def test_the_loss_counts_the_findings_and_nothing_else(checkpoint):
    cfg = Maira2Config.from_dir(checkpoint)
    params = convert.to_flax(checkpoint, cfg, np.dtype(np.float32))
    batch = first_batch(checkpoint, FULL_PROMPT, FULL_PROMPT.reports)
    total, count = report_phase.evaluate(params, cfg, batch, 250)

    logits = np.asarray(forward(params, cfg, batch.tokens, batch.mask, batch.pixels).logits, np.float64)
    slow, number = 0.0, 0
    for row, column in zip(*np.nonzero(np.asarray(batch.target)), strict=True):
        scores = logits[row, column - 1]
        slow += np.log(np.exp(scores - scores.max()).sum()) + scores.max() - scores[batch.tokens[row, column]]
        number += 1
    assert int(count) == number
    assert abs(float(total) - slow) < 1e-5 * slow


def test_an_update_takes_the_mean_over_the_tokens_of_all_its_batches(checkpoint):
    """Two batches of different lengths and the two as one, whose padding is longer, change the parameters equally."""
    cfg = Maira2Config.from_dir(checkpoint)
    params = jax.tree.map(jnp.asarray, convert.to_flax(checkpoint, cfg, np.dtype(np.float32)))
    phase = dataclasses.replace(FULL_PROMPT, image_counts=(1,))
    whole = first_batch(checkpoint, phase, dataclasses.replace(phase.reports, n_rows=6))
    first = jax.tree.map(lambda leaf: leaf[:2], whole)
    last = jax.tree.map(lambda leaf: leaf[2:], whole)
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
