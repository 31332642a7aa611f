"""What edits are learned from, against passes over whole sequences, and the edits that are learned so."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maira_jax.errors import UserError
from maira_jax.inputs.batches import assemble, reporting_request
from maira_jax.inputs.image import ImageConfig
from maira_jax.inputs.tokens import Kind, Tokenizer, token_filter_mask
from maira_jax.model import maira2
from maira_jax.model.maira2 import Edits
from maira_jax.model.sites import Site
from maira_jax.reports.labeller import concepts
from maira_jax.studies.readers import load_studies
from sae import autoencoder
from sae.autoencoder import Sae
from steer.methods.intervention import FeatureClamp, Intervention
from steer.methods.learned import reft_r1
from steer.methods.learned.kept import KeptEdits
from steer.methods.learned.reft_r1 import RankOneEdit, learn_direction
from steer.methods.learned.rewriting import LearnedEdit, Rewriting, _nats
from steer.methods.learned.smallest_set import SetFeatures
from steer.program.edit import SteeringEdits
from steer.selection.rule import EditedModel
from tests.helpers.localized import make_config
from tests.helpers.phantom_model import D_MODEL

CONCEPT = "cardiomegaly"


class AddedVector(LearnedEdit):
    """x + learned."""

    def apply(self, x: jax.Array, edited: jax.Array) -> tuple[jax.Array, jax.Array]:
        return x + jnp.where(edited[..., None], self.learned, 0), (self.learned**2).sum()


@pytest.fixture(scope="module")
def studies():
    return list(load_studies(make_config().studies))


# A place within a block that edits the frontal image, and one after a block that edits generated tokens.
EDITED = {
    "language.0.resid_mid": lambda kinds: token_filter_mask(kinds, "frontal"),
    "language.1.resid_post": lambda kinds: kinds == Kind.FINDINGS,
}


def make_rewriting(localized_model, studies, site):
    folder, cfg = localized_model.folder, localized_model.cfg
    texts, images = Tokenizer.from_dir(folder), ImageConfig.from_dir(folder)
    model = EditedModel(localized_model.params, cfg, texts, images, Site.parse(site, cfg), EDITED[site])
    return Rewriting(model, lambda: studies, 5, 3, KeptEdits(None))


@pytest.fixture(scope="module")
def rewriting(localized_model, studies):
    return make_rewriting(localized_model, studies, "language.0.resid_mid")


forward = jax.jit(maira2.forward, static_argnames=("cfg",))


def nats(rewriting, study, text, added):
    """The negative log-likelihood of a report after a study's prompt, with a vector added, by a pass over all of it."""
    model = rewriting.model
    batch = assemble(
        [reporting_request(study, model.tokenizer, findings=text)], model.tokenizer, model.image_cfg, 512, 2
    )
    mask = model.edited(batch.kinds)
    at = np.flatnonzero(np.isin(batch.kinds[0], (Kind.FINDINGS, Kind.EOS)))
    if model.site.name == "language.1.resid_post":  # every token that produces one
        mask = np.zeros_like(batch.mask)
        mask[0, at - 1] = True
    edits = Edits(jnp.array([model.site.code]), jnp.asarray(added)[None], jnp.ones(1), jnp.asarray(mask))
    logits = forward(model.params, model.cfg, batch.tokens, batch.mask, batch.pixels, edits=edits).logits[0]
    logs = np.asarray(jax.nn.log_softmax(logits), np.float64)
    return -logs[at - 1, batch.tokens[0, at]].sum(), len(at)


def texts_of(rewriting, rows):
    """The reports of a batch."""
    decode = rewriting.model.tokenizer.decode
    return [decode(np.asarray(ids)[on][:-1]) for ids, on in zip(rows.tokens, rows.counted, strict=True)]


def studies_of(rewriting, rows, studies):
    """The studies whose own reports a batch has."""
    texts = texts_of(rewriting, rows)
    by_text = {study.findings: study for study in studies}
    return [by_text[text.strip()] for text in texts]


@pytest.mark.parametrize("site", EDITED)
def test_the_gradient_is_that_of_the_rewritten_reports_likelihood(localized_model, studies, site):
    rewriting = make_rewriting(localized_model, studies, site)
    batches = rewriting.batches(CONCEPT, present=True)
    assert len(batches) == 2 and rewriting.batches(CONCEPT, present=True) is batches  # 3 and 2, filled up
    model, rng = rewriting.model, np.random.default_rng(0)
    rows = batches[0].rewritten
    texts = [
        model.tokenizer.decode(np.asarray(ids)[on][:-1]) for ids, on in zip(rows.tokens, rows.counted, strict=True)
    ]
    assert all(concepts(text)[CONCEPT] for text in texts)
    own = studies_of(rewriting, batches[0].own, studies)
    added, along = rng.normal(size=(2, D_MODEL)).astype(np.float32) * 0.1
    gradient = np.asarray(rewriting.gradient(AddedVector(jnp.asarray(added)), batches[:1], 0.5))
    step, change, tokens = 1e-2, 0.0, 0
    for study, text in zip(own, texts, strict=True):
        ends = [nats(rewriting, study, text, added + sign * step * along) for sign in (1, -1)]
        change, tokens = change + (ends[0][0] - ends[1][0]) / (2 * step), tokens + ends[0][1]
    assert gradient @ along == pytest.approx(change / tokens + added @ along, rel=0.02, abs=1e-3)


