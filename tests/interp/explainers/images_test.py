"""X-rays of examples: found by their tokens, and scaled down."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from interp.exemplars.shown import ImageAt
from interp.explainers import images as images_module
from interp.explainers.images import StudyImages
from maira_jax.errors import UserError
from maira_jax.inputs import image as image_module
from maira_jax.inputs.image import stretch
from maira_jax.inputs.prompt import study_images
from maira_jax.inputs.tokens import Kind
from maira_jax.studies.readers import phantom
from sae.activations.store import ActivationStore
from tests.helpers.interp_run import config, make_workdir


def test_images_are_found_by_the_position_of_their_tokens(tmp_path, monkeypatch):
    workdir = make_workdir(tmp_path, 6)
    cfg = config()
    cfg.studies.update({"n": 6, "seed": 0, "size": 8})

    def read(at, side):
        monkeypatch.setattr(images_module, "SIDE", side)
        png = StudyImages(cfg.studies, workdir / "activations").pngs([at])[0]
        return np.asarray(Image.open(io.BytesIO(png)))

    tokens = ActivationStore.open(workdir / "activations").tokens
    studies, seen = phantom.studies(0, 6, seed=0, size=8), []
    for i, study in enumerate(studies):
        last = tokens.position[(tokens.study == i) & (tokens.kind == Kind.IMAGE_LAST)].tolist()
        assert len(last) == len(study_images(study))
        for position, image in zip(last, study_images(study), strict=True):
            assert read(ImageAt(study.study_id, position), 6).shape == (6, 6)
            stretched = read(ImageAt(study.study_id, position - 1), 100)
            assert np.corrcoef(stretched.ravel(), np.asarray(image).ravel())[0, 1] > 0.999
            seen.append(len(last))
    assert 2 in seen and 1 in seen
    cfg.studies.seed = 5
    with pytest.raises(UserError, match="use the studies that the activations were harvested from"):
        read(ImageAt(studies[0].study_id, 3), 6)


def test_files_are_read_by_other_processes_as_whole_small_pictures(tmp_path, monkeypatch):
    workdir = make_workdir(tmp_path, 2)
    tokens, found = ActivationStore.open(workdir / "activations").tokens, phantom.studies(0, 2, seed=0, size=8)
    grey = np.random.default_rng(0).integers(0, 60000, (900, 600)).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / "large.png")
    studies = {study.study_id: dataclasses.replace(study, frontal=tmp_path / "large.png") for study in found}
    monkeypatch.setattr(images_module, "studies_of", lambda *_: studies)
    picture = Image.fromarray(stretch(grey, "an image"))
    picture.thumbnail((images_module.SIDE, images_module.SIDE), Image.Resampling.BICUBIC)
    picture.save(expected := io.BytesIO(), "PNG")
    monkeypatch.setattr(image_module, "read_grey", None)  # in this process alone
    first = [int(tokens.position[(tokens.study == i) & (tokens.kind == Kind.IMAGE_LAST)][0]) for i in range(2)]
    places = [ImageAt(study.study_id, position) for study, position in zip(found, first, strict=True)]
    assert StudyImages(config().studies, workdir / "activations").pngs(places) == [expected.getvalue()] * 2
    assert picture.size == (299, 448)
