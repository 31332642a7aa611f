"""The harvest stage against the model run on each study alone."""

import dataclasses
import json
import shutil
import struct

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from configs import phantom
from maira_jax.checkpoint import convert, store
from maira_jax.errors import UserError
from maira_jax.inputs.image import ImageConfig, preprocess
from maira_jax.inputs.prompt import reporting_prompt, study_images
from maira_jax.inputs.tokens import Kind, Tokenizer, token_filter_mask
from maira_jax.model import maira2
from maira_jax.model.sites import Site
from maira_jax.run import files
from maira_jax.studies.readers import load_studies
from sae.activations import batches, harvest, live
from sae.activations.config import HarvestSection
from sae.activations.store import HELD_OUT, TRAIN, ActivationStore
from sae.training import stage
from tests.helpers.sae import make_model, set_shards

SITE = "language.1.resid_mid"


@pytest.fixture(scope="module", autouse=True)
def small_shards():
    with pytest.MonkeyPatch.context() as patch:
        set_shards(patch, 512, 64)
        yield


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    config = phantom.get_config()
    config.studies.n = 24
    checkpoint = tmp_path_factory.mktemp("model") / "hf"
    make_model(checkpoint, config.studies)
    config.model.checkpoint = str(checkpoint)
    config.harvest.update({"site": SITE, "batch_size": 4, "held_out_fraction": 0.3})
    return config


