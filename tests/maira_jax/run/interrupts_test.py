"""Signals that come at awkward moments."""

import os
import signal
import subprocess
import sys
import time

import pytest

from maira_jax.run import processes
from maira_jax.run.interrupts import Terminated
from tests.helpers.paths import ROOT


def test_a_termination_after_the_last_look_at_it_is_not_lost():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated), processes.termination() as terminated:
        os.kill(os.getpid(), signal.SIGTERM)
        while not terminated.is_set():
            time.sleep(0.001)
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_does_not_change_how_finished_work_ends(sent):
    program = (
        "import os; from maira_jax.run import interrupts; interrupts.catch(); interrupts.ignore(); "
        f"os.kill(os.getpid(), {int(sent)}); print('whole')"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "whole\n"), done.stderr


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_a_process_was_started_to_ignore_stays_ignored(sent):
    program = (
        f"import os, signal; signal.signal({int(sent)}, signal.SIG_IGN); "
        f"from maira_jax.run import interrupts; interrupts.catch(); os.kill(os.getpid(), {int(sent)})"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("leave", ["interrupts.leave(129)", "_main._leave('words', 129)"])
def test_the_exit_code_does_not_depend_on_whether_the_last_words_can_be_written(leave):
    """As into a terminal that was closed."""
    program = (
        "import sys; from launch import _main; from maira_jax.run import interrupts; "
        f"sys.stdout = sys.__stderr__ = open('/dev/full', 'w'); print('words'); {leave}"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 129, done.stderr
