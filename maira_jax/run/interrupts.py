"""Interrupts that are neither lost nor end in a crash."""

import os
import signal
import sys
import threading
from typing import NoReturn

_AGAIN_SECONDS = 0.05  # longer than a finalizer takes


class Terminated(BaseException):
    """SIGTERM, as KeyboardInterrupt is SIGINT."""


def catch() -> None:
    """Has SIGTERM raise `Terminated`, and sends again either signal whose exception Python drops.

    A signal's exception is raised in whatever the main thread does. In a finalizer or a callback of the garbage
    collector, such as JAX's, Python prints it and continues.
    """

    def terminate(number: int, frame: object) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, terminate)
    before = sys.unraisablehook

    def unraisable(dropped: "sys.UnraisableHookArgs") -> None:
        number = {KeyboardInterrupt: signal.SIGINT, Terminated: signal.SIGTERM}.get(dropped.exc_type)
        if number is None:
            before(dropped)
        else:
            threading.Timer(_AGAIN_SECONDS, os.kill, (os.getpid(), number)).start()

    sys.unraisablehook = unraisable


def ignore() -> None:
    """Has neither signal change how a process ends whose work is done: taking the interpreter down takes a second."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def leave(code: int) -> NoReturn:
    """Ends the process at once, with all that it has printed.

    The interpreter is not taken down: that would remove XLA's client while its threads still compile or run a program,
    which ends in a segmentation fault.
    """
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        if stream is not None:
            stream.flush()
    os._exit(code)
