"""Ends this process when another one has met an error, or when nothing is finished any more.

A process that meets an error writes it to the table that all see; each looks there once a second.
Processes that are gone are JAX's to find (hosts/coordination.py).
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

_TURN = 1.0  # seconds between two looks
# Seconds until all know what ends them: on a busy machine a look may come late.
_PATIENCE = 10.0
LEAVING_PATIENCE = 2.5  # where a signal ends this process: it has 3 (shell/signals.py)
_END = "end"


class Watchdog:
    """Watches in a thread of its own, from `start` on."""

    def __init__(self, table: Table) -> None:
        self.stuck_after = 0.0  # seconds, 0 = never; a config says it
        self._table = table
        self._idle: float | None = None  # seconds since the last beat; None: nothing is due yet
        self._end: tuple[int, str] | None = None  # what this process ends with
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Ends the thread; nothing is watched any more."""
        self._over.set()
        self._thread.join()

    def beat(self) -> None:
        """Something was finished: an update, a batch of an evaluation."""
        self._idle = 0.0

    def tell(
        self, code: int, text: str, *, others: int | None = None, patience: float = _PATIENCE
    ) -> None:
        """Tells the others what ends this process; returns when they know, or after `patience`.

        They end with the same code, or with `others`.
        """
        if self._end is None:
            self._end = code, self._line(text)
            self._write(code if others is None else others, text)
            self._table.all_know(_END, patience)

    def wait_for_loss(self) -> None:
        """Returns if no process is found to be lost; otherwise this one ends meanwhile.

        What broke a connection is known once heartbeats have been missed.
        """
        time.sleep(self._table.lost_after + 5)

    def lost(self) -> None:
        """JAX has found that a process is gone: ends this one, in JAX's thread."""
        if self._end is None:
            text = "another process of the run is gone, or cannot be reached (see JAX's line above)"
            self._end = PeerLostError.exit_code, self._line(text)
        signals.leave(*self._end)

    def _watch(self) -> None:
        while not self._over.wait(_TURN):
            with contextlib.suppress(Exception):  # no answer: JAX counts heartbeats
                if self._idle is not None:
                    self._idle += _TURN  # no clock: a machine that slept was not idle
                    if 0 < self.stuck_after < self._idle:
                        text = f"nothing was finished for {self._idle:.0f} s"
                        self._write(StuckError.exit_code, text, stacks=True)
                if found := self._table.look(_END):
                    self._leave(**json.loads(found))

    def _write(self, code: int, text: str, *, stacks: bool = False) -> None:
        end = {"code": code, "text": text, "by": self._table.index, "stacks": stacks}
        with contextlib.suppress(Exception):  # the first one counts
            self._table.put(_END, json.dumps(end), again=False)

    def _leave(self, code: int, text: str, by: int, stacks: bool) -> None:
        if self._end is not None:  # it is ending already
            return
        cause = "" if by == self._table.index else f"because of process {by}: "
        self._end = code, self._line(cause + text)
        if stacks:  # now: when the first one leaves, what the others wait for breaks
            faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)
        self._table.all_know(_END, _PATIENCE)
        signals.leave(*self._end)

    def _line(self, text: str) -> str:
        return f"process {self._table.index} ends: {text}"
