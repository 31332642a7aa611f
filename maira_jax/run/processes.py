"""Several processes, one on each host, that are one run.

They tell each other what they must agree on through the key-value store of JAX's distributed runtime, not through their
devices: no process waits in a program for one that has gone. Every process watches the others. Where one of them fails
or is lost, all end within seconds, with the same sentence and exit code.

Where there is one process, all of this does nothing.
"""

import contextlib
import itertools
import json
import os
import signal
import socket
import sys
import threading
import time
import types
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
from orbax.checkpoint import v1 as ocp

from maira_jax.errors import UserError
from maira_jax.run import coordinator, files, storage
from maira_jax.run.coordinator import Address
from maira_jax.run.interrupts import Terminated

Result = TypeVar("Result")

# Exit codes: the same command resumes after the last three of them; a scheduler restarts after the last one alone.
BAD_INPUT, BAD_FLAGS = 1, 2
HUNG_UP, INTERRUPTED, TERMINATED = 128 + signal.SIGHUP, 128 + signal.SIGINT, 128 + signal.SIGTERM

_LOOK_SECONDS = 0.5  # between two looks at the other processes
_LOST_SECONDS = 10.0  # without a sign of life after which a process counts as lost
_START_SECONDS = 20.0  # longer, for its first one
_SILENT_SECONDS = 12.0  # that an answer of the service may take, before it counts as lost with the first process's host
_UNWIND_SECONDS = 2.0  # for a process to clean up when another one has ended the run
_WATCHED, _FAILURE = "maira_jax/watched/", "maira_jax/watched/failure"
_TERMINATION = "maira_jax/watched/termination"
_TOLD = "maira_jax/told/"


class RunEnded(BaseException):
    """Another process has ended the run. Not an `Exception`, so that nothing but the command's end catches it.

    Attributes:
      sentence: what went wrong there.
      code: the exit code of all processes.
    """

    def __init__(self, sentence: str, code: int):
        super().__init__(sentence)
        self.sentence, self.code = sentence, code


