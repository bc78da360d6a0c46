"""Child processes of a command; none of them outlives it.

Note: a child gets its own session, so that Ctrl-C in a terminal reaches only the parent, which may
still have work to finish. When the parent ends, it ends the child and the child's children.
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

# Seconds to clean up: pip has temporary folders. `signals.undoing` waits a little longer.
_PATIENCE = 2.0


def run(command: Sequence[str], seconds: float | None = None) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end, with empty standard input.

    A signal that ends this process meanwhile interrupts the command, and kills it if necessary.

    Raises:
      OSError: the command cannot be started.
      subprocess.TimeoutExpired: the command was killed after `seconds`.
    """
    process: subprocess.Popen[str] | None = None
    guard = threading.Lock()  # a signal may come while the child runs but `process` is not set
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
        while True:  # this process is ending: returning would only start the next child
            time.sleep(1)


def _send(process: subprocess.Popen[str], number: signal.Signals) -> None:
    """Signals the session of a child that is still running."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
