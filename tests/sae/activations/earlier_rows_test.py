"""A harvest of changed studies copies the rows that are there, against one that computes all of them."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from configs import base
from maira_jax.errors import UserError
from maira_jax.studies.readers import load_studies
from sae.activations import earlier_rows, harvest
from sae.activations.store import ActivationStore, StoreWriter
from tests.helpers import pods
from tests.helpers.sae import assert_same_tokens
from tests.sae.activations.harvest_test import manifest_of

_GONE, _CHANGED = 7, 3  # numbers of the study that is taken out, and of the one with another report


@pytest.fixture(scope="module")
def studies(config):
    """The package's studies, all of one length, so that their batches do not decide what they are padded to."""
    found = list(load_studies(config.studies))
    return [dataclasses.replace(study, findings=found[0].findings, prior_frontal=None) for study in found]


@pytest.fixture
def of_files(config, workdir, studies, tmp_path):
    """A run's folder, its configuration, and the lines of its manifest, which a test may change."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "model").symlink_to(workdir / "model")
    changed = config.copy_and_resolve_references()
    changed.studies = base.studies("manifest", path=str(manifest_of(studies, tmp_path / "studies")))
    changed.harvest.readers = 0
    return run, changed, Path(changed.studies.path).read_text().splitlines()


def give(config, lines):
    Path(config.studies.path).write_text("\n".join(lines))


def without_one(lines):
    """The lines without one study, and with another report in one."""
    line = json.loads(lines[_CHANGED])
    words = line["findings"].split()
    line["findings"] = " ".join([words[1], words[0], *words[2:]])
    return [json.dumps(line) if i == _CHANGED else text for i, text in enumerate(lines) if i != _GONE]


def fresh(config, workdir, tmp_path):
    """A store of the present studies, made where there was none."""
    folder = tmp_path / "fresh"
    folder.mkdir()
    (folder / "model").symlink_to(workdir / "model")
    harvest.run(config, folder)
    return ActivationStore.open(folder / "activations")


def assert_equal(store, expected):
    np.testing.assert_array_equal(store.read(0, store.n_tokens), expected.read(0, expected.n_tokens))
    assert_same_tokens(store.tokens, expected.tokens)
    assert store.studies.equals(expected.studies)
    assert not (store.directory / "earlier").exists()


def computed(monkeypatch):
    """Gathers the ids of the studies that go through the model."""
    found, read = [], harvest.Harvester.read

    def watched(self, batches, **options):
        batches = list(batches)
        found.extend(self.plan.studies[number].study_id for batch in batches for number in batch.studies)
        return read(self, batches, **options)

    monkeypatch.setattr(harvest.Harvester, "read", watched)
    return found


def test_rows_of_unchanged_studies_are_copied(of_files, workdir, tmp_path, monkeypatch):
    run, config, lines = of_files
    harvest.run(config, run)
    through_model = computed(monkeypatch)
    assert harvest.run(config, run)["studies"] == 24
    give(config, without_one(lines))
    config.harvest.remove_studies = True
    assert harvest.run(config, run)["studies"] == 23
    assert through_model == [json.loads(lines[_CHANGED])["study_id"]]
    store, expected = ActivationStore.open(run / "activations"), fresh(config, workdir, tmp_path)
    assert_equal(store, expected)
    give(config, lines)  # what was taken out comes back, and computes what it lacks
    del through_model[:]
    assert harvest.run(config, run)["studies"] == 24
    assert sorted(through_model) == sorted(json.loads(lines[i])["study_id"] for i in (_CHANGED, _GONE))


def test_a_study_is_taken_out_only_where_that_is_asked_for(of_files):
    run, config, lines = of_files
    harvest.run(config, run)
    before = ActivationStore.open(run / "activations").studies
    give(config, without_one(lines))
    gone = json.loads(lines[_GONE])["study_id"]
    with pytest.raises(UserError, match=rf"not among the readable ones any more: {gone}: .*remove_studies=true"):
        harvest.run(config, run)
    assert not (run / "activations" / "unfinished.json").exists()
    assert ActivationStore.open(run / "activations").studies.equals(before)
    give(config, lines)
    assert harvest.run(config, run)["studies"] == 24


def test_an_image_that_becomes_unreadable_takes_its_study_alone_out(of_files, monkeypatch):
    run, config, lines = of_files
    config.studies.on_error = "skip"
    harvest.run(config, run)
    line = json.loads(lines[_GONE])
    (Path(config.studies.path).parent / line["frontal"]).write_bytes(b"no image")
    config.harvest.remove_studies = True
    through_model = computed(monkeypatch)
    assert harvest.run(config, run)["studies"] == 23
    assert through_model == []
    assert line["study_id"] not in ActivationStore.open(run / "activations").studies["study_id"].to_pylist()


@pytest.mark.parametrize("at", ["no file moved", "header moved", "values moved", "all moved", "one shard written"])
def test_killed_anywhere_it_resumes_to_the_same_bits(of_files, workdir, tmp_path, monkeypatch, at):
    run, config, lines = of_files
    harvest.run(config, run)
    give(config, without_one(lines))
    config.harvest.remove_studies = True
    name, left = {
        "no file moved": ("rename", 0),
        "header moved": ("rename", 1),
        "values moved": ("rename", 2),
        "all moved": ("rename", 5),
        "one shard written": ("write", 1),
    }[at]
    owner = Path if name == "rename" else StoreWriter
    call = getattr(owner, name)

    def interrupted(self, *arguments):
        nonlocal left
        if name == "write" or "earlier" in str(arguments[0]):
            if not left:
                raise KeyboardInterrupt
            left -= 1
        return call(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(owner, name, interrupted)
        harvest.run(config, run)
    through_model = computed(monkeypatch)
    harvest.run(config, run)
    assert set(through_model) <= {json.loads(lines[_CHANGED])["study_id"]}
    assert_equal(ActivationStore.open(run / "activations"), fresh(config, workdir, tmp_path))


def test_an_unfinished_harvest_gives_its_finished_shards(of_files, workdir, tmp_path, monkeypatch):
    run, config, lines = of_files
    write, written = StoreWriter.write, []

    def interrupted(self, shard, values):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(self.layout.rows(shard))
        write(self, shard, values)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(StoreWriter, "write", interrupted)
        harvest.run(config, run)
    give(config, lines[1:])
    config.harvest.remove_studies = True
    through_model = computed(monkeypatch)
    assert harvest.run(config, run)["studies"] == 23
    rows = ActivationStore.open(run / "activations").studies["stop"].to_numpy()[0]  # of each study
    assert len(set(through_model)) == 23 - (written[-1][1] // rows - 1) < 22


_CONFIG = """
from configs import base
from sae.activations import store

