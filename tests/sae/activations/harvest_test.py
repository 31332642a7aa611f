"""The harvest stage, against the model run on each study alone."""

import contextlib
import dataclasses
import json
import shutil
import signal
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import base
from maira_jax.checkpoint import store
from maira_jax.errors import UserError
from maira_jax.inputs.image import ImageConfig, preprocess
from maira_jax.inputs.prompt import reporting_prompt, study_images
from maira_jax.inputs.tokens import Kind, Tokenizer, token_filter_mask
from maira_jax.model.sites import Site
from maira_jax.run import processes
from maira_jax.studies.readers import load_studies
from sae.activations import harvest, open_shards
from sae.activations.config import HarvestSection
from sae.activations.harvest_plan import make_plan
from sae.activations.store import HELD_OUT, ActivationStore, StoreLayout
from tests.helpers.dicom_file import write_dicom
from tests.helpers.paths import ROOT
from tests.helpers.sae import assert_same_tokens
from tests.helpers.tiny_model import forward
from tests.helpers.traces import names_in

M1 = "MONOCHROME1"


def alone(config, workdir, study):
    """A study's activations, its ids and its kept positions, unpadded and not batched."""
    params, model = store.load(workdir / "model")
    tokenizer = Tokenizer.from_dir(workdir / "model")
    encoded = tokenizer.encode(reporting_prompt(study), study.findings)
    images = ImageConfig.from_dir(workdir / "model")
    pixels = [preprocess(image, images) for image in study_images(study)]
    output = forward(
        params,
        model,
        jnp.asarray(encoded.ids)[None],
        jnp.ones((1, len(encoded)), bool),
        jnp.asarray(np.stack(pixels))[None] if pixels else None,
        read=(Site.parse(config.harvest.site, model),),
        logits=False,
    )
    kept = np.flatnonzero(token_filter_mask(encoded.kinds, config.harvest.token_filter))
    return np.asarray(output.sites[config.harvest.site][0]), encoded, kept


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
        part = slice(row["start"], row["stop"])
        np.testing.assert_array_equal(tokens.study[part], i)
        np.testing.assert_array_equal(tokens.position[part], kept)
        np.testing.assert_array_equal(tokens.token_id[part], encoded.ids[kept])
        np.testing.assert_array_equal(tokens.kind[part], encoded.kinds[kept])
        # Other padded shapes sum in another order.
        found = stored.read(row["start"], row["stop"])
        np.testing.assert_allclose(found, activations[kept], rtol=1e-4, atol=1e-4)
        assert json.loads(row["labels"]) == dict(study.labels)


def test_batches_are_traced(workdir):
    names = names_in(workdir / "profile")
    assert names["harvest"] == names["feed"] == 2


def test_the_token_filter_keeps_no_boilerplate(workdir):
    kinds = set(ActivationStore.open(workdir / "activations").tokens.kind.tolist())
    assert {Kind.IMAGE, Kind.IMAGE_LAST, Kind.FINDINGS} <= kinds
    assert not kinds & {Kind.PAD, Kind.BOS, Kind.BOILERPLATE, Kind.EOS}


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
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "activations" / "shards").iterdir()}
    assert len(done) == 2
    monkeypatch.setattr(harvest.StoreWriter, "write", write)
    counts = harvest.run(config, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in done} == done
    resumed, whole = ActivationStore.open(tmp_path / "activations"), ActivationStore.open(workdir / "activations")
    assert counts["tokens"] == whole.n_tokens
    np.testing.assert_array_equal(resumed.read(0, whole.n_tokens), whole.read(0, whole.n_tokens))
    assert_same_tokens(resumed.tokens, whole.tokens)


def test_studies_without_images(config, workdir, tmp_path):
    shutil.copytree(workdir / "model", tmp_path / "model")
    studies = [dataclasses.replace(s, frontal=None, prior_frontal=None) for s in load_studies(config.studies)[:4]]
    tokenizer = Tokenizer.from_dir(workdir / "model")
    plan = make_plan(studies, tokenizer, HarvestSection.of(config))
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


def manifest_of(studies, folder, dicom=False):
    """The studies with their images as files, three times as large as the model takes them."""
    folder.mkdir()
    lines = []
    for study in studies:
        line = {"study_id": study.study_id, "patient_id": study.patient_id, "findings": study.findings}
        for name in ("frontal", "prior_frontal"):
            image = getattr(study, name)
            if image is not None:
                line[name] = f"{study.study_id}-{name}.{'dcm' if dicom else 'png'}"
                large = np.kron(image, np.ones((3, 3), np.uint8))
                if dicom:
                    write_dicom(folder / line[name], 4095 - 10 * large.astype(np.uint16), PhotometricInterpretation=M1)
                else:
                    Image.fromarray(large).save(folder / line[name])
        lines.append(json.dumps(line))
    (folder / "studies.jsonl").write_text("\n".join(lines))
    return folder / "studies.jsonl"


