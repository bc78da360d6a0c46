"""One writer at a time in a bucket: a lease object that its holder must renew.

It is only written if its generation is the one last seen, so of two processes that write at once
one fails. Clocks of machines are not compared: a lease has expired once a waiter has seen the same
generation for the lease's duration by its own clock; the holder stops writing before that.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

from flaxbert.errors import ConfigError, StorageError
from flaxbert.shell import signals
from flaxbert.shell.console import printable, say
from flaxbert.storage.bucket import configure_clients, reason_for

# Long enough for a slow network or machine, short enough that a spot machine that restarts after a
# SIGKILL waits no longer than it takes to compile.
SECONDS = 60.0
_RENEWALS = 3  # in that time
_SURE = 0.75  # of it; then the holder starts no more writes
_RETRIES = {"max_retries": 6, "initial_delay": "500ms", "max_delay": "8s"}  # TensorStore's own
_PATIENCE = 40.0  # seconds for one request and its retries
_LEAVING_PATIENCE = 1.5  # when a signal ends the process, within 3 seconds (shell/signals.py)


class Lease:
    """The lease `name` of a bucket, for this process."""

    def __init__(self, bucket: str, name: str) -> None:
        """Raises StorageError if the bucket cannot be opened."""
        import tensorstore  # here: it is slow to import, and only runs in a bucket need it

        configure_clients()
        self._name, self._where = name, f"gs://{bucket}/{name}"
        context = tensorstore.Context({"gcs_request_retries": _RETRIES})
        spec = {"driver": "gcs", "bucket": bucket, "path": ""}
        self._store = self._answer(tensorstore.KvStore.open(spec, context=context))
        self._token = uuid.uuid4().hex
        self._lock = threading.Lock()  # one request at a time
        self._generation = b""
        self._renewed = 0.0  # when the last successful renewal was sent
        self._lost = ""
        self._stop = threading.Event()

    @contextlib.contextmanager
    def held(self) -> Iterator[Lease]:
        """Holds it while the block runs; a signal that ends the process releases it too.

        Raises:
          ConfigError: another live process holds it; names its pid and host.
          StorageError: the store refuses or does not answer; or, at the end, another process has
            taken it.
        """
        with signals.undoing(self._release):
            self._acquire()
            renewing = threading.Thread(target=self._renew_for_ever, name="lease", daemon=True)
            renewing.start()
            try:
                yield self
            finally:
                self._stop.set()
                renewing.join()
                self._release()
        if self._lost:
            raise StorageError(self._lost)

    def check(self) -> None:
        """Call before every write: raises StorageError unless the lease is certainly held."""
        if not self._lost and _now() - self._renewed > _SURE * SECONDS:
            self._renew()
        if self._lost:
            raise StorageError(self._lost)

    def _acquire(self) -> None:
        """Takes the lease if there is none, or once it has expired."""
        watched, since = b"", 0.0
        while True:
            holder, generation = self._look()
            ran_out = generation == watched and _now() - since > SECONDS
            # It may be our own, if the answer to the write was lost.
            if holder is None or ran_out or holder.get("token") == self._token:
                with self._lock:  # so that a signal knows what to release
                    taken = self._write(generation)
                if taken:
                    return
                continue  # another process was faster
            if not watched:
                say(
                    f"flaxbert: {self._where} is held by {name_of(holder)}; waiting {SECONDS:.0f} "
                    "s for its lease to expire, in case it is no longer alive"
                )
                watched, since = generation, _now()
            elif generation != watched:
                raise ConfigError(
                    f"--workdir: {self._where.rpartition('/')[0]} is in use by {name_of(holder)}. "
                    "Wait for it to end, or name another directory."
                )
            time.sleep(SECONDS / 60)

    def _renew_for_ever(self) -> None:
        while not self._lost and not self._stop.wait(SECONDS / _RENEWALS):
            with contextlib.suppress(StorageError):  # is retried, and `check` reports it
                self._renew()
        if self._lost and not self._stop.is_set():
            # Orbax's threads may be writing, and an exception would not stop them.
            signals.leave(StorageError.exit_code, printable(f"error: {self._lost}"))

    def _renew(self) -> None:
        """Raises StorageError if the store refuses or does not answer."""
        with self._lock:
            if self._lost or self._write(self._generation):
                return
            # The generation has changed: by our own write whose answer was lost, or by another.
            holder, generation = self._look()
            if holder is None or holder.get("token") != self._token:
                self._lost = (
                    f"{self._where}: was taken over by {name_of(holder)}; this run has stopped "
                    "without saving."
                )
            elif not self._write(generation):
                raise StorageError(f"{self._where}: changed while it was renewed.")

    def _release(self) -> None:
        """Deletes it if it is still ours."""
        self._stop.set()
        # The lock is never released: nothing may be renewed or taken any more.
        if self._lock.acquire(timeout=_LEAVING_PATIENCE) and self._generation and not self._lost:
            deleting = self._store.write(self._name, None, if_equal=self._generation)
            with contextlib.suppress(Exception):  # it will expire
                deleting.result(timeout=_LEAVING_PATIENCE)

    def _write(self, generation: bytes) -> bool:
        """Writes the lease if it still has this generation; returns whether it had."""
        body = {"pid": os.getpid(), "host": socket.gethostname(), "token": self._token}
        body["renewed"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())  # for people only
        sent, data = _now(), json.dumps(body).encode()
        stamp = self._answer(self._store.write(self._name, data, if_equal=generation))
        if stamp.generation:
            self._generation, self._renewed = stamp.generation, sent
        return bool(stamp.generation)

    def _look(self) -> tuple[dict[str, Any] | None, bytes]:
        """Returns the holder, None if there is none, and the generation."""
        found = self._answer(self._store.read(self._name))
        return holder_in(found.value) if found.state == "value" else None, found.stamp.generation

    def _answer(self, future: Any) -> Any:
        try:
            return future.result(timeout=_PATIENCE)
        except Exception as error:  # TensorStore raises ValueError for all but timeouts
            raise StorageError(f"{self._where}: {reason_for(error)}") from error


def holder_in(data: bytes) -> dict[str, Any]:
    """Returns what a lease says about its holder; {} for content that cannot be read."""
    with contextlib.suppress(ValueError):
        holder = json.loads(data)
        return holder if isinstance(holder, dict) else {}
    return {}


def name_of(holder: dict[str, Any] | None) -> str:
    """Returns "pid 4711 on host"."""
    holder = holder or {}
    return f"pid {holder.get('pid', '?')} on {holder.get('host', '?')}"


def _now() -> float:
    """Returns the seconds of a clock that also runs while the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