class _Group:
    """The processes of a run, seen from one of them."""

    def __init__(self, address: Address, client: Any):
        self.index, self.count = address.process, address.processes
        self.client = client
        self.failure: RunEnded | None = None
        self._calls = itertools.count()
        self._closing = threading.Event()
        # Prints and exits where the main thread does not return from a program that waits for a lost process.
        self.exit: Callable[[str, int], None] = lambda sentence, code: os._exit(code)
        self.terminated = threading.Event()
        self._answered = 0  # looks at the other processes, each of which the service has answered
        self._thread = threading.Thread(target=self._watch, name="watch-processes", daemon=True)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGUSR1, self._raise_failure)
        self._thread.start()
        threading.Thread(target=self._watch_service, name="watch-service", daemon=True).start()

    def gather(self, value: Any) -> list[Any]:
        prefix = f"maira_jax/{next(self._calls)}/"
        self.client.key_value_set(f"{prefix}{self.index:06d}", json.dumps(value))
        return [json.loads(text) for _, text in self._wait(prefix, self.count)]

    def broadcast(self, value: Any) -> Any:
        prefix = f"maira_jax/{next(self._calls)}/"
        if self.index == 0:
            self.client.key_value_set(f"{prefix}first", json.dumps(value))
        return json.loads(self._wait(prefix, 1)[0][1])

    def _wait(self, prefix: str, n: int) -> list[tuple[str, str]]:
        pause = 0.002
        while len(found := self.client.key_value_dir_get(prefix)) < n:
            time.sleep(pause)
            pause = min(2 * pause, _LOOK_SECONDS)
        return sorted(found)

    def end(self, sentence: str, code: int) -> RunEnded:
        """Ends the run for all; returns with what it ends, which is another process's failure where that was first."""
        self._closing.set()  # before it is told, or this process's own watch would interrupt what follows
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # there is one already, or nobody left to tell
            self.client.key_value_set(_FAILURE, json.dumps([sentence, code]))
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            sentence, code = json.loads(self.client.key_value_try_get(_FAILURE))
        self.failure = self.failure or RunEnded(sentence, code)
        self._acknowledge()
        until = time.monotonic() + _UNWIND_SECONDS
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            while len(self.client.key_value_dir_get(_TOLD)) < self.count and time.monotonic() < until:
                time.sleep(_LOOK_SECONDS / 5)
        return self.failure

    def _acknowledge(self) -> None:
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self.client.key_value_set(f"{_TOLD}{self.index:06d}", "", allow_overwrite=True)

    def close(self) -> None:
        """Waits for the other processes, and leaves the run."""
        self.gather(None)
        self._closing.set()
        self._thread.join()
        self._acknowledge()
        if self.index == 0:
            self._wait(_TOLD, self.count)
        coordinator.disconnect(self.client)

    def _watch(self) -> None:
        # Of each process, and when it was first seen; one that has not yet come may take longer.
        late = time.monotonic() + _START_SECONDS
        signs = {f"{_WATCHED}{process:06d}": ("", late) for process in range(self.count)}
        last = time.monotonic()
        for look in itertools.count():
            if self._closing.wait(_LOOK_SECONDS):
                return
            try:
                self.client.key_value_set(f"{_WATCHED}{self.index:06d}", str(look), allow_overwrite=True)
                if self.terminated.is_set():
                    self.client.key_value_set(_TERMINATION, "", allow_overwrite=True)
                found = dict(self.client.key_value_dir_get(_WATCHED))
            except jax.errors.JaxRuntimeError:
                self._fail(self._lost(0))  # the service has gone with the first process's host
                return
            self._answered = look + 1
            if _FAILURE in found:
                self._fail(RunEnded(*json.loads(found[_FAILURE])))
                return
            if _TERMINATION in found:
                self.terminated.set()
            now = time.monotonic()
            # Time in which a busy or suspended host kept this process from looking tells nothing of the others.
            held_up = max(0.0, now - last - 2 * _LOOK_SECONDS)
            last = now
            for name, (before, seen) in signs.items():
                sign = found.get(name, "")
                signs[name] = (sign, now if sign != before else seen + held_up)
                if now - signs[name][1] > _LOST_SECONDS:
                    self._fail(self._lost(int(name.removeprefix(_WATCHED))))
                    return

    def _watch_service(self) -> None:
        """Ends this process where the service does not answer: a call to it has no limit, and waits for long."""
        before, looks = self._answered, 0
        # Looks are counted, not seconds, so that time in which this host was held up does not count.
        while looks * _LOOK_SECONDS < _SILENT_SECONDS:
            if self._closing.wait(_LOOK_SECONDS):
                return
            before, looks = self._answered, looks + 1 if self._answered == before else 0
        self.end_without_service()

    def _lost(self, process: int) -> RunEnded:
        return RunEnded(
            f"process {process} of {self.count} no longer answers: see what ended it, and run the same command again, "
            "which resumes",
            TERMINATED,
        )

    def _fail(self, failure: RunEnded) -> None:
        """Has the main thread raise `failure`, and ends the process if it does not."""
        self.failure = failure
        self._acknowledge()
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
        if not self._closing.wait(_UNWIND_SECONDS):
            self.exit(failure.sentence, failure.code)

    def end_without_service(self) -> None:
        """Ends this process after the service has gone, with the first process's host; of which nobody can be told."""
        self.failure = self.failure or self._lost(0)
        if not self._closing.is_set():
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
        time.sleep(_UNWIND_SECONDS)  # in which the main thread mostly ends the process
        self.exit(self.failure.sentence, self.failure.code)

    def _raise_failure(self, number: int, frame: types.FrameType | None) -> None:
        if self.failure is not None and not self._closing.is_set():
            raise self.failure


_group: _Group | None = None
_is_alone = False


def _active() -> _Group | None:
    return None if _is_alone else _group


def start(mode: str, address: Address | None, devices: bool, exit: Callable[[str, int], None]) -> None:
    """Joins the run, before any device is used.

    Args:
      mode: "on" joins, "off" does not, "auto" joins where `address` is given or the cluster's variables name several
        processes.
      address: where this process stands; None: what the cluster's variables say.
      devices: whether the processes are going to use their devices together; otherwise the first one works alone.
      exit: prints a sentence and ends the process with a code; called by a thread.

    Raises:
      UserError: the run cannot be joined.
    """
    global _group
    if mode == "off":
        return
    address = address or coordinator.detect()
    if address is None:
        if mode == "on":
            raise UserError(
                "no cluster was found that says which processes belong together: give --coordinator=HOST:PORT, "
                "--processes=N and --process=I on every host"
            )
        return
    if address.processes == 1:
        return
    _group = _Group(address, coordinator.connect(address, devices))
    _group.exit = exit
    coordinator.on_lost_service(address, _group.end_without_service)


def index() -> int:
    """The number of this process in the run; 0 where it is the only one."""
    group = _active()
    return 0 if group is None else group.index


def count() -> int:
    """The number of processes in the run."""
    group = _active()
    return 1 if group is None else group.count


def is_first() -> bool:
    """Whether this is the process that decides, prints and writes what is written once."""
    return index() == 0


