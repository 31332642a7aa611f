"""Files of finished stages that were changed, cut or removed are named: by the next stage, or by reading everything."""

import os
import random
import re
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorstore as ts

from maira_jax.errors import UserError
from maira_jax.run import files
from maira_jax.run.stages import checksums
from maira_jax.run.stages.stage import MANIFEST, UNFINISHED, Stage
from maira_jax.run.stages.verify import verify

FILES = ("numbers.json", "lines.jsonl", "table.parquet", "density.npy", "deep/er/plain.txt", "values.zarr/zarr.json")
CHUNK = "values.zarr/c/0"


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run directory with one stage, whose files are of all kinds, and an array of three chunks."""
    workdir = tmp_path_factory.mktemp("run")
    with Stage(workdir, "activations", {"a": 1}) as stage:
        folder = stage.dir
        files.write_json(folder / "numbers.json", {"n": list(range(50))})
        (folder / "lines.jsonl").write_text('{"study_id": "s1"}\n' * 20)
        pq.write_table(pa.table({"study_id": [f"s{i}" for i in range(500)]}), folder / "table.parquet")
        np.save(folder / "density.npy", np.random.default_rng(0).random(100))
        (folder / "deep" / "er").mkdir(parents=True)
        (folder / "deep" / "er" / "plain.txt").write_text("words")
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(folder / "values.zarr")}}
        codecs = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
        grid = {"name": "regular", "configuration": {"chunk_shape": [4000]}}
        metadata = {"shape": [12_000], "data_type": "float32", "chunk_grid": grid, "codecs": codecs}
        array = ts.open(spec | {"metadata": metadata}, create=True).result()
        array.write(np.random.default_rng(1).random(12_000, np.float32)).result()
        stage.finish({"n": 3})
    return workdir


def next_stage(workdir):
    with Stage(workdir, "sae", {"b": 2}, inputs=("activations",)) as stage:
        return stage.manifest


@pytest.fixture
def copy(run_dir, tmp_path):
    shutil.copytree(run_dir, tmp_path / "copy")
    return tmp_path / "copy"


def test_a_record_that_is_a_pipe_is_not_waited_for(copy):
    os.mkfifo(copy / "activations" / UNFINISHED)
    with pytest.raises(UserError, match=f"{UNFINISHED} cannot be read"):
        verify(copy)


def test_what_is_whole_is_counted(copy):
    assert verify(copy) == {"stages": 1, "files": 9, "arrays": 1}
    assert next_stage(copy)["inputs"].keys() == {"activations"}


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_every_flipped_bit_is_found_by_the_next_stage_and_by_reading_everything(copy, name):
    path, rng = copy / "activations" / name, random.Random(name)
    whole = path.read_bytes()
    for _ in range(50):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        for read in (next_stage, verify):
            with pytest.raises(UserError):
                read(copy)
    for change in (lambda: path.write_bytes(whole[:-2]), path.unlink):
        change()
        for read in (next_stage, verify):
            with pytest.raises(UserError):
                read(copy)
    assert not (copy / "sae").exists()
    path.write_bytes(whole)
    next_stage(copy)


def test_a_chunk_that_was_changed_is_found_where_it_is_read_and_a_missing_one_before(copy, capsys):
    path, rng = copy / "activations" / CHUNK, random.Random(0)
    whole = path.read_bytes()
    for _ in range(50):
        damaged = bytearray(whole)
        damaged[rng.randrange(4096, len(whole) - 4096)] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="1 of what the stages of .* wrote is missing or was changed"):
            verify(copy)
        assert "values.zarr cannot be read" in capsys.readouterr().err
    path.unlink()
    with pytest.raises(UserError, match="values.zarr/c/0 is missing: restore it, or delete .*launch.harvest"):
        next_stage(copy)
    with pytest.raises(UserError, match="2 of what the stages"):
        verify(copy)


def test_a_whole_chunk_in_the_place_of_another_is_found(copy, capsys):
    one, other = (copy / "activations" / "values.zarr" / "c" / name for name in "01")
    shutil.copyfile(one, other)
    with pytest.raises(UserError, match="values.zarr/c/1 is not what the stage wrote"):
        next_stage(copy)
    with pytest.raises(UserError, match="1 of what the stages"):
        verify(copy)
    assert "values.zarr/c/1" in capsys.readouterr().err


def made_of(workdir, seed):
    """A run of two stages, of which the second one is made of the first."""
    for name, inputs in (("activations", ()), ("sae", ("activations",))):
        with Stage(workdir, name, {"seed": seed}, inputs) as stage:
            stage.finish({})


def test_a_stage_that_was_made_of_another_one_is_refused_by_what_reads_it(tmp_path, capsys):
    made_of(tmp_path / "one", 1)
    made_of(tmp_path / "two", 2)
    shutil.rmtree(tmp_path / "one" / "sae")
    shutil.copytree(tmp_path / "two" / "sae", tmp_path / "one" / "sae")
    sentence = "one/sae was made of another .*one/activations than the one that is there"
    with (
        pytest.raises(UserError, match=sentence + ".*launch.train"),
        Stage(tmp_path / "one", "label", {}, inputs=("sae",)),
    ):
        pass
    with pytest.raises(UserError, match="1 of what the stages"):
        verify(tmp_path / "one")
    assert re.search(sentence, capsys.readouterr().err)


def test_a_stage_that_is_gone_is_named(tmp_path, capsys):
    made_of(tmp_path, 1)
    shutil.rmtree(tmp_path / "activations")
    with pytest.raises(UserError, match="1 of what the stages"):
        verify(tmp_path)
    assert re.search("activations, which .*sae was made of, is missing", capsys.readouterr().err)
    with Stage(tmp_path, "label", {}, inputs=("sae",)) as stage:  # which needs no activations
        stage.finish({})


@pytest.mark.parametrize(
    "change", [{"files": None}, {"files": []}, {"files": {"a": 3}}, {"inputs": []}, {"counts": 1}, {"grows": None}]
)
def test_a_manifest_of_another_form_is_refused_whoever_signed_it(copy, change):
    path = copy / "activations" / MANIFEST
    files.write_json(path, checksums.sign(files.read_object(path) | change))
    for read in (next_stage, verify):
        with pytest.raises(UserError):
            read(copy)


def test_a_folder_without_finished_stages_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no finished stage: check --workdir"):
        verify(tmp_path)
