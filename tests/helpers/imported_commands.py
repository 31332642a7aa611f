"""Commands as a user calls them, but that a process which has imported their modules once forks one for each.

For the many that only say what is wrong with the command line or the run directory: one of a process of its own, as
`tests.helpers.commands` starts it, imports for seconds before.
"""

import atexit
import functools
import json
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.helpers.paths import ROOT

_STAGES = (
    "interp.stage",
    "maira_jax.checkpoint.convert",
    "maira_jax.generation.stage",
    "sae.activations.harvest",
    "sae.training.stage",
    "steer.stage",
)


@functools.cache
def _server() -> subprocess.Popen:
    server = subprocess.Popen(
        [sys.executable, "-m", __name__],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(server.kill)
    return server


def launch(command, *arguments, cwd=ROOT):
    """Runs `python -m launch.COMMAND` in a process of its own, in which its modules are imported."""
    server = _server()
    with tempfile.TemporaryDirectory() as folder:
        printed = [str(Path(folder, name)) for name in ("out", "err")]
        print(json.dumps([command, arguments, str(cwd), *printed]), file=server.stdin, flush=True)
        answer = server.stdout.readline()
        assert answer, "the process that imports the commands has ended"
        out, err = (Path(path).read_text() for path in printed)
    return subprocess.CompletedProcess(["-m", f"launch.{command}", *arguments], int(answer), out, err)


def _become(command, arguments, cwd, *printed):
    """Makes this process the command, as `python -m` begins one."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, path in enumerate(printed, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.chdir(cwd)
    sys.path[0] = cwd
    sys.argv = [command, *arguments]
    runpy.run_module(f"launch.{command}", run_name="__main__", alter_sys=True)


def _serve():
    import launch  # noqa: F401  (before JAX, as commands import it)

    for name in ("launch._main", *_STAGES):
        __import__(name)
    for line in sys.stdin:
        child = os.fork()
        if not child:
            return _become(*json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    _serve()
