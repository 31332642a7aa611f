"""Signals that come while a command is being imported."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def ended(sent, handler):
    """How a command ends that starts with a handler, by its name, and is sent the signal while it imports NumPy."""
    command = "[sys.executable, '-m', 'launch.verify', '--workdir=nowhere']"
    program = (
        f"import os, signal, sys; signal.signal({int(sent)}, signal.{handler}); os.execv(sys.executable, {command})"
    )
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        while "numpy" not in Path(f"/proc/{process.pid}/maps").read_text():
            assert process.poll() is None
            time.sleep(0.002)
        process.send_signal(sent)
        error = process.communicate(timeout=120)[1]
    return process.returncode, error


@pytest.mark.parametrize("sent", SIGNALS)
def test_it_ends_with_a_sentence(sent):
    assert ended(sent, "SIG_DFL") == (128 + sent, f"error: ended by {sent.name} before it began: run it again\n")


def test_one_that_is_ignored_stays_ignored():
    code, error = ended(signal.SIGHUP, "SIG_IGN")
    assert code == 1 and "nowhere holds no finished stage" in error


def test_importing_the_package_changes_no_handler():
    program = (
        "import signal; numbers = signal.SIGINT, signal.SIGTERM, signal.SIGHUP; "
        "before = [*map(signal.getsignal, numbers)]; import launch._main; "
        "assert before == [*map(signal.getsignal, numbers)]"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
