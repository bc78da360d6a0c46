"""SIGTERM and SIGINT: how a command is asked to stop, and how it ends.

It imports only what Python starts with, so that handlers stand before the slow imports begin.
Note: no handler raises. Python runs one only when the main thread is back from C++,
which a compiler may keep for minutes, and an exception that comes out of the blue is lost in
callbacks, told as another error by libraries, and crashed NumPy in the middle of its import. So a
thread of our own, woken by the signal itself, ends the process as long as there is nothing to save.
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

# Seconds for all that `undoing` has registered. Kubernetes, Slurm and spot machines kill 30 seconds
# after SIGTERM.
_PATIENCE = 3.0

# Seconds in which a repetition is the same request: GNU timeout, for one, signals its child and
# then the group that the child is in.
_SAME_REQUEST = 0.5

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignal:
    """One command's answer to SIGTERM and SIGINT.

    The first one ends the process with exit code 75, but inside `deferred` it only sets
    `requested`. A second one ends it at once, unsaved, with 128 + its number.
    """

    def __init__(self) -> None:
        self.requested = False
        self.over = False  # the outcome is settled: a first signal does not change it any more
        self._deferred = False
        self._undo: list[Callable[[], None]] = []
        self._lock = threading.Lock()  # over the question whether to defer or to leave

    @contextlib.contextmanager
    def deferred(self, agreed: Callable[[bool], bool] = bool) -> Iterator[None]:
        """Around what has something to save: it polls `requested`, or calls `check`.

        `agreed` is told at the end whether a signal has come, and says whether one has come to any
        process of the run.

        Raises:
          InterruptedRun: at the end of the block, if one has.
        """
        with self._lock:
            self._deferred = True
        try:
            yield
        except BaseException:
            self.settle()  # an error ends the command, whatever was requested
            raise
        if agreed(self.requested):
            raise InterruptedRun("stopped by a signal")
        with self._lock:
            self._deferred = False
            if self.requested:  # since all agreed: there is nothing to save any more
                self._leave()

    def settle(self) -> None:
        """The outcome stands: returns, unless a signal that came before is ending the process."""
        with self._lock:
            self.over = True

    def check(self) -> None:
        """Raises InterruptedRun if a signal has come."""
        if self.requested:
            raise InterruptedRun("stopped by a signal")

    def on_leaving(self, undo: Callable[[], None]) -> None:
        """Calls `undo` (in another thread) if the process is left in this command."""
        self._undo.append(undo)

    @contextlib.contextmanager
    def undoing(self, undo: Callable[[], None]) -> Iterator[None]:
        """The same, while the block runs."""
        self.on_leaving(undo)
        try:
            yield
        finally:
            self._undo.remove(undo)

    def arrived(self, number: int, *, again: bool) -> None:
        """Answers a signal, in the thread that watches for them."""
        if again:
            os._exit(128 + number)
        self.request()
        if not self.over:
            tell("stopping after this update; a second signal ends at once, unsaved")

    def request(self) -> None:
        """Asks the command to stop, as a first signal does; from any thread."""
        with self._lock:
            self.requested = True
            if not (self._deferred or self.over):
                self._leave()

    def undo(self) -> None:
        """Undoes, within a few seconds, what the command would undo at its end."""
        undoing = [threading.Thread(target=undo, daemon=True) for undo in reversed(self._undo)]
        for thread in undoing:
            thread.start()
        until = time.monotonic() + _PATIENCE
        for thread in undoing:
            thread.join(max(0.0, until - time.monotonic()))

    def _leave(self) -> None:
        said = "stopped by a signal; there was nothing to save. The same command goes on."
        leave(InterruptedRun.exit_code, said)


def install() -> StopSignal:
    """Returns the StopSignal that answers the signals; a new one if the last command is over."""
    global _answering
    if _answering is None:
        _start_watching()
    if _answering is None or _answering.over:
        _answering = StopSignal()
    for number in _SIGNALS:
        # A handler must stand for the thread to be woken; it has nothing to do itself.
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
    """Ends the process from any thread, without Python's own end."""
    global _leaving
    _leaving = _leaving or (code, line)
    try:
        if _answering is not None:
            _answering.undo()
        if line:
            tell(line)
    finally:  # also where no thread can be started any more
        os._exit(code)


def leaving() -> tuple[int, str]:
    """Returns what `leave` was called with first, for what undoes."""
    return _leaving or (InterruptedRun.exit_code, "stopped by a signal")


def leave_at_the_end() -> None:
    """Makes `end` leave at once: Python's own end waits for threads, and they for others."""
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
    """Prints a line on standard error, whatever another thread is printing."""
    # Not print, whose lock the main thread may hold. A progress bar's line stays whole.
    # Nor may a terminal or pipe that is gone end the thread that answers signals.
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
