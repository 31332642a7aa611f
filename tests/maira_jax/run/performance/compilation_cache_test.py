"""A command that is run again, in another process, compiles nothing."""

import importlib.util
import stat
from pathlib import Path

import pytest

from maira_jax.errors import UserError
from maira_jax.run.performance import compilation_cache
from maira_jax.run.performance.compilation_cache import default_directory, keep_programs
from tests.helpers.commands import launch
from tests.helpers.sae import activations, make_store

VARIABLES = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
TRAIN = (
    "steps=20",
    "batch_size=64",
    "warmup_steps=2",
    "decay_start=15",
    "evaluate_every=10",
    "loss_recovered_studies=0",
)


def programs(directory: Path) -> set[str]:
    return {path.name for path in directory.glob("*-cache")}


def test_a_second_run_compiles_nothing(tmp_path, monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    kept = tmp_path / "cache" / "programs"
    found = []
    for run in ("a", "b"):
        make_store(tmp_path / run, activations(1200, 8))
        fields = [f"--config.train.{field}" for field in TRAIN]
        done = launch("train", f"--workdir={tmp_path / run}", f"--compilation_cache={kept}", *fields)
        assert done.returncode == 0, done.stderr
        found.append(programs(kept))
    assert found[0] and found[1] == found[0]
    assert stat.S_IMODE(kept.stat().st_mode) == 0o700


def test_the_environment_comes_first_and_empty_keeps_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLES[0], str(tmp_path / "given"))
    keep_programs(str(tmp_path / "mine"))
    monkeypatch.delenv(VARIABLES[0])
    keep_programs("")
    assert not (tmp_path / "mine").exists()


def test_a_folder_that_cannot_be_made_is_refused(tmp_path, monkeypatch):
    monkeypatch.delenv(VARIABLES[0], raising=False)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--compilation_cache=.*cannot be written"):
        keep_programs(str(tmp_path / "file" / "cache"))


def test_programs_are_kept_in_a_bucket_where_jax_can_open_it(monkeypatch):
    monkeypatch.delenv(VARIABLES[0], raising=False)
    kept = []
    monkeypatch.setattr(compilation_cache, "_keep_in", kept.append)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "s3fs" or None)
    keep_programs("s3://bucket/programs")
    with pytest.raises(UserError, match=r"--compilation_cache=gs://.* needs gcsfs: pip install -e '\.\[gs\]'"):
        keep_programs("gs://bucket/programs")
    with pytest.raises(UserError, match="--compilation_cache=ftp://.* use gs:// or s3://"):
        keep_programs("ftp://bucket/programs")
    assert kept == ["s3://bucket/programs"]


def test_the_default_is_in_the_users_cache_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_directory().parent == tmp_path / "maira-jax"
