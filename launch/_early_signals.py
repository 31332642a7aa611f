"""Signals that come while a command is being imported, which takes seconds."""

import contextlib
import os
import signal
from typing import Final, NoReturn

# What has each end in a traceback, or without a word.
_USUAL: Final = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGHUP: signal.SIG_DFL,
}


def end_at_once() -> None:
    """Has each signal end the process with a sentence and the exit code of commands, until it is handled otherwise.

    A signal that the process was started to ignore stays ignored.
    """
    for number, usual in _USUAL.items():
        if signal.getsignal(number) == usual:
            signal.signal(number, _end)


def _end(number: int, frame: object) -> NoReturn:
    # Not an exception: libraries that are being imported catch some, and nothing is there that must be cleaned up.
    with contextlib.suppress(OSError):  # of a terminal that was closed
        os.write(2, f"error: ended by {signal.Signals(number).name} before it began: run it again\n".encode())
    os._exit(128 + number)
