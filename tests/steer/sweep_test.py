import pickle

import pytest

from maira_jax.errors import UserError
from maira_jax.run import files, processes
from steer import sweep
from steer.methods.direction import Direction
from steer.sweep import SelectedDirections


def test_directions_are_taken_from_the_first_process_alone(tmp_path, monkeypatch):
    path, made = tmp_path / ".directions.tmp", SelectedDirections([Direction.none(3)], [{"rule": "pilot"}])
    path.write_bytes(pickle.dumps(made))
    digest = files.sha256(path)
    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "is_first", lambda: False)
    monkeypatch.setattr(processes, "broadcast", lambda value: digest)
    found = sweep._of_first(lambda: None, tmp_path)
    assert [direction.key for direction in found.directions] == [direction.key for direction in made.directions]
    assert found.scores == made.scores
    path.write_bytes(pickle.dumps(SelectedDirections([Direction.none(4)], [])))
    with pytest.raises(UserError, match="directions.tmp is not what the first process wrote: steer again"):
        sweep._of_first(lambda: None, tmp_path)
