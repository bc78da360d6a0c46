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
from collections.abc import Callable
from typing import Any

from flaxbert.errors import PeerLostError
from flaxbert.processes.found import Peers

_SPACE = "flaxbert/"
_SLICE = 10_000  # milliseconds of one wait; it is repeated for as long as it takes
_CONNECT = 300  # seconds for all processes to come
_SHUTDOWN = 60
# JAX's own sign of life. Ours comes first: JAX can only abort.
_HEARTBEAT = 100


class Table:
    """Keys and values that every process can write and read."""

    def __init__(self, client: Any, index: int, count: int, address: str) -> None:
        self._client = client
        self.index, self.count, self.address = index, count, address

    def put(self, key: str, value: str) -> None:
        """Writes a value, in place of one that is there."""
        self._client.key_value_set(_SPACE + key, value, allow_overwrite=True)

    def look(self, key: str) -> str | None:
        """Returns a value, None if there is none."""
        try:
            return self._client.key_value_try_get(_SPACE + key)
        except Exception as error:
            if "NOT_FOUND" in str(error):
                return None
            raise

    def get(self, key: str) -> str:
        """Returns a value once it is there."""
        while True:
            try:
                return self._client.blocking_key_value_get(_SPACE + key, _SLICE)
            except Exception as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise PeerLostError(
                        f"the coordinator {self.address} does not answer any more: "
                        f"{str(error).splitlines()[0]}"
                    ) from error

    def below(self, key: str) -> dict[str, str]:
        """Returns what stands below `key/`, by the rest of the names."""
        prefix = f"{_SPACE}{key}/"
        return {
            name.removeprefix(prefix): value
            for name, value in self._client.key_value_dir_get(prefix)
        }

    def delete(self, key: str) -> None:
        """Deletes a key and all below it."""
        self._client.key_value_delete(_SPACE + key)


def connect(peers: Peers) -> Table:
    """Starts jax.distributed and waits for all processes.

    Raises:
      PeerLostError: they do not all come.
    """
    import jax
    from jax._src import distributed

    # Its handler would take SIGTERM from ours (interrupt.py), and do less with it.
    jax.config.update("jax_enable_preemption_service", False)
    explicit: dict[str, Any] = {}
    if peers.coordinator:
        explicit = {
            "coordinator_address": peers.coordinator,
            "num_processes": peers.count,
            "process_id": peers.index,
            "cluster_detection_method": "deactivate",
        }
    try:
        jax.distributed.initialize(
            **explicit,
            initialization_timeout=_CONNECT,
            heartbeat_timeout_seconds=_HEARTBEAT,
            shutdown_timeout_seconds=_SHUTDOWN,
        )
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


def answer_abort(address: str, lost: Callable[[], None]) -> None:
    """From here on `lost` is called where an abort finds nobody at the coordinator's address.

    Any other abort ends the process as ever.
    """
    global _on_abort
    c = ctypes.CDLL(None)
    c.signal.restype, c.signal.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def aborted(number: int) -> None:
        # abort() raises the signal in its own thread: Python can run there.
        if not _answers(address):
            lost()
        c.signal(signal.SIGABRT, None)  # SIG_DFL: abort() raises it once more

    _on_abort = aborted  # C holds no reference
    c.signal(signal.SIGABRT, ctypes.cast(aborted, ctypes.c_void_p))


_on_abort: Any = None


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=2.0).close()
    except OSError:
        return False
    return True


def machine() -> str:
    """Identifies this machine, or this container on it."""
    boot = ""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id") as file:
        boot = file.read().strip()
    return f"{socket.gethostname()} {boot} {os.getuid() if hasattr(os, 'getuid') else ''}".strip()
