"""What the processes of a run do together before and beside training: read once, tell all, agree.

A run of one process goes the same way: `SingleProcess` answers at once, so nobody has to ask how
many there are.
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
    is_first = True  # writes the workdir and tells the user
    local_count = 1  # processes of the run on this machine
    is_leader = True  # of them the one that prepares data for all

    def on_first(self, function: Callable[[], Any]) -> Any:
        """Returns what the function returns in process 0, where alone it runs: plain JSON values.

        What it raises ends all processes.
        """
        return json.loads(json.dumps(function()))

    def on_leader(self, function: Callable[[], Any]) -> Any:
        """The same with one process of each machine."""
        return self.on_first(function)

    def all_gather(self, value: Any) -> list[Any]:
        """Returns what every process says, in their order; waits for all."""
        return [json.loads(json.dumps(value))]

    def barrier(self, key: str, broken: str) -> None:
        """Waits until all processes have come here, in whatever thread.

        Raises:
          ModelFileError: one of them has put a reason at `broken`.
        """

    def put(self, key: str, text: str) -> None:
        """Tells all processes something, unless one has said something there already."""

    def beat(self) -> None:
        """Tells that something was finished: an update, a batch of an evaluation."""

    def limit(self, stuck_after: float) -> None:
        """Sets after how many seconds without a `beat` a run is stuck, from the first one on."""


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
        if self.is_first:  # each of them asks process 0 alone, not all others
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
