import pytest

from maira_jax.errors import UserError
from maira_jax.run import processes, storage
from sae.training.checkpoints import Checkpoints


def test_checkpoints_of_several_processes_are_not_kept_in_a_bucket(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "is_remote", lambda path: True)
    monkeypatch.setattr(processes, "count", lambda: 2)
    with pytest.raises(UserError, match="not written to a bucket: choose a --workdir that all hosts share"):
        Checkpoints(tmp_path, trainer=None)
