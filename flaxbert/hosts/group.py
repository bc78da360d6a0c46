"""Communication between the processes of a run outside of compiled programs.

A run of one process uses the same methods: `SingleProcess` returns at once, so callers need not
distinguish the two.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from flaxbert.hosts.coordination import Table, machine
from flaxbert.hosts.watchdog import Watchdog


class SingleProcess:
    """A run of one process."""

    index, count = 0, 1
    is_first = True  # it writes the workdir and prints messages
    local_count = 1  # processes of the run on this machine
    is_leader = True  # it prepares the data for all processes on this machine

    def on_first(self, function: Callable[[], Any]) -> Any:
        """Calls the function in process 0 only; returns its result (JSON) in all processes.

        An exception in it ends all processes.
        """
        return json.loads(json.dumps(function()))

    def on_leader(self, function: Callable[[], Any]) -> Any:
        """Calls the function in one process of each machine; returns its result there in all."""
        return self.on_first(function)

    def all_gather(self, value: Any) -> list[Any]:
        """Returns the values of all processes, in their order; waits for all."""
        return [json.loads(json.dumps(value))]

    def barrier(self, key: str, broken: str) -> None:
        """Waits until all processes have called this, from any thread.

        Raises:
          ModelFileError: one of them has put an error at `broken`.
        """

    def put(self, key: str, text: str) -> None:
        """Publishes a text under a key, unless a process has already done so."""

    def beat(self) -> None:
        """Reports progress: a finished update, or a batch of an evaluation."""

    def limit(self, stuck_after: float) -> None:
        """Sets the seconds without a `beat`, from the first one on, after which a run is stuck."""


class Group(SingleProcess):
    """A run of several processes, as one of them sees it."""

    def __init__(self, table: Table, watchdog: Watchdog) -> None:
        self.index, self.count = table.index, table.count
        self.is_first = self.index == 0
        self._table, self._watchdog = table, watchdog
        self._calls = 0
        machines = self.all_gather(machine())
        mates = [index for index, name in enumerate(machines) if name == machines[self.index]]
        self.local_count, self._leader = len(mates), mates[0]
        self.is_leader = self._leader == self.index

    def on_first(self, function: Callable[[], Any]) -> Any:
        return self._of(0, function)

    def on_leader(self, function: Callable[[], Any]) -> Any:
        return self._of(self._leader, function)

    def all_gather(self, value: Any) -> list[Any]:
        call = self._next_call()
        self._table.put(f"calls/{call}/{self.index}", json.dumps(value))
        if self.is_first:  # the others read from process 0 only, not from each other
            said = [self._table.get(f"calls/{call}/{index}") for index in range(self.count)]
            self._table.put(f"calls/{call}/all", json.dumps([json.loads(text) for text in said]))
        return json.loads(self._table.get(f"calls/{call}/all"))

    def barrier(self, key: str, broken: str) -> None:
        self._table.put(f"{key}/{self.index}", "here")
        if self.is_first:
            for index in range(self.count):
                self._table.get(f"{key}/{index}", unless=broken)
            self._table.put(f"{key}/all", "here")
        self._table.get(f"{key}/all", unless=broken)

    def put(self, key: str, text: str) -> None:
        self._table.put(key, text, again=False)

    def beat(self) -> None:
        self._watchdog.beat()

    def limit(self, stuck_after: float) -> None:
        self._watchdog.stuck_after = stuck_after

    def _of(self, speaker: int, function: Callable[[], Any]) -> Any:
        key = f"calls/{self._next_call()}/{speaker}"
        if self.index == speaker:
            self._table.put(key, json.dumps(function()))
        return json.loads(self._table.get(key))

    def _next_call(self) -> int:
        self._calls += 1
        return self._calls
