"""Loss recovered: autoencoders whose effect is known, and the definition written out in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import phantom
from maira_jax.checkpoint import convert, store
from maira_jax.errors import UserError
from maira_jax.inputs.image import ImageConfig, preprocess
from maira_jax.inputs.prompt import reporting_prompt, study_images
from maira_jax.inputs.tokens import Kind, Tokenizer, token_filter_mask
from maira_jax.model import maira2
from maira_jax.model.sites import Site
from maira_jax.studies.readers import load_studies
from sae.autoencoder import Sae
from sae.evaluation import loss_recovered
from tests.helpers.sae import make_model, random_sae

SITE = "language.1.resid_post"


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    config = phantom.get_config()
    config.studies.n = 12
    path = tmp_path_factory.mktemp("run")
    make_model(path / "hf", config.studies)
    config.model.checkpoint = str(path / "hf")
    convert.run(config, path)
    return path / "model"


@pytest.fixture(scope="module")
def studies():
    config = phantom.get_config()
    config.studies.n = 12
    return load_studies(config.studies)[:4]


def linear_sae(width: int, decoder: float) -> Sae:
    """Gives back `decoder` times any activation, exactly: x = relu(x) - relu(-x)."""
    eye = jnp.eye(width)
    params = {
        "W_enc": jnp.concatenate([eye, -eye], axis=1),
        "b_enc": jnp.zeros(2 * width),
        "W_dec": decoder * jnp.concatenate([eye, -eye]),
        "b_dec": jnp.zeros(width),
    }
    return Sae(params, -1.0, width, (2 * width,), {"source": {"site": SITE, "token_filter": "paper"}})


def test_the_identity_recovers_all_and_zero_nothing(model_dir, studies):
    identity = loss_recovered.measure(linear_sae(48, 1.0), model_dir, studies, batch_size=3)
    nothing = loss_recovered.measure(linear_sae(48, 0.0), model_dir, studies, batch_size=3)
    tokenizer = Tokenizer.from_dir(model_dir)
    encoded = [tokenizer.encode(reporting_prompt(study), study.findings) for study in studies]
    assert identity["tokens"] == sum(int((row.kinds == Kind.FINDINGS).sum()) for row in encoded)
    assert identity["replaced"] == sum(int(token_filter_mask(row.kinds, "paper").sum()) for row in encoded)
    assert identity["ce_spliced"] == identity["ce"]
    assert (identity["recovered_zero"], identity["recovered_mean"]) == (1.0, 1.0)
    assert nothing["ce_spliced"] == nothing["ce_zero"] != nothing["ce"]
    assert nothing["recovered_zero"] == 0.0
    assert len({round(identity[name], 4) for name in ("ce", "ce_zero", "ce_mean")}) == 3


@functools.partial(jax.jit, static_argnames="cfg")
def forward(params, cfg, tokens, mask, pixels, delta):
    """A pass with `delta` [1, T, d] added at the site, by the model's own way of editing."""
    site = Site.parse(SITE, cfg)

    def add(x, code):
        return jnp.where(code == site.code, x + delta, x)

    return maira2.forward(params, cfg, tokens, mask, pixels, read=(site,), edits=add)


def reference(sae: Sae, model_dir, studies) -> dict[str, float]:
    """Each study alone and unpadded, read at the site and then run again with what the replacement differs by."""
    params, cfg = store.load(model_dir)
    tokenizer, images = Tokenizer.from_dir(model_dir), ImageConfig.from_dir(model_dir)
    rows = []
    for study in studies:
        encoded = tokenizer.encode(reporting_prompt(study), study.findings)
        pixels = np.stack([preprocess(image, images) for image in study_images(study)])[None]
        run = functools.partial(forward, params, cfg, encoded.ids[None], np.ones((1, len(encoded)), bool), pixels)
        x = np.asarray(run(jnp.zeros((1, len(encoded), sae.d_model))).sites[SITE][0])
        rows.append((encoded, run, x, token_filter_mask(encoded.kinds, "paper")))
    mean = np.concatenate([x[kept] for *_, x, kept in rows]).mean(0)

    def loss(new) -> float:
        total, tokens = 0.0, 0
        for encoded, run, x, kept in rows:
            delta = jnp.asarray(np.where(kept[:, None], new(x) - x, 0))[None]
            scored = np.flatnonzero(encoded.kinds == Kind.FINDINGS)
            log_p = np.asarray(jax.nn.log_softmax(run(delta).logits[0]), np.float64)
            total -= log_p[scored - 1, encoded.ids[scored]].sum()
            tokens += len(scored)
        return total / tokens

    return {
        "ce": loss(lambda x: x),
        "ce_spliced": loss(lambda x: np.asarray(sae.decode(sae.encode(x)))),
        "ce_zero": loss(np.zeros_like),
        "ce_mean": loss(lambda x: np.broadcast_to(mean, x.shape)),
    }


@pytest.mark.parametrize("per_token", [False, True])
def test_the_losses_are_those_of_the_definition(model_dir, studies, per_token):
    x = np.random.default_rng(0).normal(size=(50, 48)).astype(np.float32)
    meta = {"source": {"site": SITE, "token_filter": "paper"}}
    sae = random_sae(x, (64, 32), 3, 0.3, meta=meta, per_token=per_token)
    measured = loss_recovered.measure(sae, model_dir, studies[:2], batch_size=2)
    for name, value in reference(sae, model_dir, studies[:2]).items():
        np.testing.assert_allclose(measured[name], value, rtol=2e-5, err_msg=name)
    gained = measured["ce_zero"] - measured["ce_spliced"]
    np.testing.assert_allclose(measured["recovered_zero"], gained / (measured["ce_zero"] - measured["ce"]))


def test_what_cannot_be_measured_is_refused(model_dir, studies):
    with pytest.raises(UserError, match="width 20"):
        loss_recovered.measure(linear_sae(20, 1.0), model_dir, studies, batch_size=3)
    with pytest.raises(UserError, match="no findings token"):
        loss_recovered.measure(linear_sae(48, 1.0), model_dir, [], batch_size=4)
