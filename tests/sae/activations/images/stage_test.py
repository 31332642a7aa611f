"""The harvest of an image encoder, against the encoder run on each image alone."""

import dataclasses
import json
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from configs import base
from maira_jax.checkpoint import convert, store
from maira_jax.encoders.maira2_vision import Maira2Vision
from maira_jax.encoders.medclip_resnet50 import MedClipResNet50
from maira_jax.errors import UserError
from maira_jax.inputs.image import ImageConfig, preprocess
from maira_jax.inputs.medclip_image import to_padded_square
from maira_jax.model import maira2
from maira_jax.model.sites import Site
from maira_jax.studies.readers import load_studies
from sae.activations import harvest
from sae.activations.batch_size import automatic_image_batch
from sae.activations.images import harvester
from sae.activations.store import ActivationStore, StoreWriter
from sae.activations.token_rows import TokenRows
from tests.helpers.paths import ROOT
from tests.helpers.sae import assert_same_tokens, make_model, set_shards
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
        "encoder": "medclip_resnet50", "weights": "random 0", "rows": "embedding", "block": None, "grid": None,
        "view": "pad",
    }  # fmt: skip
    rows = stored.studies.to_pylist()
    assert [row["study_id"] for row in rows] == [study.study_id for study in studies]
    assert [json.loads(row["labels"]) for row in rows] == [dict(study.labels) for study in studies]
    assert [(row["start"], row["stop"]) for row in rows] == [(i, i + 1) for i in range(45)]
    assert_same_tokens(stored.tokens, TokenRows.without_tokens(45, 1))
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
    assert_same_tokens(resumed.tokens, whole.tokens)


@pytest.fixture(scope="module")
def tower(tmp_path_factory):
    """A run directory with a small random model, and the studies' configuration."""
    workdir = tmp_path_factory.mktemp("tower")
    config = base.get_config()
    config.studies = base.studies("phantom", n=6)
    make_model(workdir / "hf", config.studies)
    config.model.checkpoint = str(workdir / "hf")
    convert.run(config, workdir)
    return workdir, config


@pytest.mark.parametrize("rows, n", [("cls", 1), ("mean", 1), ("patches", 4)])
def test_rows_of_the_models_own_tower(tower, tmp_path, rows, n):
    model_dir, config = tower[0] / "model", tower[1].copy_and_resolve_references()
    (tmp_path / "model").symlink_to(model_dir)
    config.harvest.update({"encoder": "maira2_vision", "rows": rows, "batch_size": 4, "readers": 0})
    harvest.run(config, tmp_path)
    stored = ActivationStore.open(tmp_path / "activations")
    params, model = store.load(model_dir)
    images = ImageConfig.from_dir(model_dir)
    pixels = np.stack([preprocess(study.frontal, images) for study in load_studies(config.studies)])
    site = Site.parse("vision.output", model)
    encode = jax.jit(maira2.encode_images, static_argnames=("cfg", "read", "stop"))
    _, sites = encode(params, model, pixels[:, None], (site,), stop=True)
    tokens = np.asarray(sites[site.name])[:, 0]  # [images, 1 + patches, D]
    expected = {"cls": tokens[:, :1], "mean": tokens[:, 1:].mean(1, keepdims=True), "patches": tokens[:, 1:]}[rows]
    np.testing.assert_allclose(stored.read(0, 6 * n), expected.reshape(6 * n, -1), rtol=1e-5, atol=1e-5)
    assert stored.tokens.position.tolist() == [*range(n)] * 6
    assert stored.tokens.study.tolist() == [i for i in range(6) for _ in range(n)]
    assert stored.source["grid"] == ([2, 2] if n > 1 else None)
    assert (stored.source["rows"], stored.source["view"]) == (rows, "crop")


def test_random_weights_of_the_models_tower(tower, tmp_path):
    loaded = Maira2Vision.load("random", tower[0] / "model", (1, 1), 5)
    trained = Maira2Vision.load("", tower[0] / "model", (1, 1), 5)
    assert loaded.encoder == trained.encoder and loaded.weights == "random 5"
    kernels = [each.params["patch"]["kernel"] for each in (loaded, trained)]
    assert kernels[0].shape == kernels[1].shape and (kernels[0] != kernels[1]).any()
    with pytest.raises(UserError, match="harvest.weights is 'a.bin', but maira2_vision has those of .*/model"):
        Maira2Vision.load("a.bin", tower[0] / "model", (1, 1), 5)


def test_killed_with_worker_processes_it_resumes_to_the_same_bits(tower, tmp_path, monkeypatch):
    lines = []
    for i in range(40):
        image = np.random.default_rng(i).integers(0, 256, (60 + i, 70), dtype=np.uint8)
        Image.fromarray(image).save(tmp_path / f"{i}.png")
        lines.append(json.dumps({"study_id": f"s{i}", "patient_id": f"p{i}", "frontal": f"{i}.png"}))
    (tmp_path / "studies.jsonl").write_text("\n".join(lines))
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model").symlink_to(tower[0] / "model")
    given = (str(tmp_path / "studies.jsonl"), "maira2_vision", str(tmp_path / "killed"), "2", "--kill")
    command = [sys.executable, "-m", "tests.helpers.harvest_process", *given]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == -signal.SIGKILL
    set_shards(monkeypatch, 128, 64)
    config = base.get_config()
    config.studies = base.studies("manifest", path=str(tmp_path / "studies.jsonl"))
    config.harvest.update({"encoder": "maira2_vision", "rows": "patches", "batch_size": 4, "readers": 0})
    for name in ("whole", "killed"):
        harvest.run(config, tmp_path / name)
    whole, resumed = (ActivationStore.open(tmp_path / name / "activations") for name in ("whole", "killed"))
    assert whole.layout.n_shards == 2
    np.testing.assert_array_equal(resumed.read(0, 160), whole.read(0, 160))


def test_studies_without_a_frontal_image_are_left_out(config, tmp_path, monkeypatch):
    studies = load_studies(config.studies)
    without = [dataclasses.replace(study, frontal=None) if i % 2 else study for i, study in enumerate(studies)]
    monkeypatch.setattr(harvester, "load_readable", lambda *_: without)
    assert harvest.run(config, tmp_path / "half")["studies"] == 23
    monkeypatch.setattr(harvester, "load_readable", lambda *_: without[1::2])
    with pytest.raises(UserError, match="no study has a frontal image"):
        harvest.run(config, tmp_path / "none")


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"encoder": "resnet"}, "harvest.encoder is 'resnet': choose from maira2_vision, medclip_resnet50"),
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
    "fields, message",
    [({"weights": "nowhere.bin"}, "harvest.weights is 'nowhere.bin'"), ({"rows": "cls"}, "harvest.rows is 'cls'")],
)
def test_no_image_is_read_before_the_encoder_is_known_to_run(config, tmp_path, monkeypatch, fields, message):
    monkeypatch.setattr(harvester, "load_readable", lambda *_: pytest.fail("images are decoded"))
    config.harvest.update(fields)
    with pytest.raises(UserError, match=message):
        harvest.run(config, tmp_path)


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