def devices() -> list[jax.Device]:
    """The devices of all processes of the run."""
    return jax.devices() if _active() is not None else jax.local_devices()


def gather(value: Any) -> list[Any]:
    """Every process's value, JSON-like and small, in the order of the processes; on all. By the main thread alone."""
    group = _active()
    return [value] if group is None else group.gather(value)


def broadcast(value: Any) -> Any:
    """The first process's value, JSON-like and small, on all. Called by the main thread alone."""
    group = _active()
    return value if group is None else group.broadcast(value)


def barrier() -> None:
    """Returns when all processes have come here."""
    gather(None)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Within the context this process counts as a run of its own."""
    global _is_alone
    before, _is_alone = _is_alone, True
    try:
        yield
    finally:
        _is_alone = before


def own_checkpoints() -> ocp.Context:
    """Within the context orbax reads and writes for this process alone, and waits for no other one."""
    context = ocp.Context()
    if jax.process_count() > 1:
        options = context.multiprocessing_options
        options.primary_host, options.active_processes = jax.process_index(), {jax.process_index()}
        options.barrier_sync_key_prefix = f"process_{jax.process_index()}"
    return context


def first_only(run: Callable[[], Result]) -> Result:
    """Has the first process run something, as if it were alone, while the others wait for its JSON-like result."""
    if count() == 1:
        return run()
    result: Any = None
    if is_first():
        with alone():
            result = run()
    return broadcast(result)


@contextlib.contextmanager
def failing_together() -> Iterator[None]:
    """Tells the other processes of an error in the body before it is passed on.

    For where the way out of a stage waits for the other processes, which would not learn of the error before its end.
    """
    try:
        yield
    except UserError as error:
        end(str(error), BAD_INPUT)
        raise


@contextlib.contextmanager
def termination() -> Iterator[threading.Event]:
    """Within the context SIGTERM sets the event that is given; it ends what has come to the context's end.

    Of several processes one that is sent SIGTERM soon sets the events of all, but at different moments: a loop in which
    they stop together asks for the first one's by `broadcast`. Signals come to the main thread alone.
    """
    group = _active()
    event = threading.Event() if group is None else group.terminated
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = signal.signal(signal.SIGTERM, lambda *_: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGTERM, before)
    if event.is_set():  # too late for the body, which would have ended by itself
        raise Terminated


def end(sentence: str, code: int) -> tuple[str, int]:
    """Ends the run on all processes, whatever they do; this one is to print and exit with what is returned.

    Returns:
      The sentence and code; another process's, where that failed first.
    """
    if _group is None:
        return sentence, code
    failure = _group.end(sentence, code)
    return failure.sentence, failure.code


def await_failure() -> RunEnded | None:
    """After an error that another process may have caused by ending: its failure, if there is one within seconds."""
    group, until = _group, time.monotonic() + _LOST_SECONDS + 4 * _LOOK_SECONDS
    if group is None:
        return None
    with contextlib.suppress(RunEnded):
        while group.failure is None and time.monotonic() < until:
            time.sleep(_LOOK_SECONDS / 5)
    return group.failure


def close() -> None:
    """Ends the run when every process has come here."""
    if _group is not None:
        _group.close()


def check_same(config: dict[str, Any], workdir: Path) -> None:
    """Refuses processes that were started with different configurations, or that do not share the run directory.

    Raises:
      UserError: on all processes.
    """
    if count() == 1:
        return
    told = gather(
        {"host": socket.gethostname(), "config": files.digest(config), "workdir": storage.named(str(workdir))}
    )
    for number, other in enumerate(told):
        if other["config"] != told[0]["config"] or other["workdir"] != told[0]["workdir"]:
            raise UserError(
                f"process {number} (on {other['host']}) was started with another configuration or --workdir than "
                "process 0: give all the same flags"
            )
    mark = workdir / f"shared-{broadcast(uuid.uuid4().hex)}"
    if is_first():
        try:
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()
            storage.send(mark)
        except OSError as error:
            raise UserError(
                f"could not write {workdir} ({error.strerror or error}): choose another --workdir"
            ) from error
    barrier()
    seen = gather(storage.exists(mark))
    if is_first():
        files.remove(mark)
    blind = [f"{number} (on {other['host']})" for number, other in enumerate(told) if not seen[number]]
    if blind:
        raise UserError(
            f"process {', '.join(blind)} does not see {workdir} of process 0 (on {told[0]['host']}): choose a "
            "--workdir that all hosts share"
        )


def silence() -> None:
    """Keeps a process that is not the first from printing."""
    if not is_first():
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (as long as the process)
        os.dup2(sys.stdout.fileno(), 1)  # what JAX's own libraries print
