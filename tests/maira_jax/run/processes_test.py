import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from maira_jax.run import files, processes
from maira_jax.run.coordinator import Address
from tests.helpers import imported_commands, pods
from tests.helpers.paths import ROOT

PROGRAM = ("-m", "tests.helpers.pod_process")


@pytest.fixture
def started(monkeypatch):
    """Starts the scenario's processes, and ends those that a failed test leaves."""
    every = []

    def start(scenario, workdir, n=2, **options):
        monkeypatch.setenv("SCENARIO", scenario)
        every.extend(pods.start((*PROGRAM, f"--workdir={workdir}"), processes=n, devices=1, **options))
        return every

    yield start
    for process in every:
        process.kill()


def _until(started, *paths):
    """Waits for what all processes of a run write."""
    while not all(path.exists() and path.read_text() for path in paths):
        assert all(process.poll() is None for process in started), pods.ended(started)
        time.sleep(0.05)


def test_one_process_is_a_run_of_its_own():
    assert (processes.index(), processes.count(), processes.is_first()) == (0, 1, True)
    assert processes.gather({"a": 1}) == [{"a": 1}] and processes.broadcast(2) == 2
    assert processes.first_only(lambda: 3) == 3
    assert processes.end("what went wrong", 1) == ("what went wrong", 1)


def test_processes_agree_and_only_the_first_one_prints(started, tmp_path):
    first, *others = pods.ended(started("agree", tmp_path, 3))
    assert [process.code for process in (first, *others)] == [0, 0, 0], (first, others)
    assert not any(process.out or process.err for process in others), others
    manifest = files.read_json(tmp_path / "agree" / "manifest.json")
    assert manifest["processes"] == 3 and manifest["chosen"] == {"size": 4}
    told = [[{"of": 0}, {"of": 1}, {"of": 2}], "from 0", [0, 1]]
    assert manifest["counts"]["told"] == str(told) and str(told) in first.out
    assert sorted(os.listdir(tmp_path)) == ["agree"]  # neither a lock nor a mark is left
    assert sorted(os.listdir(tmp_path / "agree")) == ["manifest.json", "part-0", "part-1", "part-2"]


@pytest.mark.parametrize(
    "scenario, sentence",
    [
        ("refuse", "study 7 cannot be read: leave it out"),
        ("fail", "process 1 failed unexpectedly (ZeroDivisionError: of the program): see its traceback"),
    ],
)
def test_an_error_on_one_process_ends_all_with_its_sentence(started, tmp_path, scenario, sentence):
    first, second = pods.ended(started(scenario, tmp_path))
    assert (first.code, second.code) == (1, 1)
    assert first.err == f"error: {sentence}\n"
    assert second.err.endswith(f"[1] error: {sentence}\n")
    assert ("Traceback" in second.err) == (scenario == "fail")


IMPATIENT = """
import runpy
from maira_jax.run import coordinator
coordinator._START_SECONDS, coordinator._QUIET_SECONDS = 4, 1
runpy.run_module("tests.helpers.pod_process", run_name="__main__")
"""


@pytest.mark.parametrize(
    "process, reason", [(0, "not all 2 processes have come"), (1, "nobody listens there")], ids=["alone", "wrong port"]
)
def test_a_process_that_waits_in_vain_ends_in_a_sentence(tmp_path, monkeypatch, process, reason):
    monkeypatch.setenv("SCENARIO", "agree")
    flags = ("--processes=2", f"--process={process}")
    program = ("-c", IMPATIENT, f"--workdir={tmp_path / 'run'}")
    (ended,) = pods.ended(pods.start(program, processes=1, devices=1, flags=lambda _: flags))
    assert ended.code == 1, ended
    says, error = ended.err.splitlines()
    assert re.fullmatch(rf"process {process} of 2 waits for the others at .*, at most 4 seconds: {reason}", says)
    sentence = (
        rf"process {process} of 2 waited for the others at .* for 4 seconds \({reason}\): start the same command, .*"
    )
    assert re.fullmatch(rf"error: {sentence}", error)
    assert not (tmp_path / "run").exists()


def test_a_process_that_waits_is_interrupted(started, tmp_path):
    (first,) = started("agree", tmp_path, 1, flags=lambda _: ("--processes=2",))
    port = int(re.search(r"--coordinator=\S+:(\d+)", " ".join(first.args))[1])
    while True:
        assert first.poll() is None
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            break
    time.sleep(1)  # in which it asks the service for the other process
    first.send_signal(signal.SIGINT)
    (ended,) = pods.ended([first], timeout=30)
    assert ended.code == 130 and ended.err.startswith("error: interrupted: "), ended


@pytest.mark.parametrize("lost", [0, 1])
def test_a_killed_process_ends_the_others(started, tmp_path, lost):
    both = started("wait", tmp_path)
    _until(both, tmp_path / "pid-0", tmp_path / "pid-1")
    both[lost].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    left = pods.ended([both[1 - lost]])[0]
    assert left.code == 143 and time.monotonic() - killed < 15
    assert f"error: process {lost} of 2 no longer answers" in left.err and "Traceback" not in left.err


