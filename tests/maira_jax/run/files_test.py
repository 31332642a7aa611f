"""Files that are whole or absent, and digests of files and folders."""

import json
import os
import resource
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from maira_jax.errors import UserError
from maira_jax.run import files


def test_a_digest_is_of_names_and_contents(tmp_path):
    folder = tmp_path / "sae"
    (folder / "inner").mkdir(parents=True)
    (folder / "a.bin").write_bytes(b"a")
    (folder / "inner" / "b.bin").write_bytes(b"b")
    assert files.content_digest(folder / "a.bin") == files.sha256(folder / "a.bin")
    before = files.content_digest(folder)
    moved = folder.rename(tmp_path / "moved")
    assert files.content_digest(moved) == before
    (moved / "a.bin").rename(moved / "c.bin")
    assert files.content_digest(moved) != before
    with pytest.raises(UserError, match="sae does not exist: check the path"):
        files.content_digest(folder)


def test_an_atomic_file_may_be_read_by_whom_others_may(tmp_path):
    plain, path = tmp_path / "plain", tmp_path / "path"
    plain.touch()
    with files.atomic_path(path) as temporary:
        temporary.touch(0o600)
    assert path.stat().st_mode == plain.stat().st_mode


def test_an_atomic_file_is_whole_or_absent(tmp_path):
    path = tmp_path / "out.json"
    with pytest.raises(RuntimeError), files.atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    files.write_json(path, {"a": 1})
    with pytest.raises(ValueError):
        files.write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1} and list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="could not write"), files.atomic_path(Path(tmp_path / "x")) as temporary:
        with open("/dev/full", "w") as full:
            full.write("x" * 100_000)
        temporary.write_text("never")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_under_safetensors_is_one_sentence(tmp_path):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
    try:
        with (
            pytest.raises(UserError, match="could not write .*too large"),
            files.atomic_path(tmp_path / "x") as temporary,
        ):
            save_file({"w": np.zeros(1000, np.float32)}, temporary)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_killed_commands_are_removed(tmp_path):
    for name in ("a/.b.json.1.tmp", "a/.c.2.tmp/d", "a/e.tmp", "f"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    files.remove_leftovers(tmp_path)
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")} == {"a", "a/e.tmp", "f"}


def test_an_array_on_disk_has_its_place_from_the_start(tmp_path):
    array = files.array_on_disk(tmp_path / "a.npy", np.float32, (1000, 1000))
    assert array.shape == (1000, 1000) and not array.any()
    assert (tmp_path / "a.npy").stat().st_blocks * 512 >= array.nbytes
    with pytest.raises(UserError, match="could not write"):
        files.array_on_disk(tmp_path / "none" / "a.npy", np.float32, (1,))


def test_json_that_is_missing_or_broken(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        files.read_json(tmp_path / "none.json")
    for text in ("{", "[" * 100_000, "1" * 5000):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(UserError, match="not valid JSON"):
            files.read_json(tmp_path / "bad.json")
    with pytest.raises(UserError, match="Is a directory"):
        files.read_json(tmp_path)


def test_what_has_no_end_is_not_read_as_text(tmp_path):
    (tmp_path / "endless.json").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe.json")
    for name in ("endless.json", "pipe.json"):
        with pytest.raises(UserError, match=f"{name} cannot be read .it is a device or a pipe.: put a file there"):
            files.read_object(tmp_path / name)
    with (tmp_path / "long.json").open("wb") as file:
        file.truncate(2**30 + 1)  # takes no space
    with pytest.raises(UserError, match=r"long.json has 1073741825 bytes, more than the 1073741824 of a text"):
        files.read_object(tmp_path / "long.json")
