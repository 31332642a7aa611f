"""The studies of a sweep as the model's input."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maira_jax.inputs import image
from maira_jax.inputs.batches import read_images
from maira_jax.studies.readers import load_studies
from steer.program.prompts import Prompts
from tests.helpers.steer_run import make_config


def test_image_files_of_studies_are_decoded_by_other_processes(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    studies = list(load_studies(make_config().studies))[:3]
    arrays = Prompts.of(studies, inputs / "model")
    for number, study in enumerate(studies):
        Image.fromarray(np.asarray(study.frontal)).save(tmp_path / f"{number}.png")
        studies[number] = dataclasses.replace(study, frontal=tmp_path / f"{number}.png")
    monkeypatch.setattr(image, "read_grey", None)  # in this process alone
    in_files = Prompts.of(studies, inputs / "model")
    for number, request in enumerate(arrays.requests):
        expected = read_images(request.images, arrays.n_images, arrays.image_cfg)
        np.testing.assert_array_equal(arrays.pixels(number), expected)
        np.testing.assert_array_equal(in_files.pixels(number), expected)
        assert in_files.digest(number) == arrays.digest(number)
