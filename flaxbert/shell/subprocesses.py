"""Processes that a command starts to have something done: none of them outlives it.

Note: a child gets a session of its own. Ctrl-C in a terminal then reaches its
parent alone, which may want to go on for a while; when the parent leaves, it ends the child and
whatever that has started.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Sequence

from flaxbert.shell import signals

# To clear up: pip has temporary folders. `signals.undoing` waits a little longer than this.
_PATIENCE = 2.0


def run(command: Sequence[str], seconds: float | None = None) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end, with nothing on its standard input.

    A signal that ends this process meanwhile interrupts the command, and kills it if need be.

    Raises:
      OSError: it cannot be started.
      subprocess.TimeoutExpired: it was killed after `seconds`.
    """
    process: subprocess.Popen[str] | None = None
    guard = threading.Lock()  # a signal may come when the child runs and `process` is not set yet
    leaving = False

    def stop() -> None:
        nonlocal leaving
        with guard:
            leaving = True
            if process is None:
                return
        _send(process, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_PATIENCE)
        _send(process, signal.SIGKILL)

    with signals.undoing(stop):
        with guard:
            if not leaving:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    start_new_session=True,
                )
        if process is not None:
            with process:
                try:
                    out, err = process.communicate(timeout=seconds)
                except BaseException:
                    _send(process, signal.SIGKILL)
                    raise
            if not leaving:
                return subprocess.CompletedProcess(command, process.returncode, out, err)
        while True:  # this process is ending: an answer would only start the next child
            time.sleep(1)


def _send(process: subprocess.Popen[str], number: signal.Signals) -> None:
    """Signals the session of a child that has not been waited for; its number is still its own."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
