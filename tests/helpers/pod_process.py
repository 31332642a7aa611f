"""A command of several processes, which does what the environment variable SCENARIO names."""

import atexit
import os
import signal
import time

from launch import _main
from maira_jax.errors import UserError
from maira_jax.run import processes
from maira_jax.run.stages.stage import Stage


def agree(workdir):
    told = [processes.gather({"of": processes.index()}), processes.broadcast(f"from {processes.index()}")]
    alone = processes.first_only(lambda: [processes.index(), processes.count()])
    processes.barrier()
    with Stage(workdir, "agree", {"k": 1}) as stage:
        if not stage.finished:
            stage.record({"size": 4})
            (stage.dir / f"part-{processes.index()}").touch()
            stage.finish({"told": str([*told, alone])})
    return stage.manifest["counts"]


def refuse(workdir):
    if processes.index() == 1:
        raise UserError("study 7 cannot be read: leave it out")
    processes.barrier()


def fail(workdir):
    if processes.index() == 1:
        raise ZeroDivisionError("of the program")
    processes.barrier()


def wait(workdir):
    time.sleep(2)  # until every process has been seen by the others
    (workdir / f"pid-{processes.index()}").write_text(str(os.getpid()))
    if processes.index() == 0:
        processes.barrier()
    time.sleep(300)


def locked(workdir):
    with Stage(workdir, "locked", {"k": 1}):
        wait(workdir)


def crash(workdir):
    """Is interrupted, while something would crash as the interpreter is taken down; a first time in a finalizer."""

    class Finalized:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGINT)
            for _ in range(1000):
                pass  # where Python looks for signals

    atexit.register(os.abort)
    Finalized()
    time.sleep(300)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where a shell has started the tests to ignore it
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    scenario = globals()[os.environ["SCENARIO"]]
    _main.main(lambda config, workdir: scenario(workdir) or {}, "", reads=("seed",), parallel=True)
