"""What a command writes can be read by its user alone, or by the group of a run directory that is the group's."""

import os
import stat

import pytest

from maira_jax.errors import UserError
from maira_jax.run import files, permissions


@pytest.fixture(autouse=True)
def usual(monkeypatch):
    """The permissions that most users' shells give, here and after the test."""
    before = os.umask(0o022)
    monkeypatch.setattr(permissions, "_umask", 0o022)
    yield
    os.umask(before)


def modes(*paths):
    return [stat.S_IMODE(path.stat().st_mode) for path in paths]


def written_in(workdir):
    """The modes of a run directory, of a folder and a file in it, and of a file that a library kept to its user."""
    files.write_json(workdir / "sae" / "manifest.json", {})
    with files.atomic_path(workdir / "sae" / "weights") as temporary:
        temporary.touch(0o600)
    return modes(workdir, workdir / "sae", workdir / "sae" / "manifest.json", workdir / "sae" / "weights")


@pytest.mark.parametrize(("group", "folder", "file"), [(False, 0o700, 0o600), (True, 0o770, 0o660)])
def test_a_new_run_directory(tmp_path, group, folder, file):
    permissions.restrict(tmp_path / "run", group)
    assert written_in(tmp_path / "run") == [folder, folder, file, file]


@pytest.mark.parametrize(
    ("workdir", "folder", "file"), [(0o700, 0o700, 0o600), (0o755, 0o700, 0o600), (0o775, 0o770, 0o660)]
)
def test_a_run_directory_that_is_there_says_who_may_read(tmp_path, workdir, folder, file):
    tmp_path.chmod(workdir)
    permissions.restrict(tmp_path, group=False)
    assert written_in(tmp_path) == [workdir, folder, file, file]


def test_a_private_run_directory_is_not_given_to_the_group(tmp_path):
    tmp_path.chmod(0o700)
    with pytest.raises(UserError, match="chmod -R g"):
        permissions.restrict(tmp_path, group=True)
    assert modes(tmp_path) == [0o700]


def test_a_private_file_stays_private_when_it_is_written_again(tmp_path):
    path = tmp_path / "config.json"
    path.touch(0o600)
    files.write_json(path, {})
    assert modes(path) == [0o600]
