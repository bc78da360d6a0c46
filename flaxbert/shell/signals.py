"""Handles SIGTERM and SIGINT: requests to stop, and the end of the process.

It imports only the standard library, so that handlers are installed before the slow imports begin.
Note: no handler raises. Python runs handlers only when the main thread returns from C++, which may
take minutes in a compiler, and an exception at a random place gets lost in callbacks, is reported
as another error by libraries, and crashed NumPy during its import. So a separate thread, woken by
the signal itself, ends the process while there is nothing to save.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

from flaxbert.errors import InterruptedRun

# Seconds for all functions that `undoing` has registered. Kubernetes, Slurm and spot machines kill
# 30 seconds after SIGTERM.
_PATIENCE = 3.0

# Seconds in which a repeated signal counts as the same request: GNU timeout, for example, signals
# its child and then the child's process group.
_SAME_REQUEST = 0.5

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignal:
    """How a command reacts to SIGTERM and SIGINT.

    The first signal ends the process with exit code 75; inside `deferred` it only sets `requested`.
    A second one ends the process at once, without saving, with 128 + its number.
    """

    def __init__(self) -> None:
        self.requested = False
        self.over = False  # the outcome is settled: a first signal no longer changes it
        self._deferred = False
        self._undo: list[Callable[[], None]] = []
        self._lock = threading.Lock()  # held while deciding whether to defer or to leave

    @contextlib.contextmanager
    def deferred(self, agreed: Callable[[bool], bool] = bool) -> Iterator[None]:
        """Defers signals in a block that has something to save, which polls `requested` or `check`.

        At the end `agreed` gets whether this process had a signal, and returns whether any process
        of the run had one.

        Raises:
          InterruptedRun: at the end of the block, if any had one.
        """
        with self._lock:
            self._deferred = True
        try:
            yield
        except BaseException:
            self.settle()  # an error ends the command, signal or not
            raise
        if agreed(self.requested):
            raise InterruptedRun("stopped by a signal")
        with self._lock:
            self._deferred = False
            if self.requested:  # after the processes agreed: there is nothing left to save
                self._leave()

    def settle(self) -> None:
        """Fixes the outcome; later signals change nothing."""
        with self._lock:
            self.over = True

    def check(self) -> None:
        """Raises InterruptedRun if a signal has come."""
        if self.requested:
            raise InterruptedRun("stopped by a signal")

    def on_leaving(self, undo: Callable[[], None]) -> None:
        """Registers `undo`, to be called in another thread if a signal ends this process."""
        self._undo.append(undo)

    @contextlib.contextmanager
    def undoing(self, undo: Callable[[], None]) -> Iterator[None]:
        """Does the same while the block runs."""
        self.on_leaving(undo)
        try:
            yield
        finally:
            self._undo.remove(undo)

    def arrived(self, number: int, *, again: bool) -> None:
        """Handles a signal, in the watching thread."""
        if again:
            os._exit(128 + number)
        self.request()
        if not self.over:
            tell("stopping after this update; a second signal ends at once, unsaved")

    def request(self) -> None:
        """Requests a stop, as a first signal does; from any thread."""
        with self._lock:
            self.requested = True
            if not (self._deferred or self.over):
                self._leave()

    def undo(self) -> None:
        """Calls the registered functions, for a few seconds at most."""
        undoing = [threading.Thread(target=undo, daemon=True) for undo in reversed(self._undo)]
        for thread in undoing:
            thread.start()
        until = time.monotonic() + _PATIENCE
        for thread in undoing:
            thread.join(max(0.0, until - time.monotonic()))

    def _leave(self) -> None:
        leave(
            InterruptedRun.exit_code,
            "stopped by a signal; there was nothing to save. Run the same command again.",
        )


def install() -> StopSignal:
    """Returns the StopSignal that handles the signals; a new one if the last command is over."""
    global _answering
    if _answering is None:
        _start_watching()
    if _answering is None or _answering.over:
        _answering = StopSignal()
    for number in _SIGNALS:
        # Without a handler the thread is not woken; the handler itself has nothing to do.
        signal.signal(number, lambda number, frame: None)
    return _answering


@contextlib.contextmanager
def undoing(undo: Callable[[], None]) -> Iterator[None]:
    """`StopSignal.undoing` of the running command; nothing if there is none."""
    with contextlib.nullcontext() if _answering is None else _answering.undoing(undo):
        yield


def on_leaving(undo: Callable[[], None]) -> None:
    """`StopSignal.on_leaving` of the running command; nothing if there is none."""
    if _answering is not None:
        _answering.on_leaving(undo)


def leave(code: int, line: str = "") -> None:
    """Ends the process from any thread, without Python's shutdown."""
    global _leaving
    _leaving = _leaving or (code, line)
    try:
        if _answering is not None:
            _answering.undo()
        if line:
            tell(line)
    finally:  # even if no thread can be started
        os._exit(code)


def leaving() -> tuple[int, str]:
    """Returns the arguments of the first `leave`, for functions that undo."""
    return _leaving or (InterruptedRun.exit_code, "stopped by a signal")


def leave_at_the_end() -> None:
    """Makes `end` leave at once: Python's shutdown waits for threads, and they for others."""
    global _at_the_end
    _at_the_end = True


def end(code: int) -> None:
    """Ends the command, in its main thread."""
    sys.stdout.flush()
    sys.stderr.flush()
    if _at_the_end:
        leave(code)
    sys.exit(code)


def tell(line: str) -> None:
    """Prints a line on standard error, even if another thread is printing."""
    # Not by print, whose lock the main thread may hold; on a line of its own, below a progress bar.
    # A closed terminal or pipe must not end the thread that handles signals.
    with contextlib.suppress(OSError):
        os.write(2, f"{chr(10) if os.isatty(2) else ''}flaxbert: {line}\n".encode())


_answering: StopSignal | None = None
_leaving: tuple[int, str] | None = None
_at_the_end = False


def _start_watching() -> None:
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(woken,), name="signals", daemon=True).start()


def _watch(woken: int) -> None:
    asked: StopSignal | None = None
    since = 0.0
    while True:
        for number in os.read(woken, 64):  # a byte per signal: its number
            answering = _answering
            if number not in _SIGNALS or answering is None:
                continue
            if asked is not answering:
                asked, since = answering, time.monotonic()
                answering.arrived(number, again=False)
            elif time.monotonic() - since > _SAME_REQUEST:
                answering.arrived(number, again=True)
