"""Where the processes of a run find each other: the cluster's variables, and the service that they all connect to.

JAX runs this service inside the first process, whose death then ends the others by a failed check in the runtime.
Here it is a process of its own, which outlives the first one long enough for the others to be told.
"""

import ctypes
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax._src import clusters, distributed
from jax._src.lib import _jax

from maira_jax.errors import UserError, first_line

# What Google's firewall opens between the hosts of a slice; JAX's own default is another since 0.8.1.
PORT = 8476
_START_SECONDS = 300  # in which all processes must have connected
_QUIET_SECONDS = 30  # of them, after which a process says that it waits
_HEARTBEAT_SECONDS = 100  # of the runtime's own check; `maira_jax.run.processes` is faster
_LINGER_SECONDS = 15  # for which the service answers after the first process has been killed


class Address(NamedTuple):
    """Where a process stands in a run.

    Attributes:
      coordinator: host and port of the service, as HOST:PORT.
      processes: number of processes.
      process: number of this one.
    """

    coordinator: str
    processes: int
    process: int


def detect() -> Address | None:
    """What the variables of a Cloud TPU slice, of GKE, SLURM or Open MPI say; None where none of them are set."""
    for environment in clusters.ClusterEnv._cluster_types:
        if environment.opt_in_only_method or not environment.is_env_present():
            continue
        processes = environment.get_process_count()
        if processes == 1:  # of a slice of one host, or a job on one
            return Address("", 1, 0)
        host = environment.get_coordinator_address(timeout_secs=_START_SECONDS, override_coordinator_port=str(PORT))
        return Address(os.environ.get("JAX_COORDINATOR_ADDRESS", host), processes, environment.get_process_id())
    return None


def connect(address: Address, devices: bool) -> Any:
    """Connects this process, the first one after it has started the service.

    Args:
      address: where it stands.
      devices: whether the processes use their devices together. Otherwise JAX is not told of the others, and runs on
        the processor of this host: a TPU of a slice would wait for the other hosts.

    Returns:
      The runtime's client.

    Raises:
      UserError: the service cannot be started, or not all processes have come in time.
    """
    if address.process == 0:
        _start(address)
    client = _connected(address)
    if devices:
        state = distributed.global_state
        state.process_id, state.num_processes = address.process, address.processes
        state.coordinator_address, state.client = address.coordinator, client
        # A program that waits on a processor's devices for another one can take the threads that this one needs.
        jax.config.update("jax_cpu_enable_async_dispatch", False)
        jax.devices()  # all processes must look at the devices before one of them can use its own
    else:
        jax.config.update("jax_platforms", "cpu")
    return client


def _connected(address: Address) -> Any:
    patience = _Patience(address)
    while not _is_served(address):  # the runtime tries again only seconds after it has found nobody
        patience.wait("nobody listens there")
    while True:
        client = _jax.get_distributed_runtime_client(
            address.coordinator,
            address.process,
            init_timeout=2 * _START_SECONDS,  # at whose end it would abort the process, which ends before
            heartbeat_timeout=_HEARTBEAT_SECONDS,
            shutdown_on_destruction=False,
            use_compression=True,
        )
        # In a thread that the interpreter's end does not wait for, since nothing interrupts it.
        ended: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
        threading.Thread(target=_connect, args=(client, ended), daemon=True).start()
        while ended.empty():
            patience.wait(f"not all {address.processes} processes have come")
        error = ended.get()
        if error is None:
            return client
        patience.wait(first_line(error), seconds=1)  # the service of a run that was killed may still be there


def _connect(client: Any, ended: "queue.SimpleQueue[Exception | None]") -> None:
    try:
        client.connect()
    except jax.errors.JaxRuntimeError as error:
        ended.put(error)
    else:
        ended.put(None)


class _Patience:
    """How long a process waits for the others: it says so after a while, and ends in a sentence.

    Args:
      address: where it stands.
    """

    def __init__(self, address: Address):
        self._address, self._begun, self._is_silent = address, time.monotonic(), True

    def wait(self, reason: str, seconds: float = 0.1) -> None:
        """Waits a little longer.

        Args:
          reason: what is waited for, as a clause.
          seconds: how much longer.

        Raises:
          UserError: it has waited long enough.
        """
        waited, (coordinator, processes, process) = time.monotonic() - self._begun, self._address
        if waited > _START_SECONDS:
            raise UserError(
                f"process {process} of {processes} waited for the others at {coordinator} for {_START_SECONDS} seconds "
                f"({reason}): start the same command, with the same --coordinator, on every host at once"
            )
        if waited > _QUIET_SECONDS and self._is_silent:
            self._is_silent = False
            print(
                f"process {process} of {processes} waits for the others at {coordinator}, at most {_START_SECONDS} "
                f"seconds: {reason}",
                file=sys.stderr,
            )
        time.sleep(seconds)


def _is_served(address: Address) -> bool:
    host, _, port = address.coordinator.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError:
        return False
    return True


_AbortHandler = ctypes.CFUNCTYPE(None, ctypes.c_int)
_handlers: list[Any] = []  # as long as C may call them


def on_lost_service(address: Address, end: Callable[[], None]) -> None:
    """Has `end` called, which ends the process, where the runtime would abort it because its service is gone.

    The runtime's client aborts as soon as its connection is cut, which the end of the first process's host does. It
    takes a function to call instead, but gives that an argument that Python cannot have. An abort for another reason
    stays one.

    Args:
      address: where the service is.
      end: called by a thread of the runtime, in which nothing more can be asked of the client.
    """

    def aborted(number: int) -> None:
        if not _is_served(address):
            end()

    handler = _AbortHandler(aborted)
    _handlers.append(handler)
    ctypes.CDLL(None).signal(int(signal.SIGABRT), handler)


def disconnect(client: Any) -> None:
    """Ends the connection of a process whose run has ended well, and after the first process's the service."""
    client.shutdown()
    distributed.global_state.client = None
    for service in _services:
        assert service.stdin
        service.stdin.write(b"done")
        service.stdin.close()
        service.wait()


def _start(address: Address) -> None:
    port = int(address.coordinator.rpartition(":")[2])
    program = (
        f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import serve; serve({port}, {address.processes})"
    )
    service = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # or who reads this command's errors would wait for the service's end
        process_group=0,
    )
    assert service.stdout
    if not service.stdout.readline():
        raise UserError(f"port {port} of this host cannot be listened on: choose another --coordinator on every host")
    _services.append(service)


_services: list[subprocess.Popen[bytes]] = []  # its standard input is open as long as this process runs


def serve(port: int, processes: int) -> None:
    """The service's program: serves until it is told to end, or for some seconds after its standard input has ended.

    Args:
      port: where it listens.
      processes: how many processes connect.
    """
    until = time.monotonic() + 2 * _LINGER_SECONDS  # the service of a run that was killed may still be there
    while True:
        try:
            service = _jax.get_distributed_runtime_service(
                f"[::]:{port}",
                processes,
                heartbeat_timeout=_HEARTBEAT_SECONDS,
                cluster_register_timeout=2 * _START_SECONDS,  # longer than any process waits
                shutdown_timeout=_LINGER_SECONDS,
            )
            break
        except jax.errors.JaxRuntimeError:
            if time.monotonic() > until:
                os._exit(1)
            time.sleep(1)
    print("ready", flush=True)
    if not sys.stdin.buffer.read():
        time.sleep(_LINGER_SECONDS)
    service.shutdown()
    os._exit(0)
