"""Gradient x activation, against what adding a feature changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maira_jax.inputs.batches import assemble, reporting_request
from maira_jax.inputs.image import ImageConfig
from maira_jax.inputs.tokens import Kind, Tokenizer, token_filter_mask
from maira_jax.model import maira2
from maira_jax.model.maira2 import Edits
from maira_jax.model.sites import Site
from maira_jax.reports.statements import ConceptSentences
from maira_jax.studies.readers import load_studies
from steer.selection.by_gradient import gradient_scores
from steer.selection.rule import EditedModel
from tests.helpers.localized import make_config
from tests.helpers.phantom_model import D_MODEL


@pytest.fixture(scope="module")
def studies():
    return list(load_studies(make_config().studies))[:12]


@pytest.fixture(scope="module")
def model(localized_model):
    folder, cfg = localized_model.folder, localized_model.cfg
    site = Site.parse("language.0.resid_post", cfg)
    return EditedModel(
        localized_model.params,
        cfg,
        Tokenizer.from_dir(folder),
        ImageConfig.from_dir(folder),
        site,
        lambda kinds: token_filter_mask(kinds, "frontal"),
    )


forward = jax.jit(maira2.forward, static_argnames=("cfg",))


def log_probability(model, study, sentence, added):
    """Of a sentence after a study's prompt, with a vector added to the frontal image's tokens."""
    request = reporting_request(study, model.tokenizer, findings=sentence)
    batch = assemble([request], model.tokenizer, model.image_cfg, 512, 2)
    edits = Edits(jnp.array([model.site.code]), added[None], jnp.ones(1), jnp.asarray(model.edited(batch.kinds)))
    logits = forward(model.params, model.cfg, batch.tokens, batch.mask, batch.pixels, edits=edits).logits[0]
    logs = np.asarray(jax.nn.log_softmax(logits), np.float64)
    at = np.flatnonzero(batch.kinds[0] == Kind.FINDINGS)
    return logs[at - 1, batch.tokens[0, at]].sum()


def test_scores_are_what_a_small_step_along_a_feature_changes(model, studies):
    rng = np.random.default_rng(0)
    w_dec = rng.normal(size=(3, D_MODEL)).astype(np.float32)
    largest = np.array([1.0, 2.0, 0.5], np.float32)
    said = {"cardiomegaly": ConceptSentences(("The heart is enlarged.", "Cardiomegaly."), ("No cardiomegaly.",))}
    scores = gradient_scores(model, studies[:2], said, w_dec, largest)["cardiomegaly"]
    step = 1e-2
    for feature in range(3):
        expected = 0.0
        for texts, sign in zip(said["cardiomegaly"], (1, -1), strict=True):
            for text in texts:
                for study in studies[:2]:
                    change = [log_probability(model, study, text, s * step * w_dec[feature]) for s in (1, -1)]
                    expected += sign * (change[0] - change[1]) / (2 * step) / len(texts) / 2
        assert scores[feature] == pytest.approx(expected * largest[feature], rel=0.03, abs=2e-3)
    both = said | {"pacemaker": ConceptSentences(("Pacemaker.",), ("No pacemaker.",))}
    other = gradient_scores(model, studies[:2], {"pacemaker": both["pacemaker"]}, w_dec, largest)["pacemaker"]
    found = gradient_scores(model, studies[:2], both, w_dec, largest)
    np.testing.assert_allclose(found["cardiomegaly"], scores - np.maximum(other, 0), atol=1e-5)
    np.testing.assert_allclose(found["pacemaker"], other - np.maximum(scores, 0), atol=1e-5)
    nested = said | {"severe cardiomegaly": both["pacemaker"]}
    np.testing.assert_allclose(
        gradient_scores(model, studies[:2], nested, w_dec, largest)["cardiomegaly"], scores, atol=1e-5
    )
