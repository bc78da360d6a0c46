"""Ends this process when another one has an error, or when the run makes no progress.

A process with an error writes it to the shared table, which all read once a second. JAX detects
processes that are gone (hosts/coordination.py).
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import sys
import threading
import time

from flaxbert.errors import PeerLostError, StuckError
from flaxbert.hosts.coordination import Table
from flaxbert.shell import signals

_TURN = 1.0  # seconds between two reads of the table
# Seconds for all processes to read an error: on a busy machine a read may come late.
_PATIENCE = 10.0
LEAVING_PATIENCE = 2.5  # the same when a signal ends this process, which then has 3 seconds
_END = "end"


class Watchdog:
    """Watches in a thread of its own, from `start` on."""

    def __init__(self, table: Table) -> None:
        self.stuck_after = 0.0  # seconds, 0 = never; set once the config is read
        self._table = table
        self._idle: float | None = None  # seconds since the last beat; None before the first
        self._end: tuple[int, str] | None = None  # exit code and message of this process
        self._leaves = False  # whether the thread ends this process
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Ends the thread."""
        self._over.set()
        self._thread.join()

    def beat(self) -> None:
        """Notes progress: a finished update, or a batch of an evaluation."""
        self._idle = 0.0

    def tell(
        self, code: int, text: str, *, others: int | None = None, patience: float = _PATIENCE
    ) -> None:
        """Tells the others why this process ends; waits until they know, or for `patience`.

        They end with the same exit code, or with `others`. Note: where another process ends this
        one already, whatever is raised here follows from that, and that exit code counts.
        """
        if self._leaves and threading.current_thread() is not self._thread:
            self._thread.join(patience)  # it ends the process
        if self._end is None:
            self._end = code, self._line(text)
            self._write(code if others is None else others, text)
            self._table.all_know(_END, patience)

    def wait_for_loss(self) -> None:
        """Waits until JAX would have noticed a lost process, which ends this one meanwhile."""
        time.sleep(self._table.lost_after + 5)

    def lost(self) -> None:
        """Ends this process, in JAX's thread: JAX has detected that another one is gone."""
        if self._end is None:
            text = "another process of the run is gone or cannot be reached (see JAX's line above)"
            self._end = PeerLostError.exit_code, self._line(text)
        signals.leave(*self._end)

    def _watch(self) -> None:
        while not self._over.wait(_TURN):
            with contextlib.suppress(Exception):  # if the table does not answer, JAX notices
                if self._idle is not None:
                    self._idle += _TURN  # not a clock: a suspended machine was not idle
                    if 0 < self.stuck_after < self._idle:
                        text = f"no progress for {self._idle:.0f} s"
                        self._write(StuckError.exit_code, text, stacks=True)
                if found := self._table.look(_END):
                    self._leave(**json.loads(found))

    def _write(self, code: int, text: str, *, stacks: bool = False) -> None:
        end = {"code": code, "text": text, "by": self._table.index, "stacks": stacks}
        with contextlib.suppress(Exception):  # only the first error is kept
            self._table.put(_END, json.dumps(end), again=False)

    def _leave(self, code: int, text: str, by: int, stacks: bool) -> None:
        if self._end is not None:  # it is ending already
            return
        cause = "" if by == self._table.index else f"because of process {by}: "
        self._end, self._leaves = (code, self._line(cause + text)), True
        if stacks:  # now: once one process ends, the others fail where they wait for it
            faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)
        self._table.all_know(_END, _PATIENCE)
        signals.leave(*self._end)

    def _line(self, text: str) -> str:
        return f"process {self._table.index} ends: {text}"
