"""Which studies a harvest puts together, and what the model is given for them."""

import numpy as np
import pytest

from maira_jax.checkpoint import store
from maira_jax.inputs.image import ImageConfig, preprocess, to_grey_square
from maira_jax.inputs.tokens import Tokenizer
from maira_jax.model import maira2
from maira_jax.model.sites import Site
from maira_jax.studies.readers import load_studies
from sae.activations import harvest, harvest_batches
from sae.activations.config import HarvestSection
from sae.activations.harvest_batches import HarvestBatches
from sae.activations.harvest_plan import make_plan
from tests.helpers.tiny_model import forward


@pytest.fixture(scope="module")
def tokenizer(workdir):
    return Tokenizer.from_dir(workdir / "model")


@pytest.fixture(scope="module")
def image_cfg(workdir):
    return ImageConfig.from_dir(workdir / "model")


@pytest.fixture(scope="module")
def plan(config, tokenizer):
    """Each study's prior image is the frontal one of the study before it; the reports differ in length."""
    studies = list(load_studies(config.studies))
    for i in range(1, len(studies)):
        if studies[i].prior_frontal is not None:
            object.__setattr__(studies[i], "prior_frontal", studies[i - 1].frontal)
    return make_plan(studies, tokenizer, HarvestSection.of(config))


def squares(batch, size):
    return [to_grey_square(image, size) for image in batch.images]


def test_an_image_of_several_studies_is_given_once(plan, tokenizer, image_cfg):
    batches = HarvestBatches(plan, tokenizer, image_cfg, 8)
    shared, slots = 0, {}
    for batch in batches.all():
        wanted = [image for i in batch.studies for image in plan.requests[i].images]
        shared += len(wanted) - len(batch.images)
        assert len({id(image) for image in batch.images}) == len(batch.images)
        inputs = batches.inputs(batch, squares(batch, image_cfg.size))
        assert inputs.pixels is not None and inputs.images is not None
        slots.setdefault(batch.bucket, set()).add(len(inputs.pixels))
        for row, study in enumerate(batch.studies):
            for slot, image in enumerate(plan.requests[study].images):
                pixels = inputs.pixels[inputs.images[row, slot]]
                np.testing.assert_array_equal(pixels, preprocess(image, image_cfg))
    assert shared > 3
    for bucket, sizes in slots.items():
        assert sizes == {max(len(batch.images) for batch in batches.all() if batch.bucket == bucket)}


@pytest.mark.parametrize("groups", [1, 2])
def test_the_kept_tokens_of_every_study_are_gathered(config, workdir, plan, tokenizer, image_cfg, groups):
    """Against those of a pass that gives all of them, whose images are encoded row by row."""
    params, model = store.load(workdir / "model")
    site = Site.parse(config.harvest.site, model)
    batches = HarvestBatches(plan, tokenizer, image_cfg, 4, groups)
    shapes = set()
    for batch in list(batches.all()):
        given = batches.inputs(batch, squares(batch, image_cfg.size))
        assert given.pixels is not None and given.images is not None and not len(given.pixels) % groups
        shapes.add((given.tokens.shape, given.kept.shape))
        found = batches.apart(batch, np.asarray(harvest.kept_activations(params, model, site, "float32", *given)))
        every = forward(
            params, model, given.tokens, given.mask, given.pixels[given.images], read=(site,), logits=False
        ).sites[site.name]
        assert len(found) == len(batch.studies)
        for row, (study, activations) in enumerate(zip(batch.studies, found, strict=True)):
            np.testing.assert_allclose(activations, every[row, plan.kept[study]], rtol=1e-5, atol=1e-5)
    assert len({tokens for tokens, _ in shapes}) > 1
    assert len(shapes) == len({tokens for tokens, _ in shapes})  # one capacity for each padded length


def test_batches_are_full_and_hold_every_study_once(plan, tokenizer, image_cfg, monkeypatch):
    monkeypatch.setattr(harvest_batches, "_WINDOW_TOKENS", plan.n_tokens // 2)
    found = list(HarvestBatches(plan, tokenizer, image_cfg, 5).all())
    assert sorted(i for batch in found for i in batch.studies) == list(range(len(plan.requests)))
    assert [len(batch.studies) for batch in found[:-1]] == [5] * (len(found) - 1)
    window = [i for batch in found[:2] for i in batch.studies]
    assert sorted(window) == list(range(10))
    lengths = [len(plan.requests[i].encoded) for i in window]
    assert lengths == sorted(lengths, reverse=True)


def test_studies_without_kept_tokens_are_not_run(plan, tokenizer, image_cfg):
    kept = [positions if i % 3 else positions[:0] for i, positions in enumerate(plan.kept)]
    starts = np.concatenate([[0], np.cumsum([len(positions) for positions in kept])])
    sparse = harvest_batches.HarvestPlan(plan.studies, plan.requests, kept, starts, plan.lengths, plan.n_images)
    found = [i for batch in HarvestBatches(sparse, tokenizer, image_cfg, 4).all() for i in batch.studies]
    assert sorted(found) == [i for i in range(len(kept)) if i % 3]


def test_the_vision_tower_runs_on_different_images_alone(config, workdir, plan, tokenizer, image_cfg, monkeypatch):
    encoded: list[int] = []
    forward = maira2.vision.forward

    def counted(params, cfg, pixels, **options):
        encoded.append(len(pixels))
        return forward(params, cfg, pixels, **options)

    monkeypatch.setattr(maira2.vision, "forward", counted)
    params, model = store.load(workdir / "model")
    batches = HarvestBatches(plan, tokenizer, image_cfg, 6)
    batch = next(iter(batches.all()))
    given = batches.inputs(batch, squares(batch, image_cfg.size))
    harvest.kept_activations(params, model, Site.parse(config.harvest.site, model), "bfloat16", *given)
    assert encoded == [len(given.pixels)] and encoded[0] < given.images.size
