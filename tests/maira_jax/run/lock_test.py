import json
import os
import time

import pytest

from maira_jax.errors import UserError
from maira_jax.run import lock
from maira_jax.run.lock import FolderLock


def _write(path, **changes):
    path.write_text(json.dumps(lock._this_process() | changes))


def test_a_lock_keeps_others_out_until_it_is_released(tmp_path):
    ours = FolderLock(tmp_path / "sae")
    ours.acquire()
    with pytest.raises(UserError, match=rf"another command works in .*sae \(process {os.getpid()} on .*\): wait"):
        FolderLock(tmp_path / "sae").acquire()
    ours.release()
    assert not list(tmp_path.iterdir())
    FolderLock(tmp_path / "sae").acquire()


def test_a_lock_of_a_process_that_has_ended_is_taken_over(tmp_path):
    path = tmp_path / ".sae.lock"
    for ended in ({"process": 2**22 + 1}, {"started": "another process with this number"}, {"process": "?"}):
        _write(path, **ended)
        ours = FolderLock(tmp_path / "sae")
        ours.acquire()
        assert json.loads(path.read_text())["process"] == os.getpid()
        ours.release()


def test_a_lock_of_another_host_is_taken_over_when_it_shows_no_sign_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_EXPIRES", 0.4)
    path = tmp_path / ".sae.lock"
    for left in (json.dumps({"host": "elsewhere", "process": 7, "namespace": "elsewhere"}), "half of a li", "[]"):
        path.write_text(left)
        ours = FolderLock(tmp_path / "sae")
        ours.acquire()
        ours.release()
    _write(path, namespace="elsewhere")
    monkeypatch.setattr(time, "sleep", lambda seconds: os.utime(path))
    with pytest.raises(UserError, match="another command works"):
        FolderLock(tmp_path / "sae").acquire()


def test_a_lock_shows_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_REFRESH", 0.01)
    path, ours = tmp_path / ".sae.lock", FolderLock(tmp_path / "sae")
    ours.acquire()
    before = path.stat().st_mtime_ns
    while path.stat().st_mtime_ns == before:
        time.sleep(0.01)
    ours.release()


def test_a_lock_that_was_taken_over_is_not_removed_by_its_former_holder(tmp_path):
    path, ours = tmp_path / ".sae.lock", FolderLock(tmp_path / "sae")
    ours.acquire()
    _write(path)
    ours.release()
    assert path.exists()