store.SHARD_ROWS, store.CHUNK_ROWS = 512, 64


def get_config():
    config = base.get_config()
    config.studies = base.studies("manifest", path={path!r})
    config.harvest.update({harvest!r})
    config.model.checkpoint = {checkpoint!r}
    return config
"""


@pytest.mark.drill
def test_two_processes_copy_and_compute_their_shares(of_files, workdir, tmp_path):
    run, config, lines = of_files
    harvest.run(config, run)
    give(config, without_one(lines))
    text = _CONFIG.format(
        path=config.studies.path,
        harvest=config.harvest.to_dict() | {"remove_studies": True},
        checkpoint=str(config.model.checkpoint),
    )
    (tmp_path / "two.py").write_text(text)
    pods.launch("harvest", f"--config={tmp_path / 'two.py'}", f"--workdir={run}", processes=2, devices=1)
    assert_equal(ActivationStore.open(run / "activations"), fresh(config, workdir, tmp_path))


def test_a_store_in_a_bucket_is_not_moved(of_files, monkeypatch):
    run, config, lines = of_files
    harvest.run(config, run)
    give(config, lines[1:])
    monkeypatch.setattr(earlier_rows.storage, "is_remote", lambda path: True)
    with pytest.raises(UserError, match="in a bucket"):
        harvest.run(config, run)
