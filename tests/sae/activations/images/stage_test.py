"""The harvest of an image encoder, against the encoder run on each image alone."""

import dataclasses
import json

import numpy as np
import pytest

from configs import base
from maira_jax.encoders.medclip_resnet50 import MedClipResNet50
from maira_jax.errors import UserError
from maira_jax.inputs.medclip_image import to_padded_square
from maira_jax.studies.readers import load_studies
from sae.activations import harvest
from sae.activations.batch_size import automatic_image_batch
from sae.activations.images import harvester
from sae.activations.store import ActivationStore, StoreWriter
from tests.helpers.sae import set_shards
from tests.helpers.torch_encoders import RESNET


@pytest.fixture(autouse=True)
def small(monkeypatch):
    set_shards(monkeypatch, 16, 8)
    monkeypatch.setattr(MedClipResNet50.__init__, "__defaults__", (RESNET,))


@pytest.fixture
def config():
    config = base.get_config()
    config.studies = base.studies("phantom", n=45)
    config.harvest.update(
        {"encoder": "medclip_resnet50", "weights": "random", "batch_size": 8, "readers": 0, "held_out_fraction": 0.3}
    )
    return config


def test_every_row_is_the_embedding_of_its_image(config, tmp_path):
    counts = harvest.run(config, tmp_path)
    stored, studies = ActivationStore.open(tmp_path / "activations"), load_studies(config.studies)
    loaded = MedClipResNet50.load("random", tmp_path, (1, 1), 0)
    squares = np.stack([to_padded_square(study.frontal, 64) for study in studies])
    expected = loaded.encoder.encode(loaded.params, loaded.levels[squares], "embedding")[:, 0]
    np.testing.assert_allclose(stored.read(0, 45), expected, rtol=1e-5, atol=1e-6)
    assert stored.source == {
        "encoder": "medclip_resnet50", "weights": "random 0", "rows": "embedding", "grid": None, "view": "pad"
    }  # fmt: skip
    rows, tokens = stored.studies.to_pylist(), stored.tokens.to_pylist()
    assert [row["study_id"] for row in rows] == [study.study_id for study in studies]
    assert [json.loads(row["labels"]) for row in rows] == [dict(study.labels) for study in studies]
    assert [(row["start"], row["stop"]) for row in rows] == [(i, i + 1) for i in range(45)]
    assert tokens == [{"study": i, "position": 0, "token_id": -1, "kind": -1} for i in range(45)]
    assert counts["tokens"] == 45 and 0 < counts["studies_held_out"] < 45


def test_a_killed_harvest_resumes_to_the_same_bits(config, tmp_path, monkeypatch):
    harvest.run(config, tmp_path / "whole")
    write, written = StoreWriter.write, []

    def interrupted(self, shard, values):
        if written:
            raise KeyboardInterrupt
        written.append(shard)
        write(self, shard, values)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(StoreWriter, "write", interrupted)
        harvest.run(config, tmp_path / "killed")
    (done,) = (tmp_path / "killed" / "activations" / "shards").iterdir()
    before = done.stat().st_mtime_ns
    config.harvest.batch_size = 8
    harvest.run(config, tmp_path / "killed")
    assert done.stat().st_mtime_ns == before
    whole, resumed = (ActivationStore.open(tmp_path / name / "activations") for name in ("whole", "killed"))
    np.testing.assert_array_equal(resumed.read(0, 45), whole.read(0, 45))
    assert resumed.tokens.equals(whole.tokens)


def test_studies_without_a_frontal_image_are_left_out(config, tmp_path, monkeypatch):
    studies = load_studies(config.studies)
    without = [dataclasses.replace(study, frontal=None) if i % 2 else study for i, study in enumerate(studies)]
    monkeypatch.setattr(harvester, "load_studies", lambda section: without)
    assert harvest.run(config, tmp_path / "half")["studies"] == 23
    monkeypatch.setattr(harvester, "load_studies", lambda section: without[1::2])
    with pytest.raises(UserError, match="no study has a frontal image"):
        harvest.run(config, tmp_path / "none")


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"encoder": "resnet"}, "harvest.encoder is 'resnet': choose from medclip_resnet50"),
        ({"rows": "tokens"}, "harvest.rows is 'tokens': choose from embedding, cls, mean, patches"),
        ({"rows": "cls"}, "harvest.rows is 'cls', which this encoder does not have: choose from embedding"),
        ({"arrays": ("a.npy",)}, "harvest.encoder and harvest.arrays are both given"),
    ],
)
def test_fields_out_of_range(config, tmp_path, fields, message):
    config.harvest.update(fields)
    with pytest.raises(UserError, match=message):
        harvest.run(config, tmp_path)
    assert not (tmp_path / "activations").exists()


@pytest.mark.parametrize(
    "image, params, memory, data, expected",
    [
        (2**24, 2**27, None, 3, 18),
        (2**24, 2**27, 80 * 2**30, 1, 256),
        (2**24, 2**27, 80 * 2**30, 8, 2048),
        (2**26, 2**29, 2**30, 1, 4),
        (2**34, 2**29, 2**30, 2, 2),
    ],
)
def test_the_open_batch_size(image, params, memory, data, expected):
    assert automatic_image_batch(image, params, memory, data) == expected