def test_dicom_gives_the_bits_of_the_equal_image(config, workdir, tmp_path):
    found = []
    for name in ("png", "dcm"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model").symlink_to(workdir / "model")
        changed = config.copy_and_resolve_references()
        manifest = manifest_of(load_studies(config.studies)[:2], tmp_path / name / "studies", name == "dcm")
        changed.studies = base.studies("manifest", path=str(manifest))
        harvest.run(changed, tmp_path / name)
        stored = ActivationStore.open(tmp_path / name / "activations")
        found.append(stored.read(0, stored.n_tokens))
    np.testing.assert_array_equal(*found)


def test_killed_with_worker_processes_it_resumes_to_the_same_bits(config, workdir, tmp_path):
    manifest = manifest_of(load_studies(config.studies), tmp_path / "studies")
    for name in ("whole", "killed"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "model").symlink_to(workdir / "model")
    command = [sys.executable, "-m", "tests.helpers.harvest_process", str(manifest), config.harvest.site]
    subprocess.run([*command, str(tmp_path / "whole"), "0"], cwd=ROOT, check=True)
    expected = ActivationStore.open(tmp_path / "whole" / "activations")
    # It stops itself after its first shard, as the kernel would when memory runs out.
    killed = subprocess.run([*command, str(tmp_path / "killed"), "2", "--kill"], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert 0 < len(list((tmp_path / "killed" / "activations" / "shards").iterdir())) < expected.layout.n_shards
    subprocess.run([*command, str(tmp_path / "killed"), "2"], cwd=ROOT, check=True)
    resumed = ActivationStore.open(tmp_path / "killed" / "activations")
    np.testing.assert_array_equal(resumed.read(0, resumed.n_tokens), expected.read(0, expected.n_tokens))


def test_a_broken_image_is_named(config, workdir, tmp_path):
    manifest = manifest_of(load_studies(config.studies)[:6], tmp_path / "studies")
    broken = next((tmp_path / "studies").glob("*-frontal.png"))
    broken.write_bytes(b"")
    (tmp_path / "model").symlink_to(workdir / "model")
    changed = config.copy_and_resolve_references()
    changed.studies = base.studies("manifest", path=str(manifest))
    with pytest.raises(UserError, match=f"image files cannot be read: .*{broken.name}; "):
        harvest.run(changed, tmp_path)


def test_an_open_batch_size_stays_what_the_first_attempt_chose(config, workdir, tmp_path, monkeypatch):
    (tmp_path / "model").symlink_to(workdir / "model")
    changed = config.copy_and_resolve_references()
    changed.harvest.batch_size = None
    for choice in (5, 7):
        monkeypatch.setattr(harvest, "automatic_batch_size", lambda *_, choice=choice: choice)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(harvest.StoreWriter, "write", interrupt)
            harvest.run(changed, tmp_path)
    harvest.run(changed, tmp_path)
    assert json.loads((tmp_path / "activations" / "manifest.json").read_text())["chosen"] == {"batch_size": 5}


def interrupt(*_):
    raise KeyboardInterrupt


def test_all_processes_take_the_batch_size_of_the_first(config, workdir, monkeypatch):
    monkeypatch.setattr(processes, "broadcast", lambda own: own + 3)  # as if the first one had chosen another
    with contextlib.closing(harvest.Harvester.open(config, workdir)) as harvester:
        assert harvester.batch_size == config.harvest.batch_size + 3
        assert all(len(batch.studies) <= harvester.batch_size for batch in harvester.batches.all())
        assert any(len(batch.studies) == harvester.batch_size for batch in harvester.batches.all())


@pytest.mark.parametrize("missing", [[0, 1, 2, 3, 4, 5, 6, 7], [1, 2, 7], [7], []])
@pytest.mark.parametrize("n", [1, 2, 3, 12])
def test_every_missing_shard_is_of_one_process_and_shares_are_even(monkeypatch, missing, n):
    layout, shares = StoreLayout(1000, 8, "float32", 128, 64), []
    to_compute = [stop - start for start, stop in map(layout.rows, missing)]
    monkeypatch.setattr(processes, "count", lambda: n)
    for process in range(n):
        monkeypatch.setattr(processes, "index", lambda process=process: process)
        shares.append(open_shards.share(missing, to_compute))
    assert [shard for share in shares for shard in share] == missing
    sizes = [sum(stop - start for start, stop in map(layout.rows, share)) for share in shares]
    assert max(sizes) <= sum(sizes) / n + 128


def test_a_harvest_that_lacks_a_shard_is_not_finished(config, workdir, tmp_path, monkeypatch):
    (tmp_path / "model").symlink_to(workdir / "model")
    with monkeypatch.context() as patch, pytest.raises(UserError, match="activations lacks shard 0"):
        patch.setattr(open_shards, "share", lambda *_: [])
        harvest.run(config, tmp_path)
    assert not (tmp_path / "activations" / "manifest.json").exists()
