"""The commands, as a user calls them."""

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
        timeout=300,
    )
