"""The log of a training run: what an earlier attempt left."""

import json
from concurrent.futures import Future

import jax.numpy as jnp
import pytest

from maira_jax.errors import UserError
from sae.training import log as training_log
from sae.training.log import TrainingLog
from sae.training.step_clock import ChunkTimes


@pytest.mark.parametrize("line", ["{", "[]", '{"loss": 1}'])
def test_a_damaged_log_is_refused(tmp_path, line):
    log = tmp_path / "log.jsonl"
    log.write_text(f'{{"step": 0}}\n{line}\n')
    with pytest.raises(UserError, match=r"log\.jsonl, line 2, is damaged .*: delete"):
        TrainingLog(tmp_path, 2)
    assert log.read_text() == f'{{"step": 0}}\n{line}\n'


def test_times_are_seconds_per_step_with_the_memory_where_it_is_known(tmp_path, monkeypatch):
    monkeypatch.setattr(training_log, "peak_memory", lambda: 7)
    device: Future[float] = Future()
    device.set_result(3.0)
    log = TrainingLog(tmp_path, 0)
    log.add({"loss": jnp.ones(5)}, ChunkTimes(10.0, 1.0, device))
    log.drain()
    log.close()
    line = json.loads((tmp_path / "timing.jsonl").read_text())
    assert line.pop("log") > 0
    assert line == {"step": 4, "total": 2.0, "feed": 0.2, "device": 0.6, "peak_bytes": 7}
    assert len(json.loads((tmp_path / "log.jsonl").read_text().splitlines()[4])) == 2  # nothing that differs in a rerun
