"""One writer at a time in a bucket: an object that its holder renews, and that runs out.

The object is only ever written on condition that its generation is the one last seen, so of two
that try at once one fails. The surprising thing: no clock is compared with another's. A lease has
run out once the waiter has seen the same generation for as long as a lease lasts, by its own
clock; the holder, by its own, stops writing before that.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from flaxbert.errors import ConfigError, StorageError
from flaxbert.shell import signals
from flaxbert.shell.console import printable, say
from flaxbert.storage.bucket import configure_clients, passes, reason_for

# Long enough for a slow minute of the network or of the machine, short enough that a spot machine
# that comes back after a SIGKILL waits no longer than it takes to compile.
LEASE_SECONDS = 60.0
_RENEWALS = 3  # in that time
_LEAST_PATIENCE = 5.0  # seconds for an answer, however short the lease
_MARGIN = 0.25  # of it; the holder stops writing that much earlier, for what is under way
# Nobody reaches the store for that long: the run ends, it could not save anyway.
_GIVE_UP = 10 * LEASE_SECONDS
# At the start nothing is lost by giving up: as long as gcsfs tries.
_ACQUIRE_PATIENCE, _ACQUIRE_PAUSE = 30.0, 1.0
_RETRIES = {"max_retries": 3, "initial_delay": "500ms", "max_delay": "4s"}  # TensorStore's own
# A process that a signal ends has 3 seconds (shell/signals.py): to wait for a request that is
# under way, and for the one that releases.
_LEAVING_PATIENCE = 1.2

_Answer = TypeVar("_Answer")


@dataclasses.dataclass(frozen=True)
class _Seen:
    holder: dict[str, Any] | None  # None: there is no lease
    generation: bytes


class _Unanswered(Exception):
    """A request that failed: `passes` if it may go through later; the text is one line."""

    def __init__(self, error: Exception | str) -> None:
        super().__init__(error if isinstance(error, str) else reason_for(error))
        self.passes = isinstance(error, str) or passes(error)


class Lease:
    """The lease `name` of a bucket, for this process."""

    def __init__(
        self,
        bucket: str,
        name: str,
        seconds: float = LEASE_SECONDS,
        on_lost: Callable[[str], None] | None = None,
    ) -> None:
        """`on_lost` is called in another thread, once, when somebody else has the lease.

        Raises:
          StorageError: the store cannot be opened.
        """
        self._where = f"gs://{bucket}/{name}"
        self._seconds = seconds
        self._on_lost = on_lost or _end_at_once
        self._key = name
        try:
            self._store = _open(bucket, seconds)
        except Exception as error:  # TensorStore raises ValueError for everything but a timeout
            raise StorageError(f"{self._where}: {reason_for(error)}") from error
        self._token = uuid.uuid4().hex
        self._guard = threading.Lock()  # one request at a time; also of what follows
        self._generation = b""
        self._renewed = 0.0  # when the last successful renewal was sent
        self._lost = ""
        self._stop = threading.Event()

    @contextlib.contextmanager
    def held(self) -> Iterator[Lease]:
        """Holds it while the block runs; a signal that ends the process releases it too.

        Raises:
          ConfigError: another process holds it and is alive; names its pid and host.
          StorageError: the store refuses or does not answer; or, at the end, somebody else has
            taken it.
        """
        with signals.undoing(self._let_go):
            self._acquire()
            renewing = threading.Thread(target=self._renew_for_ever, name="lease", daemon=True)
            renewing.start()
            try:
                yield self
            finally:
                self._stop.set()
                renewing.join()
                if not self._lost:
                    self._release()
        if self._lost:
            raise StorageError(self._lost)

    def check(self) -> None:
        """Called before every write: returns if the lease is held for sure.

        Raises:
          StorageError: somebody else has it, or nobody can tell.
        """
        if not self._lost and self._age() > (1 - _MARGIN) * self._seconds:
            with self._guard:
                try:
                    self._renew()
                except _Unanswered as error:
                    raise StorageError(
                        f"{self._where}: cannot be renewed, so nothing is written any more: {error}"
                    ) from error
        if self._lost:
            raise StorageError(self._lost)

    def _acquire(self) -> None:
        """Takes the lease if there is none, or once it has run out."""
        watched: bytes | None = None
        since = 0.0
        while True:
            seen = self._tried_again(self._look)
            if (
                seen.holder is None
                or seen.holder.get("token") == self._token  # taken; the answer was lost
                or (seen.generation == watched and _now() - since > self._seconds_of(seen.holder))
            ):
                if self._tried_again(functools.partial(self._take, seen.generation)):
                    return
                continue  # somebody was faster
            holder = seen.holder
            who = f"pid {holder.get('pid', '?')} on {holder.get('host', '?')}"
            if watched is None:
                say(
                    f"flaxbert: {self._where} is held by {who}; if it is not alive any more, its "
                    f"lease runs out in {self._seconds_of(holder):.0f} s: waiting",
                )
            elif seen.generation != watched:
                folder = self._where.rpartition("/")[0]
                raise ConfigError(
                    f"--workdir: {folder} is in use by {who}. Wait for it to end, or name another "
                    "directory."
                )
            if watched is None:
                watched, since = seen.generation, _now()
            time.sleep(self._seconds / 60)

    def _take(self, generation: bytes) -> bool:
        with self._guard:  # a signal waits for it, to know what to release
            return self._write(generation)

    def _tried_again(self, ask: Callable[[], _Answer]) -> _Answer:
        """Returns the answer; asks again for `_ACQUIRE_PATIENCE` while the store is away.

        Raises:
          StorageError: it is still away, or it refuses.
        """
        begun, told = _now(), False
        while True:
            try:
                return ask()
            except _Unanswered as error:
                if not error.passes or _now() - begun > _ACQUIRE_PATIENCE:
                    raise StorageError(f"{self._where}: {error}") from error
                if not told:
                    say(f"flaxbert: {self._where}: {error} Trying for {_ACQUIRE_PATIENCE:.0f} s.")
                    told = True
            time.sleep(_ACQUIRE_PAUSE)

    def _seconds_of(self, holder: dict[str, Any]) -> float:
        """Returns how long the holder's lease lasts: it may be of another version."""
        stated = holder.get("seconds")
        if not isinstance(stated, (int, float)) or not 0 < stated <= 10 * LEASE_SECONDS:
            return self._seconds
        return float(stated)

    def _renew_for_ever(self) -> None:
        wait = self._seconds / _RENEWALS
        while not self._lost and not self._stop.wait(wait):
            with self._guard:
                if self._lost:
                    break
                try:
                    self._renew()
                    wait = self._seconds / _RENEWALS
                except _Unanswered as error:
                    wait = self._seconds / _RENEWALS / 4
                    self._complain(error)
        if self._lost and not self._stop.is_set():
            self._on_lost(self._lost)

    def _complain(self, error: _Unanswered) -> None:
        if self._age() > _GIVE_UP / LEASE_SECONDS * self._seconds:
            self._lost = f"{self._where}: could not be renewed for {self._age():.0f} s."
        elif self._age() > self._seconds / _RENEWALS * 2:
            _tell(f"WARNING: {self._where} could not be renewed for {self._age():.0f} s: {error}")

    def _renew(self) -> None:
        """Raises _Unanswered if the store refuses or does not answer."""
        if self._write(self._generation):
            return
        # Refused: the generation is another. An answer that was lost leaves one of our own.
        seen = self._look()
        if seen.holder is not None and seen.holder.get("token") == self._token:
            self._generation = seen.generation
            if not self._write(self._generation):
                raise _Unanswered("it changes while it is renewed.")
            return
        holder = seen.holder or {}
        who = f"pid {holder['pid']} on {holder['host']}" if "pid" in holder else "somebody"
        self._lost = f"{self._where}: was taken over by {who}; this run has stopped, unsaved."

    def _write(self, generation: bytes) -> bool:
        """Writes the lease if it has this generation still; returns whether it had."""
        body = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "token": self._token,
            "seconds": self._seconds,
            "expires": time.time() + self._seconds,  # for people; nothing compares it
        }
        sent = _now()
        stamp = self._wait(
            self._store.write(self._key, json.dumps(body).encode(), if_equal=generation)
        )
        if not stamp.generation:
            return False
        self._generation, self._renewed = stamp.generation, sent
        return True

    def _look(self) -> _Seen:
        found = self._wait(self._store.read(self._key))
        if found.state != "value":
            return _Seen(None, found.stamp.generation)
        try:
            holder = json.loads(found.value)
        except ValueError:
            holder = {}
        return _Seen(holder if isinstance(holder, dict) else {}, found.stamp.generation)

    def _release(self, patience: float | None = None) -> None:
        try:
            self._wait(self._store.write(self._key, None, if_equal=self._generation), patience)
        except _Unanswered as error:
            _tell(
                f"WARNING: {self._where} could not be released; it runs out in "
                f"{self._seconds:.0f} s: {error}"
            )

    def _let_go(self) -> None:
        """Releases it while a signal ends the process, whatever the other threads are doing."""
        self._stop.set()
        # Never given back: it must not be renewed, nor taken, any more.
        if self._guard.acquire(timeout=_LEAVING_PATIENCE) and self._generation and not self._lost:
            self._release(_LEAVING_PATIENCE)

    def _wait(self, future: Any, patience: float | None = None) -> Any:
        """Returns the result, within `patience`: by default until the lease is due again.

        Raises:
          _Unanswered: the store refuses or does not answer.
        """
        try:
            return future.result(
                timeout=patience or max(_LEAST_PATIENCE, self._seconds / _RENEWALS)
            )
        except TimeoutError as error:
            future.cancel()
            raise _Unanswered(error) from error
        except Exception as error:  # of TensorStore, a ValueError for nearly everything
            raise _Unanswered(error) from error

    def _age(self) -> float:
        return _now() - self._renewed


