"""A whole study through a real HTTP server that fails on purpose, killed midway.

FULL_SCALE=1 runs it with 16,384 features, which takes minutes.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

from tests.helpers.judge import serve, study
from tests.helpers.paths import ROOT

N_FEATURES = 16384 if os.environ.get("FULL_SCALE") else 300
N_REQUESTS = 3 * N_FEATURES
CONCURRENCY = 200
FAULTS = {"too_many": 0.05, "failing": 0.02, "dropping": 0.01, "malformed": 0.01, "retry_after": "0.2"}
SLOW = {"latency_s": 0.02, "slow": 0.02, "slow_s": 0.5}


@contextlib.contextmanager
def run_study(server, workdir):
    """A study in a process of its own, which does not outlive the block."""
    command = [sys.executable, "-m", "tests.helpers.judged_study", server.url, str(workdir), str(N_FEATURES)]
    with subprocess.Popen(
        [*command, str(CONCURRENCY)],
        cwd=ROOT,
        stderr=None if os.environ.get("FULL_SCALE") else subprocess.PIPE,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def held(server):
    """Waits until the server holds back its answers to all requests that may be under way."""
    while True:
        record = server.record()
        if record["outcomes"].get("held", 0) >= CONCURRENCY and record["under_way"] == CONCURRENCY:
            return record
        time.sleep(0.2)


def test_every_feature_is_scored_once_through_faults_and_a_kill(tmp_path):
    with serve(**FAULTS, **SLOW, hold_after=N_REQUESTS // 2) as server:
        with run_study(server, tmp_path) as process:
            before = held(server)  # killed here
        assert process.returncode == -signal.SIGKILL
        assert N_REQUESTS // 2 <= len(before["answered"]) < N_REQUESTS and not (tmp_path / "scores.json").exists()
        server.control(hold_after=-1)
        with run_study(server, tmp_path) as process:
            process.communicate()
        assert process.returncode == 0
        record = server.record()
        # Every request was answered well exactly once, in one run or the other; only those without an answer were
        # sent again.
        assert len(record["answered"]) == record["distinct"] == N_REQUESTS
        assert record["answered_twice"] == 0
        assert set(before["answered"]) <= set(record["answered"])
        for fault in ("429", "500", "dropped", "malformed"):
            assert record["outcomes"][fault] > 0
        scores = json.loads((tmp_path / "scores.json").read_text())
        assert len(scores) == N_FEATURES
        assert all(s["accuracy"] == 1.0 and s["n_examples"] == 10 and s["n_failed"] == 0 for s in scores)
        if os.environ.get("FULL_SCALE"):
            print({name: record[name] for name in ("outcomes", "distinct", "requests", "seconds")})
    # A third time, without a server: nothing is asked.
    assert len(study(server.url, tmp_path, min(N_FEATURES, 300))) == min(N_FEATURES, 300)
