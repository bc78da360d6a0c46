"""The table of keys that all processes of a run see: the coordination service of jax.distributed.

JAX keeps its client to itself; Orbax takes it from the same place. Only this file touches it. The
surprising thing: where the service is gone JAX ends the process by SIGABRT, from a thread that no
exception reaches, so an answer to that signal stands ready (`answer_abort`).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Callable
from typing import Any

from flaxbert.errors import ConfigError, ModelFileError, PeerLostError
from flaxbert.hosts.discovery import BIND, COORDINATOR, COUNT, INDEX, Peers, is_loopback

_SPACE = "flaxbert/"
_SLICE = 2_000  # milliseconds of one wait; it is repeated for as long as it takes
_CONNECT = 300  # seconds for all processes to come
_SHUTDOWN = 60
# JAX can only abort where it hears nothing for so long: heartbeat.py comes first.
_HEARTBEAT = 3600


class Table:
    """Keys and values that every process can write and read."""

    def __init__(self, client: Any, index: int, count: int, address: str) -> None:
        self._client = client
        self.index, self.count, self.address = index, count, address

    def put(self, key: str, value: str, *, again: bool = True) -> None:
        """Writes a value, in place of one that is there if it may be written `again`."""
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
        """Returns a value once it is there.

        Raises:
          PeerLostError: the coordinator does not answer.
          ModelFileError: there is one at `unless`, a reason not to wait any longer.
        """
        while True:
            try:
                return self._client.blocking_key_value_get(_SPACE + key, _SLICE)
            except Exception as error:
                if "DEADLINE_EXCEEDED" in str(error):
                    if unless and (reason := self.look(unless)):
                        raise ModelFileError(reason) from error
                else:
                    raise PeerLostError(
                        f"the coordinator {self.address} does not answer any more: "
                        f"{str(error).splitlines()[0]}"
                    ) from error

    def is_broken(self) -> bool:
        """Whether the service answers with an error, or not within seconds."""
        fine = threading.Event()

        def ask() -> None:
            with contextlib.suppress(Exception):
                self.look("news")
                fine.set()

        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        asking.join(3.0)
        return not fine.is_set()

    def below(self, key: str) -> dict[str, str]:
        """Returns what stands below `key/`, by the rest of the names."""
        prefix = f"{_SPACE}{key}/"
        return {
            name.removeprefix(prefix): value
            for name, value in self._client.key_value_dir_get(prefix)
        }


def connect(peers: Peers) -> Table:
    """Starts jax.distributed and waits for all processes.

    Raises:
      ConfigError: JAX does not find out where they are, or their port is in use.
      PeerLostError: they do not all come.
    """
    import jax
    from jax._src import distributed

    # Its handler would take SIGTERM from ours (shell/signals.py), and do less with it.
    jax.config.update("jax_enable_preemption_service", False)
    explicit: dict[str, Any] = {}
    if peers.coordinator:
        explicit = {
            "coordinator_address": peers.coordinator,
            "num_processes": peers.count,
            "process_id": peers.index,
            "cluster_detection_method": "deactivate",
        }
        if is_loopback(peers.coordinator.rpartition(":")[0]) and BIND not in os.environ:
            # It asks nobody who they are: not on all interfaces without need.
            explicit["coordinator_bind_address"] = peers.coordinator
        if peers.index == 0:
            _refuse_taken(peers.coordinator)
    try:
        jax.distributed.initialize(
            **explicit,
            initialization_timeout=_CONNECT,
            heartbeat_timeout_seconds=_HEARTBEAT,
            shutdown_timeout_seconds=_SHUTDOWN,
        )
    except ValueError as error:
        raise ConfigError(
            f"JAX does not find the processes of this run ({str(error).splitlines()[0]}). Set "
            f"{COORDINATOR}, {COUNT} and {INDEX} in each of them."
        ) from error
    except RuntimeError as error:
        where = peers.coordinator or "the coordinator"
        raise PeerLostError(
            f"the processes of this run did not all come to {where} in {_CONNECT} s: "
            f"{str(error).splitlines()[0]}"
        ) from error
    state = distributed.global_state
    return Table(
        state.client, state.process_id, state.num_processes, str(state.coordinator_address)
    )


def disconnect() -> None:
    """Ends jax.distributed once all processes do."""
    import jax

    jax.distributed.shutdown()


def answer_abort(
    table: Table, silent: Callable[[], bool], gone: Callable[[], None], broken: Callable[[], None]
) -> None:
    """From here on `gone` is called where an abort finds nobody at the coordinator's address, or
    nothing was heard from there (`silent`), whoever takes connections; `broken` where the service
    answers with an error, as after a process that was started again alone. Any other abort ends
    the process as ever.
    """
    global _on_abort
    c = ctypes.CDLL(None)
    c.signal.restype, c.signal.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def aborted(number: int) -> None:
        # abort() raises the signal in its own thread: Python can run there. Not if that thread
        # holds what Python needs; then the alarm ends it.
        c.alarm(10)
        if silent() or not _answers(table.address):
            gone()
        elif table.is_broken():
            broken()
        c.signal(signal.SIGABRT, None)  # SIG_DFL: abort() raises it once more

    _on_abort = aborted  # C holds no reference
    c.signal(signal.SIGABRT, ctypes.cast(aborted, ctypes.c_void_p))


_on_abort: Any = None


def _refuse_taken(address: str) -> None:
    """Raises ConfigError if something listens at the coordinator's port: JAX would crash."""
    try:
        socket.create_server(("", int(address.rpartition(":")[2]))).close()
    except OSError as error:
        raise ConfigError(
            f"{COORDINATOR}={address}: process 0 cannot listen there ({error.strerror}): another "
            "process does. Choose a free port, or end the run that has it."
        ) from error


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=2.0).close()
    except OSError:
        return False
    return True


def machine() -> str:
    """Identifies this machine, or this container on it: where files can be handed over."""
    boot = ""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id") as file:
        boot = file.read().strip()
    folder = os.stat(tempfile.gettempdir())
    user = os.getuid() if hasattr(os, "getuid") else ""
    return f"{socket.gethostname()} {boot} {user} {folder.st_dev} {folder.st_ino}"
