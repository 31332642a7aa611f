"""Activations of all sites from one pass, and the probes on them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from interp.features.concepts import StudyLabels
from maira_jax.inputs.batches import assemble, reporting_request
from maira_jax.inputs.image import ImageConfig
from maira_jax.inputs.tokens import Kind, Tokenizer, token_filter_mask
from maira_jax.model import maira2
from maira_jax.model.sites import Site
from maira_jax.studies.readers import load_studies
from sae import autoencoder
from sae.autoencoder import Sae
from steer.localize import reading
from steer.localize.section import LocalizeSection, points_of
from tests.helpers.localized import make_config
from tests.helpers.phantom_model import D_MODEL

forward = jax.jit(maira2.forward, static_argnames=("cfg", "read", "logits"))


def slow(model, study, points):
    """The activations of a study's tokens at each point, [tokens, d], from a pass of the study alone."""
    tokenizer = Tokenizer.from_dir(model.folder)
    request = reporting_request(study, tokenizer, findings=study.findings)
    n = len(request.images)
    batch = assemble([request], tokenizer, ImageConfig.from_dir(model.folder), 512, 2)
    read = tuple(dict.fromkeys(point.site for point in points))
    sites = forward(model.params, model.cfg, *batch[:2], batch.pixels, read=read, logits=False).sites
    kinds, found = batch.kinds[0], []
    for point in points:
        x = np.asarray(sites[point.site.name][0])
        if point.site.tower != "language":
            found.append(x[:n].reshape(-1, x.shape[-1]))
        else:
            frontal = point.section == "frontal"
            found.append(x[token_filter_mask(kinds, "frontal") if frontal else kinds == Kind.FINDINGS])
    return found


def test_one_pass_reads_every_point_as_each_study_alone_does(localized_model, one_length, tmp_path):
    config = make_config()
    config.localize.sections = ("frontal", "generated")
    section = LocalizeSection.of(config)
    studies = list(load_studies(config.studies))[:10]
    studies[3] = dataclasses.replace(studies[3], findings=None)
    site = Site.parse("language.1.resid_post", localized_model.cfg)
    params = autoencoder.init(jax.random.key(0), D_MODEL, 24, jnp.zeros(D_MODEL))
    model = localized_model._replace(sae=(site, Sae(params, 0.1, 4, (24,))))
    points = points_of(section, model.cfg)
    assert [(point.site.name, point.section, point.depth) for point in points] == [
        ("projector.1", "image", -1),
        ("language.embed", "frontal", 0),
        ("language.embed", "generated", 0),
        ("language.1.resid_post", "frontal", 2),
        ("language.1.resid_post", "generated", 2),
    ]
    tokenizer = Tokenizer.from_dir(model.folder)
    requests = [reporting_request(study, tokenizer, findings=study.findings) for study in studies]
    means, peaks = reading.read_studies(model, requests, points, section, tmp_path / "parts")
    assert set(peaks) == set(points[3:])
    for number in (0, 3, 7):
        for point, x in zip(points, slow(model, studies[number], points), strict=True):
            if not len(x):
                assert number == 3 and point.section == "generated" and np.isnan(means[point][number]).all()
                continue
            np.testing.assert_allclose(means[point][number], x.mean(0), rtol=1e-3, atol=1e-5)
            if point in peaks:
                f = np.asarray(model.sae[1].encode(jnp.asarray(x))).max(0)
                np.testing.assert_allclose(peaks[point][number], f, rtol=1e-3, atol=1e-4)
    for path in (tmp_path / "parts").iterdir():
        with np.load(path) as arrays:
            changed = {name: array + 1 for name, array in arrays.items()}
        np.savez(path, **changed)
    again, _ = reading.read_studies(model, requests, points, section, tmp_path / "parts")
    np.testing.assert_allclose(
        again[points[0]], means[points[0]] + 1, err_msg="batches that are there are not read anew"
    )


def test_probes_are_scored_on_held_out_studies_alone():
    rng = np.random.default_rng(0)
    n = 200
    held_out = np.arange(n) % 2 == 1
    value = np.stack([rng.random(n) < 0.4, rng.random(n) < 0.4], axis=1)
    x = rng.normal(size=(n, 6)).astype(np.float32)
    x[:, 2] += 8 * value[:, 0]
    # The second concept is in the activations of the fitted studies alone.
    x[:, 4] += 8 * (value[:, 1] & ~held_out)
    x[5] = np.nan
    labels = StudyLabels(("seen", "unseen"), value, np.ones_like(value))
    for scores in (reading.read_dense(x, labels, held_out, 0), reading.read_features(x, labels, held_out, 1)):
        assert scores[0].auroc > 0.99 and scores[0].f1 > 0.95
        assert scores[1].auroc < 0.7
    never = StudyLabels(("never",), np.zeros((n, 1), bool), np.ones((n, 1), bool))
    assert reading.read_features(x, never, held_out, 1) == [None]
    assert reading.read_dense(x, never, held_out, 0) == [None]
