"""Interrupts that are neither lost nor end in a crash."""

import contextlib
import os
import signal
import sys
import threading
from typing import Final, NoReturn

_AGAIN_SECONDS = 0.05  # longer than a finalizer takes


class Terminated(BaseException):
    """SIGTERM, as KeyboardInterrupt is SIGINT."""


class HungUp(BaseException):
    """SIGHUP: the terminal was closed, or the connection to it was lost."""


_RAISED: Final[dict[signal.Signals, type[BaseException]]] = {
    signal.SIGINT: KeyboardInterrupt,
    signal.SIGTERM: Terminated,
    signal.SIGHUP: HungUp,
}


def catch() -> None:
    """Has each signal raise its exception, and sends it again where Python drops that.

    A signal's exception is raised in whatever the main thread does. In a finalizer or a callback of the garbage
    collector, such as JAX's, Python prints it and continues. A signal that the process was started to ignore, as nohup
    has it ignore SIGHUP, stays ignored.
    """

    def interrupt(number: int, frame: object) -> NoReturn:
        raise _RAISED[signal.Signals(number)]

    for number in _RAISED:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, interrupt)
    numbers = {exception: number for number, exception in _RAISED.items()}
    before = sys.unraisablehook

    def unraisable(dropped: "sys.UnraisableHookArgs") -> None:
        number = numbers.get(dropped.exc_type)
        if number is None:
            before(dropped)
        else:
            threading.Timer(_AGAIN_SECONDS, os.kill, (os.getpid(), number)).start()

    sys.unraisablehook = unraisable


def ignore() -> None:
    """Has no signal change how a process ends whose work is done: taking the interpreter down takes a second."""
    for number in _RAISED:
        signal.signal(number, signal.SIG_IGN)


def leave(code: int) -> NoReturn:
    """Ends the process at once, with all that it has printed.

    The interpreter is not taken down: that would remove XLA's client while its threads still compile or run a program,
    which ends in a segmentation fault.
    """
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        if stream is not None:
            with contextlib.suppress(OSError):  # of a terminal that was closed
                stream.flush()
    os._exit(code)
