"""The commands, as a user calls them."""

import json
import os
import subprocess
import sys

from tests.helpers.paths import ROOT


def launch(command, *arguments, cwd=ROOT):
    """Runs `python -m launch.COMMAND` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", f"launch.{command}", *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=1500,  # a whole study takes a minute; other tests run at the same time
    )


def printed_by(module):
    """The JSON that `python -m MODULE` prints, such as a helper that needs a process with eight devices."""
    command = [sys.executable, "-m", module]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1500, check=False)
    assert not done.returncode, done.stderr
    return json.loads(done.stdout)
