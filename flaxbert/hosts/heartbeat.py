"""Signs of life: who is lost, who is stuck, who was asked to stop, and what ended a process.

Each process writes a line about itself once a second; process 0 reads them all and writes the news
that everybody acts on. The surprising thing: silence is counted in turns of one's own, not by the
clock, so a machine that slept, or a debugger, does not make all others look dead.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from flaxbert.config import Processes
from flaxbert.errors import PeerLostError, StuckError
from flaxbert.hosts.coordination import Table
from flaxbert.shell import signals

_TURN = 1.0  # seconds
# Until a process that ends has told all others: what leaving may take, see shell/signals.py.
_PATIENCE = 2.5
# Turns without news after which an abort is put down to them.
_SILENT = 4
# What may take long (compiling, storage) is stuck after so many times `stuck_after`.
_BUSY = 12


class Watch:
    """This process's eye on the others; two threads of its own."""

    def __init__(self, table: Table, stop: signals.StopSignal) -> None:
        self._table, self._stop = table, stop
        self.limits = Processes()  # until a config says more
        self._first = table.index == 0
        self._turn = 0
        self._busy = "starting"
        self._idle = 0.0  # seconds since something was finished, in own turns
        self._end: tuple[int, str, int] | None = None  # what ended this process; others' code
        self._verdict: dict[str, Any] | None = None  # what ends all
        self._told = threading.Event()  # everybody knows what ended this process
        self._silent = 0  # turns without news
        self._news = -1  # the turn of process 0 that was read last
        self._seen: dict[int, tuple[int, int]] = {}  # process: (its turn, turns without another)
        self._over = threading.Event()
        self._hurry = threading.Event()
        self._threads = [
            threading.Thread(target=target, name=f"peers-{target.__name__}", daemon=True)
            for target in (self._run, self._listen_for_silence)
        ]

    # Told by the main thread

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Ends both threads; nothing is watched any more."""
        self._over.set()
        self._hurry.set()
        for thread in self._threads:
            thread.join()

    def beat(self) -> None:
        """Something was finished: an update, a batch of an evaluation."""
        self._idle = 0.0

    @contextlib.contextmanager
    def busy(self, what: str) -> Iterator[None]:
        """Around what may take long without anything being wrong."""
        self.beat()
        before, self._busy = self._busy, what
        try:
            yield
        finally:
            self.beat()
            self._busy = before

    def training(self) -> None:
        """From here on `beat` is due every `stuck_after` seconds."""
        self.beat()
        self._busy = ""

    def ended(self, code: int, text: str, *, others: int | None = None) -> None:
        """Tells the others what ended this process; returns when they know, or soon.

        They end with the same code, or with `others`.
        """
        if self._verdict is None and self._end is None:
            self._end = code, text, code if others is None else others
            self._hurry.set()
            self._told.wait(_PATIENCE)

    def wait_for_verdict(self) -> None:
        """Returns if no process is found to be lost; otherwise this one ends meanwhile.

        What broke a connection is known once silence has lasted.
        """
        if self._told.wait(self.limits.lost_after + 5 * _TURN):
            threading.Event().wait()  # the thread that knows ends the process

    # The threads

    def _run(self) -> None:
        while not self._over.is_set():
            with contextlib.suppress(Exception):  # no answer: the other thread counts the silence
                self._take_turn()
            self._hurry.wait(_TURN)
            self._hurry.clear()

    def _take_turn(self) -> None:
        self._turn += 1
        self._idle += _TURN
        self._publish()
        if self._first:
            self._judge()
            self._silent = 0
        else:
            self._read_news()

    def _publish(self) -> None:
        status = {
            "turn": self._turn,
            "host": socket.gethostname(),
            "idle": self._idle,
            "busy": self._busy,
            "stop": self._stop.requested,
            "end": self._end,
            "left": self._verdict is not None,  # process 0 waits for it before it goes
        }
        self._table.put(f"status/{self._table.index}", json.dumps(status))

    def _judge(self) -> None:
        """Process 0: what do the others say?"""
        found = {int(i): json.loads(s) for i, s in self._table.below("status").items()}
        for index in range(self._table.count):
            turn = found.get(index, {}).get("turn", 0)
            last, silent = self._seen.get(index, (turn, 0))
            self._seen[index] = (turn, 0 if turn != last else silent + 1)
        verdict: dict[str, Any] | None = (
            self._ended(found) or self._lost(found) or self._stuck(found)
        )
        asked = any(status["stop"] for status in found.values())
        news = {"turn": self._turn, "stop": asked, "verdict": verdict}
        self._table.put("news", json.dumps(news))
        if verdict:
            self._learn(verdict)
            self._until_all_know()
            self._act(verdict)
        elif asked:
            self._pass_on_stop()

    def _until_all_know(self) -> None:
        until = time.monotonic() + _PATIENCE - 0.5
        while time.monotonic() < until:
            found = {int(i): json.loads(s) for i, s in self._table.below("status").items()}
            waiting = [
                index
                for index, status in found.items()
                if index and not status["left"] and self._seen[index][1] * _TURN < 3
            ]
            if not waiting:
                return
            time.sleep(0.05)

    def _read_news(self) -> None:
        text = self._table.look("news")
        news: dict[str, Any] = json.loads(text) if text else {"turn": -1}
        if news["turn"] == self._news:
            return
        self._news, self._silent = news["turn"], 0
        if news["verdict"]:
            self._learn(news["verdict"])
            with contextlib.suppress(Exception):
                self._publish()
            self._act(news["verdict"])
        elif news["stop"]:
            self._pass_on_stop()

    def _ended(self, found: dict[int, dict[str, Any]]) -> dict[str, Any] | None:
        for index, status in found.items():
            if status["end"]:
                _, text, code = status["end"]
                return {"code": code, "by": index, "text": text, "dump": False}
        return None

    def _lost(self, found: dict[int, dict[str, Any]]) -> dict[str, Any] | None:
        for index, (_, silent) in self._seen.items():
            if silent * _TURN >= self.limits.lost_after:
                host = found.get(index, {}).get("host", "?")
                text = f"no sign of life from process {index} on {host} for {silent * _TURN:.0f} s"
                return {
                    "code": PeerLostError.exit_code,
                    "by": index,
                    "text": text,
                    "dump": False,
                }
        return None

    def _stuck(self, found: dict[int, dict[str, Any]]) -> dict[str, Any] | None:
        limit = self.limits.stuck_after
        if not limit or len(found) < self._table.count:
            return None
        # While one is busy the others may be waiting for it.
        busy = {index: status for index, status in found.items() if status["busy"]}
        late = [
            (status["idle"], index)
            for index, status in (busy or found).items()
            if status["idle"] > limit * (_BUSY if busy else 1)
        ]
        if not late:
            return None
        # The one that came last to a stop is most often the one that waits for nobody.
        idle, index = min(late)
        what = found[index]["busy"] or "training"
        text = f"nothing was finished for {idle:.0f} s ({what}; process {index} came the furthest)"
        return {"code": StuckError.exit_code, "by": index, "text": text, "dump": True}

    def _learn(self, verdict: dict[str, Any]) -> None:
        self._verdict = verdict
        if verdict["dump"]:  # now: when the first one leaves, what the others wait for breaks
            faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)

    def _act(self, verdict: dict[str, Any]) -> None:
        """Ends this process, unless it is ending by itself."""
        self._told.set()
        if self._end is not None:
            return
        me, by = self._table.index, verdict["by"]
        cause = verdict["text"] if by == me else f"because of process {by}: {verdict['text']}"
        signals.leave(verdict["code"], f"process {me} ends: {cause}")

    def _pass_on_stop(self) -> None:
        if not self._stop.requested:
            # In a thread of its own: it may end the process, and waits for us to tell the others.
            threading.Thread(target=self._stop.request, daemon=True).start()

    def _listen_for_silence(self) -> None:
        while not self._over.wait(_TURN):
            self._silent += 1
            if self._silent * _TURN >= self.limits.lost_after + 2 * _TURN:
                self._lost_to_us(f"no answer from the coordinator for {self._silent * _TURN:.0f} s")

    def hears_nothing(self) -> bool:
        return self._silent >= _SILENT

    def coordinator_lost(self) -> None:
        self._lost_to_us("the coordinator is gone: process 0, or its machine")

    def connection_broken(self) -> None:
        self._lost_to_us("the processes are not connected any more: one was started again alone?")

    def _lost_to_us(self, why: str) -> None:
        """Ends this process: nobody is there any more."""
        known, self._verdict = self._verdict, self._verdict or {"text": why}
        if self._end is not None:  # it is ending by itself
            signals.leave(self._end[0])
        elif known and "code" in known:  # another thread is about to end it
            signals.leave(known["code"])
        else:
            signals.leave(PeerLostError.exit_code, f"process {self._table.index}: {why}")