def _open(bucket: str, seconds: float) -> Any:
    import tensorstore  # here: it is slow to import, and only runs in a bucket need it

    configure_clients()
    context = tensorstore.Context({"gcs_request_retries": _RETRIES})
    spec = {"driver": "gcs", "bucket": bucket, "path": ""}
    return tensorstore.KvStore.open(spec, context=context).result(timeout=seconds)


def _now() -> float:
    """Seconds of a clock that also runs while the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _end_at_once(why: str) -> None:
    """Ends the process: threads of Orbax may be writing, and no exception reaches them."""
    signals.leave(StorageError.exit_code, printable(f"error: {why}"))


def _tell(line: str) -> None:
    """`say` for threads that must not wait until another one has printed."""
    signals.tell(printable(line))


@dataclasses.dataclass(frozen=True)
class Watched:
    """A lease as seen by somebody who does not want it."""

    who: str  # "pid 4711 on host", as it says itself
    renewed: bool  # while it was watched: its holder is alive
    seconds: float  # it was watched
    lasts: float  # seconds, from its last renewal on


def watch(bucket: str, name: str) -> Watched | None:
    """Watches a lease until it is renewed, at most half of the time that it lasts; only reads.

    Half of it is one renewal and a half. Returns None if nobody holds it, or not any more.

    Raises:
      StorageError: the store refuses or does not answer.
    """
    where = f"gs://{bucket}/{name}"
    try:
        lease = Lease(bucket, name)
        first = seen = lease._look()
        if first.holder is None:
            return None
        who = f"pid {first.holder.get('pid', '?')} on {first.holder.get('host', '?')}"
        lasts, begun = lease._seconds_of(first.holder), _now()
        say(f"flaxbert: {where} is held by {who}: watching for {lasts / 2:.0f} s if it is renewed")
        while seen.generation == first.generation and _now() - begun < lasts / 2:
            time.sleep(lasts / 60)
            seen = lease._look()
            if seen.holder is None:
                return None
    except _Unanswered as error:
        raise StorageError(f"{where}: {error}") from error
    return Watched(who, seen.generation != first.generation, _now() - begun, lasts)