@pytest.mark.parametrize(
    "sent, seconds", [(signal.SIGKILL, 15), pytest.param(signal.SIGSTOP, 25, marks=pytest.mark.drill)]
)
def test_the_loss_of_the_first_processs_host_ends_the_others(started, tmp_path, sent, seconds):
    """With the service that all processes connect to, which is cut off or no longer answers."""
    both = started("wait", tmp_path)
    _until(both, tmp_path / "pid-0", tmp_path / "pid-1")
    first = both[0].pid
    (service,) = Path(f"/proc/{first}/task/{first}/children").read_text().split()
    try:
        for process in (int(service), first):
            os.kill(process, sent)
        lost = time.monotonic()
        (left,) = pods.ended(both[1:], timeout=90)
        assert left.code == 143 and time.monotonic() - lost < seconds
    finally:
        os.kill(int(service), signal.SIGKILL)
    assert left.err.endswith(
        "[1] error: process 0 of 2 no longer answers: see what ended it, and run the same command again, which "
        "resumes\n"
    )


@pytest.mark.parametrize("sent, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_to_one_process_ends_all(started, tmp_path, sent, code):
    both = started("locked", tmp_path)
    _until(both, tmp_path / "pid-0", tmp_path / "pid-1")
    both[1].send_signal(sent)
    ends = pods.ended(both)
    assert [end.code for end in ends] == [code, code]
    assert all("with the same flags resumes from here" in end.err for end in ends)
    assert sorted(os.listdir(tmp_path)) == [
        "pid-0",
        "pid-1",
    ]  # the lock is released, and the folder without a result gone


def test_processes_of_different_flags_or_folders_are_refused(started, tmp_path):
    ends = pods.ended(started("agree", tmp_path, flags=lambda process: [f"--config.seed={process}"]))
    assert [end.code for end in ends] == [1, 1]
    assert "process 1 (on " in ends[0].err and "another configuration" in ends[0].err


def test_hosts_that_do_not_share_the_run_directory_are_refused(started, tmp_path):
    hosts = [tmp_path / "0", tmp_path / "1"]
    for host in hosts:
        host.mkdir()
    ends = pods.ended(started("agree", "run", cwds=hosts))
    assert [end.code for end in ends] == [1, 1]
    assert "process 1 (on " in ends[0].err and "does not see run of process 0" in ends[0].err
    assert os.listdir(hosts[0] / "run") == [] and not (hosts[1] / "run").exists()


@pytest.mark.parametrize(
    "flags, sentence",
    [
        (["--distributed=on"], "no cluster was found"),
        (["--processes=2"], "belong together"),
        (["--coordinator=here", "--processes=2", "--process=0"], "is not HOST:PORT"),
        (["--coordinator=here:1", "--processes=2", "--process=2"], "numbered from 0 to 1"),
        (["--workdir=ftp://bucket/run"], "object store"),
    ],
)
def test_flags_that_name_no_run_are_refused(flags, sentence):
    done = imported_commands.launch("convert", *flags)
    assert done.returncode == 1 and sentence in done.stderr and "Traceback" not in done.stderr


class _Clock:
    """Time that passes when the watching thread waits: after each look, how long, and whether the other one beats."""

    def __init__(self, looks):
        self.looks, self.now, self.beats = list(looks), 0.0, 0

    def monotonic(self):
        return self.now

    def wait(self, timeout):
        if not self.looks:
            return True
        seconds, beats = self.looks.pop(0)
        self.now, self.beats = self.now + seconds, self.beats + beats
        return False

    def is_set(self):
        return False

    def key_value_set(self, *_, **__):
        pass

    def key_value_dir_get(self, prefix):
        return [(f"{prefix}000000", str(self.now)), (f"{prefix}000001", str(self.beats))]


@pytest.mark.parametrize(
    "looks, lost",
    [
        ([(0.5, True), *[(0.5, False)] * 19, (0.5, True)], False),
        ([(0.5, True), *[(0.5, False)] * 22], True),
        ([(0.5, True), (60, False), *[(0.5, False)] * 17, (0.5, True)], False),  # this host was suspended
        ([(0.5, True), (60, False), *[(0.5, False)] * 22], True),
    ],
)
def test_time_in_which_this_process_did_not_look_tells_nothing_of_the_others(monkeypatch, looks, lost):
    clock, failures = _Clock(looks), []
    group = object.__new__(processes._Group)
    group.index, group.count, group.client = 0, 2, clock
    group._closing = group.terminated = clock
    group._fail = failures.append
    monkeypatch.setattr(processes, "time", clock)
    group._watch()
    assert [failure.sentence.partition(":")[0] for failure in failures] == ["process 1 of 2 no longer answers"] * lost


def test_an_interrupt_is_not_lost_and_does_not_crash(tmp_path):
    program = [sys.executable, *PROGRAM, f"--workdir={tmp_path}"]
    done = subprocess.run(
        program,
        env=os.environ | {"SCENARIO": "crash"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 130, done
    assert done.stderr == "error: interrupted: python -m launch.pod_process with the same flags resumes from here\n"


class ServiceSlowToAnswer:
    """A run's service for one process. What is told of a failure can be read before the teller goes on."""

    def __init__(self):
        self.values = {}

    def key_value_set(self, key, value, allow_overwrite=False):
        self.values[key] = value
        if key == processes._FAILURE:
            time.sleep(3 * processes._LOOK_SECONDS)

    def key_value_try_get(self, key):
        return self.values[key]

    def key_value_dir_get(self, prefix):
        return [(key, value) for key, value in list(self.values.items()) if key.startswith(prefix)]


def test_a_process_that_fails_is_not_interrupted_by_its_own_failure():
    before = signal.getsignal(signal.SIGUSR1)
    try:
        group = processes._Group(Address("", 1, 0), ServiceSlowToAnswer())
        ended = group.end("what went wrong", 1)
        group._thread.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert (ended.sentence, ended.code) == ("what went wrong", 1)