@pytest.fixture(scope="module")
def workdir(config, tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    convert.run(config, path)
    harvest.run(config, path)
    return path


def alone(config, workdir, study):
    """A study's activations, its ids and its kept positions, unpadded and not batched."""
    params, model = store.load(workdir / "model")
    tokenizer = Tokenizer.from_dir(workdir / "model")
    encoded = tokenizer.encode(reporting_prompt(study), study.findings)
    images = ImageConfig.from_dir(workdir / "model")
    pixels = [preprocess(image, images) for image in study_images(study)]
    output = maira2.forward(
        params,
        model,
        jnp.asarray(encoded.ids)[None],
        jnp.ones((1, len(encoded)), bool),
        jnp.asarray(np.stack(pixels))[None] if pixels else None,
        read=(Site.parse(SITE, model),),
        logits=False,
    )
    kept = np.flatnonzero(token_filter_mask(encoded.kinds, config.harvest.token_filter))
    return np.asarray(output.sites[SITE][0]), encoded, kept


def test_every_row_is_the_activation_of_its_token(config, workdir):
    stored = ActivationStore.open(workdir / "activations")
    assert stored.layout.n_shards > 2
    tokens, rows = stored.tokens, stored.studies.to_pylist()
    studies = load_studies(config.studies)
    assert [row["study_id"] for row in rows] == [study.study_id for study in studies]
    assert len({len(study_images(study)) for study in studies}) > 1
    for i in (0, 5, 11, 12, 23):
        row, study = rows[i], studies[i]
        activations, encoded, kept = alone(config, workdir, study)
        part = tokens.slice(row["start"], row["stop"] - row["start"])
        np.testing.assert_array_equal(part["study"], i)
        np.testing.assert_array_equal(part["position"], kept)
        np.testing.assert_array_equal(part["token_id"], encoded.ids[kept])
        np.testing.assert_array_equal(part["kind"], encoded.kinds[kept])
        # Other padded shapes sum in another order.
        found = stored.read(row["start"], row["stop"])
        np.testing.assert_allclose(found, activations[kept], rtol=1e-4, atol=1e-4)
        assert json.loads(row["labels"]) == dict(study.labels)


def test_the_token_filter_keeps_no_boilerplate(workdir):
    kinds = set(ActivationStore.open(workdir / "activations").tokens["kind"].to_pylist())
    assert {Kind.IMAGE_LAST, Kind.FINDINGS} <= kinds
    assert not kinds & {Kind.PAD, Kind.BOS, Kind.BOILERPLATE, Kind.IMAGE, Kind.EOS}


def test_patients_are_not_divided(workdir):
    rows = ActivationStore.open(workdir / "activations").studies.to_pylist()
    splits: dict[str, set[str]] = {}
    for row in rows:
        splits.setdefault(row["patient_id"], set()).add(row["split"])
    assert all(len(found) == 1 for found in splits.values())
    assert 0 < sum(row["split"] == HELD_OUT for row in rows) < len(rows)


def test_a_killed_harvest_resumes_without_loss(config, workdir, tmp_path, monkeypatch):
    shutil.copytree(workdir / "model", tmp_path / "model")
    write, written = harvest.StoreWriter.write, []

    def interrupted(self, shard, values):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(shard)
        write(self, shard, values)

    monkeypatch.setattr(harvest.StoreWriter, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        harvest.run(config, tmp_path)
    done = [path.stat().st_mtime_ns for path in sorted((tmp_path / "activations" / "shards").iterdir())]
    assert len(done) == 2
    monkeypatch.setattr(harvest.StoreWriter, "write", write)
    counts = harvest.run(config, tmp_path)
    marks = sorted((tmp_path / "activations" / "shards").iterdir())
    assert [path.stat().st_mtime_ns for path in marks[:2]] == done
    resumed, whole = ActivationStore.open(tmp_path / "activations"), ActivationStore.open(workdir / "activations")
    assert counts["tokens"] == whole.n_tokens
    np.testing.assert_array_equal(resumed.read(0, whole.n_tokens), whole.read(0, whole.n_tokens))
    assert resumed.tokens.equals(whole.tokens)


def test_the_model_on_the_fly_gives_the_stored_activations(config, workdir, monkeypatch):
    """Row by row, and in the shuffled order; other padded shapes sum in another order."""
    config = config.copy_and_resolve_references()
    monkeypatch.setattr(live, "BUFFER_TOKENS", 400)
    config.train.source = "model"
    running, stored = live.open_source(config, workdir), ActivationStore.open(workdir / "activations")
    assert (running.n_tokens, running.d_model, running.source) == (stored.n_tokens, stored.d_model, stored.source)
    for split in (TRAIN, HELD_OUT):
        np.testing.assert_array_equal(running.rows_of(split), stored.rows_of(split))
    rows = running.rows_of(HELD_OUT)
    found, expected = (np.concatenate(list(batches.sequential(source, rows, 150))) for source in (running, stored))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    shuffled = batches.ShuffledBatches(running, running.rows_of(TRAIN), 20, 5, 6, 3)
    groups = list(shuffled.iterate(0))
    assert [group.shape for group in groups] == [(5, 20, stored.d_model)] * 6
    every = np.round(stored.read(0, stored.n_tokens)[stored.rows_of(TRAIN)], 2)
    distances = np.abs(np.concatenate(groups).reshape(-1, 1, stored.d_model)[::25] - every).max(-1).min(1)
    assert distances.max() < 0.01
    # A run that is killed inside a buffer reads the same groups again.
    for group, again in zip(groups[2:], shuffled.iterate(2), strict=True):
        np.testing.assert_array_equal(group, again)


def scalars(directory) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard would show of an event folder: the steps and values of each scalar."""
    found: dict[str, list[tuple[int, float]]] = {}
    for path in sorted(directory.iterdir()):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = event_pb2.Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            for value in event.summary.value:
                if not value.HasField("histo"):
                    found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def test_training_from_the_model_on_the_fly(config, workdir, tmp_path, monkeypatch):
    monkeypatch.setattr(live, "BUFFER_TOKENS", 400)
    (tmp_path / "model").symlink_to(workdir / "model")
    config = config.copy_and_resolve_references()
    config.sae.update({"expansion": 2, "k": 4})
    short = {
        "steps": 20,
        "batch_size": 32,
        "checkpoint_every": 20,
        "evaluate_every": 10,
        "warmup_steps": 4,
        "decay_start": 16,
    }
    config.train.update(short | {"source": "model", "splice_studies": 3})
    counts = stage.run(config, tmp_path)
    assert not (tmp_path / "activations").exists()
    measured = files.read_json(tmp_path / "sae" / "metrics.json")
    loss = measured["loss"]
    assert measured["tokens"] == len(ActivationStore.open(workdir / "activations").rows_of(HELD_OUT))
    assert 0 < loss["tokens"] < loss["replaced"] < measured["tokens"]
    assert counts["loss_recovered"] == (loss["ce_zero"] - loss["ce_spliced"]) / (loss["ce_zero"] - loss["ce"])
    shown = scalars(tmp_path / "sae" / "tensorboard")
    lines = [json.loads(line) for line in (tmp_path / "sae" / "log.jsonl").read_text().splitlines()]
    assert [step for step, _ in shown["train/loss"]] == [9, 19]
    np.testing.assert_allclose(
        [value for _, value in shown["train/fvu"]], [lines[9]["fvu"], lines[19]["fvu"]], rtol=1e-6
    )
    np.testing.assert_allclose(shown["train/level_errors/4"][1][1], lines[19]["level_errors"][4], rtol=1e-6)
    halfway = json.loads((tmp_path / "sae" / "held_out.jsonl").read_text())
    np.testing.assert_allclose(shown["held_out/fvu"], [(9, halfway["fvu"]), (20, measured["fvu"])], rtol=1e-6)
    np.testing.assert_allclose(shown["held_out/loss/recovered_zero"], [(20, counts["loss_recovered"])], rtol=1e-6)
    assert stage.run(config, tmp_path) == counts
    with pytest.raises(UserError, match="harvest.token_filter"):
        config.harvest.token_filter = "findings"
        stage.run(config, tmp_path)


def test_studies_without_images(config, workdir, tmp_path):
    shutil.copytree(workdir / "model", tmp_path / "model")
    studies = [dataclasses.replace(s, frontal=None, prior_frontal=None) for s in load_studies(config.studies)[:4]]
    tokenizer = Tokenizer.from_dir(workdir / "model")
    plan = harvest.make_plan(studies, tokenizer, HarvestSection.of(config))
    assert set(plan.n_images) == {0}


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("site", "language.7.resid_post", "no site"),
        ("site", "vision.0.resid_post", "choose a language site"),
        ("token_filter", "everything", "harvest.token_filter"),
        ("batch_size", 0, "harvest.batch_size"),
        ("held_out_fraction", 1.0, "held_out_fraction"),
        ("dtype", "float16", "harvest.dtype"),
    ],
)
def test_fields_out_of_range(config, workdir, tmp_path, field, value, message):
    (tmp_path / "model").symlink_to(workdir / "model")
    changed = config.copy_and_resolve_references()
    changed.harvest[field] = value
    with pytest.raises(UserError, match=message):
        harvest.run(changed, tmp_path)
    assert not (tmp_path / "activations").exists()
