"""Wraps jax.distributed: processes connect, share a key-value table, and detect lost processes.

JAX keeps the table's client private; Orbax takes it from the same place, and only this file does.
Note: when a process is lost, JAX aborts the others from a C++ thread that no exception reaches; its
Python callback for that cannot be used (it throws std::bad_cast). So `on_lost` handles SIGABRT.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Callable
from typing import Any

from flaxbert.errors import ConfigError, ModelFileError, PeerLostError
from flaxbert.hosts.discovery import BIND, COORDINATOR, COUNT, INDEX, Peers

_SPACE = "flaxbert/"
_SLICE = 2_000  # milliseconds of one wait; waits are repeated
_CONNECT = 300  # seconds for all processes to connect
_SHUTDOWN = 60


class Table:
    """Keys and values that every process can write and read."""

    def __init__(self, client: Any, index: int, count: int, lost_after: float) -> None:
        self._client = client
        self.index, self.count, self.lost_after = index, count, lost_after

    def put(self, key: str, value: str, *, again: bool = True) -> None:
        """Writes a value; replaces an existing one only if `again` allows it."""
        self._client.key_value_set(_SPACE + key, value, allow_overwrite=again)

    def look(self, key: str) -> str | None:
        """Returns a value, None if there is none."""
        try:
            return self._client.key_value_try_get(_SPACE + key)
        except Exception as error:
            if "NOT_FOUND" in str(error):
                return None
            raise

    def get(self, key: str, *, unless: str = "") -> str:
        """Waits for a value and returns it.

        Raises:
          PeerLostError: the coordinator does not answer.
          ModelFileError: another process has written a reason to stop waiting at `unless`.
        """
        while True:
            try:
                return self._client.blocking_key_value_get(_SPACE + key, _SLICE)
            except Exception as error:
                if "DEADLINE_EXCEEDED" in str(error):
                    if unless and (reason := self.look(unless)):
                        raise ModelFileError(reason) from error
                else:
                    line = str(error).splitlines()[0]
                    raise PeerLostError(f"the first process does not answer: {line}") from error

    def all_know(self, what: str, seconds: float) -> None:
        """Waits until all processes have called this, or for some seconds."""
        with contextlib.suppress(Exception):
            self._client.wait_at_barrier(_SPACE + what, int(1000 * seconds))

    def answers(self) -> bool:
        """Whether the coordinator answers without error within 3 seconds."""
        answered = threading.Event()

        def ask() -> None:
            with contextlib.suppress(Exception):
                self.look("")
                answered.set()

        threading.Thread(target=ask, daemon=True).start()
        return answered.wait(3.0)


def connect(peers: Peers, lost_after: float) -> Table:
    """Starts jax.distributed and waits for all processes.

    Raises:
      ConfigError: JAX cannot determine their addresses, or the port is in use.
      PeerLostError: they do not all connect.
    """
    import jax
    from jax._src import distributed

    # Its SIGTERM handler would replace ours (shell/signals.py).
    jax.config.update("jax_enable_preemption_service", False)
    explicit: dict[str, Any] = {}
    if peers.coordinator:
        explicit = {
            "coordinator_address": peers.coordinator,
            "num_processes": peers.count,
            "process_id": peers.index,
            "cluster_detection_method": "deactivate",
        }
        host = peers.coordinator.rpartition(":")[0].strip("[]")
        if host in ("localhost", "127.0.0.1", "::1") and BIND not in os.environ:
            # It has no authentication: do not listen on all interfaces without need.
            explicit["coordinator_bind_address"] = peers.coordinator
        if peers.index == 0:
            _refuse_taken(peers.coordinator)
    try:
        jax.distributed.initialize(
            **explicit,
            initialization_timeout=_CONNECT,
            heartbeat_timeout_seconds=math.ceil(lost_after),
            shutdown_timeout_seconds=_SHUTDOWN,
        )
    except ValueError as error:
        raise ConfigError(
            f"JAX cannot find the processes of this run ({str(error).splitlines()[0]}). Set "
            f"{COORDINATOR}, {COUNT} and {INDEX} in each of them."
        ) from error
    except RuntimeError as error:
        if "must be called before" in str(error):
            raise ConfigError(
                "the config file computes with JAX or asks it for devices. Several processes must "
                "connect before that: remove it from the file."
            ) from error
        where = peers.coordinator or "the coordinator"
        raise PeerLostError(
            f"not all processes of this run connected to {where} within {_CONNECT} s: "
            f"{str(error).splitlines()[0]}"
        ) from error
    state = distributed.global_state
    return Table(state.client, state.process_id, state.num_processes, lost_after)


def disconnect() -> None:
    """Shuts jax.distributed down, together with all processes."""
    import jax

    jax.distributed.shutdown()


def on_lost(table: Table, lost: Callable[[], None]) -> None:
    """Calls `lost` when JAX aborts this process because another one is gone.

    The table does not answer then: the coordinator is gone, or JAX's thread holds the lock. After
    any other abort it does answer, and the process simply aborts.
    """
    global _on_abort
    c = ctypes.CDLL(None)
    c.signal.restype, c.signal.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def aborted(number: int) -> None:
        # abort() raises the signal in its own thread, where Python can run, unless that thread
        # holds a lock that Python needs; then the alarm ends the process.
        c.alarm(10)
        if not table.answers():
            lost()
        c.signal(signal.SIGABRT, None)  # SIG_DFL: abort() raises it once more

    _on_abort = aborted  # C holds no reference
    c.signal(signal.SIGABRT, ctypes.cast(aborted, ctypes.c_void_p))


_on_abort: Any = None


def _refuse_taken(address: str) -> None:
    """Raises ConfigError if the coordinator's port is in use: JAX would crash."""
    try:
        socket.create_server(("", int(address.rpartition(":")[2]))).close()
    except OSError as error:
        raise ConfigError(
            f"{COORDINATOR}={address}: process 0 cannot listen there ({error.strerror}). Choose a "
            "free port, or end the run that uses it."
        ) from error


def machine() -> str:
    """Identifies this machine or container, whose processes can share files."""
    boot = ""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id") as file:
        boot = file.read().strip()
    folder = os.stat(tempfile.gettempdir())
    user = os.getuid() if hasattr(os, "getuid") else ""
    return f"{socket.gethostname()} {boot} {user} {folder.st_dev} {folder.st_ino}"
