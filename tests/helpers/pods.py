"""Runs of several processes on this machine, each of which stands for a host with devices of its own."""

import contextlib
import dataclasses
import os
import random
import socket
import subprocess
import sys

from tests.helpers.paths import ROOT


@dataclasses.dataclass
class EndedProcess:
    """How one process of a run ended."""

    code: int
    out: str
    err: str


def free_port():
    """A port that nobody listens on now.

    It is none of those that Linux gives to sockets which ask for any: such a one could be taken by another test before
    the run's first process, which imports for seconds, listens on it.
    """
    while True:
        port = random.randrange(10_000, 32_000)
        with socket.socket() as found, contextlib.suppress(OSError):
            found.bind(("127.0.0.1", port))
            return port


def start(program, *, processes, devices=2, cwds=None, flags=lambda process: ()):
    """Starts `python PROGRAM... --distributed=on ...` once for each process.

    Args:
      program: what follows `python`.
      processes: number of processes.
      devices: number of devices of each.
      cwds: folder in which each runs; None: all in the repository.
      flags: further flags of each process, given its number.
    """
    address = f"127.0.0.1:{free_port()}"
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}",
    }
    return [
        subprocess.Popen(
            [
                *(sys.executable, *program, "--distributed=on", f"--coordinator={address}"),
                *(f"--processes={processes}", f"--process={process}", *flags(process)),
            ],
            cwd=cwds[process] if cwds else ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(processes)
    ]


def ended(started, timeout=300):
    """Waits for the processes of a run; one that does not end in time is killed, and its code is then negative."""
    found = []
    for process in started:
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
        # On CPUs the library that joins the devices of several processes prints that it has found them.
        out = "".join(line for line in out.splitlines(keepends=True) if not line.startswith("[Gloo]"))
        found.append(EndedProcess(process.returncode, out, err))
    return found


def launch(command, *arguments, processes, devices=2):
    """Runs `python -m launch.COMMAND` in several processes, which all must end well; returns what the first printed."""
    found = ended(start(("-m", f"launch.{command}", *arguments), processes=processes, devices=devices))
    assert [process.code for process in found] == [0] * processes, found
    assert not any(process.out or process.err for process in found[1:]), found
    return found[0]