def test_a_study_flips_where_its_rewritten_report_is_likelier_than_its_own(rewriting, studies):
    batches, added = rewriting.batches(CONCEPT, present=True), np.ones(D_MODEL, np.float32)
    expected, names = [], []
    for batch in batches:
        own = studies_of(rewriting, batch.own, studies)
        for study, text in zip(own, texts_of(rewriting, batch.rewritten), strict=True):
            expected.append(nats(rewriting, study, text, added)[0] < nats(rewriting, study, study.findings, added)[0])
            names.append(study.study_id)
    first = [study for study in studies if study.findings and not concepts(study.findings)[CONCEPT]][:5]
    assert set(names) == {study.study_id for study in first} and names[-1] == names[-2]  # 3 and 2, filled up
    assert rewriting.flipped(AddedVector(jnp.asarray(added)), batches) == np.mean(expected)


def test_studies_of_about_the_same_length_are_read_together(rewriting):
    batches = rewriting.batches(CONCEPT, present=True)
    lengths = [np.asarray(batch.rewritten.length) for batch in batches]
    assert all((np.diff(each) >= 0).all() for each in lengths) and lengths[0].max() <= lengths[1].min()
    for batch in batches:
        for rows in (batch.rewritten, batch.own):
            assert rows.residual.shape[1] >= int(rows.length.max())
    assert batches[0].own.residual.shape[1] <= batches[-1].rewritten.residual.shape[1]


def test_too_few_studies_and_other_towers(rewriting, localized_model):
    assert rewriting.batches("normal study", present=True) == []
    model = rewriting.model._replace(site=Site.parse("projector.1", localized_model.cfg))
    with pytest.raises(UserError, match="language model, not projector.1"):
        Rewriting(model, lambda: [], 5, 3, KeptEdits(None)).batches(CONCEPT, present=True)


def test_features_are_set_as_a_sweep_sets_them():
    rng = np.random.default_rng(1)
    sae = Sae(autoencoder.init(jax.random.key(2), 8, 12, jnp.zeros(8)), 0.1, 3, (12,))
    x = jnp.asarray(rng.normal(size=(2, 5, 8)), jnp.float32)
    edited, scale = jnp.asarray(rng.random((2, 5)) < 0.5), np.linspace(0.5, 2, 12)
    values = rng.random(12)
    chosen = np.isin(np.arange(12), (2, 7, 9))
    for top_k in (None, 3):
        params = {name: jnp.asarray(array) for name, array in sae.params.items()}
        edit = SetFeatures(
            *(jnp.asarray(a, d) for a, d in ((values, jnp.float32), (chosen, bool), (scale, jnp.float32))),
            params, jnp.float32(0.1), top_k,
        )  # fmt: skip
        found, _ = edit.apply(x, edited)
        of = Sae(sae.params, 0.1, 3, (12,), per_token=top_k is not None)
        clamp = FeatureClamp.of_features(of, {number: values[number] * scale[number] for number in (2, 7, 9)})
        site = Site("language", 2, "language.0.resid_post")
        edits = SteeringEdits.of([Intervention.setting(clamp, 1.0)] * 2, [1.0, 1.0], [site] * 2)
        np.testing.assert_allclose(found, edits.hook(edited)(x, jnp.int32(2)), atol=1e-5)


def test_a_direction_is_learned(rewriting, monkeypatch):
    """Under it the rewritten reports are likelier than under another one with the same entries."""
    monkeypatch.setattr(reft_r1, "_STEPS", 20)
    monkeypatch.setattr(reft_r1, "_STARTS", 2)
    batches = rewriting.batches(CONCEPT, present=True)
    edit = learn_direction(rewriting, batches, D_MODEL, 0)
    assert float(jnp.linalg.norm(edit.learned)) == pytest.approx(1)
    again = learn_direction(rewriting, batches, D_MODEL, 0)
    np.testing.assert_array_equal(edit.learned, again.learned)
    turned = RankOneEdit(jnp.asarray(np.random.default_rng(5).permutation(np.asarray(edit.learned))))
    given = (rewriting._params, rewriting.model.cfg, rewriting.model.site.code, batches[0].rewritten)
    assert _nats(edit, *given)[0].sum() < _nats(turned, *given)[0].sum()
