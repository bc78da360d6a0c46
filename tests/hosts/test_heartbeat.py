"""What is concluded from the lines that processes write about themselves: lost, stuck, ended.

The table is a dict here; tests/slow/test_several.py has the real one, and real processes.
"""

from __future__ import annotations

import json

import pytest

from flaxbert.config import Processes
from flaxbert.hosts import heartbeat as module
from flaxbert.hosts.heartbeat import Watch
from flaxbert.shell import signals

LIMITS = Processes(lost_after=5, stuck_after=100)


class Table:
    def __init__(self, index: int, count: int, values: dict[str, str] | None = None) -> None:
        self.index, self.count, self.address = index, count, "127.0.0.1:1"
        self.values = {} if values is None else values

    def put(self, key, value):
        self.values[key] = value

    def look(self, key):
        return self.values.get(key)

    def below(self, key):
        return {k.split("/")[1]: v for k, v in self.values.items() if k.startswith(f"{key}/")}


@pytest.fixture
def left(monkeypatch):
    """What processes left with, instead of leaving."""
    codes = []
    monkeypatch.setattr(signals, "leave", lambda code, line="": codes.append((code, line)))
    monkeypatch.setattr(module.faulthandler, "dump_traceback", lambda *a, **k: codes.append("dump"))
    monkeypatch.setattr(module, "_PATIENCE", 0.5)
    return codes


def group(count=3, limits=LIMITS):
    values: dict[str, str] = {}
    stops = [signals.StopSignal() for _ in range(count)]
    watches = [
        Watch(Table(index, count, values), stop)  # pyright: ignore[reportArgumentType]
        for index, stop in enumerate(stops)
    ]
    for watch in watches:
        watch.limits = limits
    return watches, stops


def turns(watches, number=1):
    for _ in range(number):
        for watch in reversed(watches):  # process 0 last, as it reads the others
            watch._take_turn()


def age(watch, seconds):
    watch._idle += seconds


def test_nobody_is_lost_or_stuck(left):
    watches, _ = group()
    for watch in watches:
        watch.training()
    turns(watches, 20)
    assert left == []


def test_a_process_that_says_nothing_is_lost(left):
    watches, _ = group()
    turns(watches, 2)
    turns([watches[0], watches[2]], 4)
    assert left == []  # not yet
    turns([watches[0], watches[2]], 2)
    assert {code for code, _ in left} == {71}
    assert "no sign of life from process 1 on" in left[0][1]


def test_a_process_that_never_said_anything_is_lost(left):
    watches, _ = group()
    turns(watches[:2], 7)
    assert {code for code, _ in left} == {71} and "process 2" in left[0][1]


def test_all_are_stuck_where_nobody_finishes_anything(left):
    watches, _ = group()
    for seconds, watch in zip((101, 150, 103), watches, strict=True):
        watch.training()
        age(watch, seconds)
    turns(watches, 2)
    assert next(entry for entry in left if entry != "dump")[0] == 70
    assert left.count("dump") == len(left) / 2  # each its own stacks, before it leaves
    assert "process 0 came the furthest" in str(left)


def test_one_that_still_finishes_something_is_no_alarm_but_one_that_waits_for_it(left):
    watches, _ = group()
    for watch in watches:
        watch.training()
    age(watches[1], 101)
    turns(watches, 2)
    assert {entry[0] for entry in left if entry != "dump"} == {70}


@pytest.mark.parametrize(("seconds", "codes"), [(1000, set()), (1300, {70})])
def test_one_that_is_busy_keeps_the_others_waiting(seconds, codes, left):
    watches, _ = group()
    for watch in watches:
        watch.training()
        age(watch, 500)
    with watches[2].busy("saving"):
        age(watches[2], seconds)
        turns(watches, 2)
    assert {entry[0] for entry in left if entry != "dump"} == codes


def test_no_limit_no_alarm(left):
    watches, _ = group(limits=Processes(lost_after=5, stuck_after=0))
    for watch in watches:
        watch.training()
        age(watch, 1e6)
    turns(watches, 2)
    assert left == []


@pytest.mark.parametrize(("code", "others"), [(2, None), (4, None), (70, None), (70, 71)])
@pytest.mark.parametrize("who", [0, 2])
def test_what_ended_one_ends_all(code, others, who, left):
    watches, _ = group()
    turns(watches)
    watches[who]._told.set()  # nobody else runs here while it waits
    watches[who].ended(code, "no such file", others=others)
    turns(watches, 2)
    watches = [watch for index, watch in enumerate(watches) if index != who]
    assert len(left) >= len(watches) and {code for code, _ in left} == {others or code}
    assert all(line.endswith(f"because of process {who}: no such file") for _, line in left)


def test_a_request_to_stop_reaches_all(left):
    watches, stops = group()
    for stop in stops:
        stop._deferred = True
    turns(watches)
    stops[1].requested = True
    turns(watches, 2)
    for thread in module.threading.enumerate():
        if thread.daemon and thread is not module.threading.current_thread():
            thread.join(0.5)
    assert all(stop.requested for stop in stops) and left == []


def test_silence_of_the_coordinator(left, monkeypatch):
    watches, _ = group()
    turns(watches)
    watch = watches[1]
    waited = []
    monkeypatch.setattr(watch._over, "wait", lambda seconds: waited.append(1) or len(left) > 0)
    watch._listen_for_silence()
    assert len(waited) == LIMITS.lost_after + 3
    assert left == [(71, "process 1: no answer from the coordinator for 7 s")]


def test_news_end_the_silence(left):
    watches, _ = group()
    watches[1]._silent = 4
    turns(watches)  # process 0 wrote after process 1 had looked
    assert watches[1]._silent == 4
    turns(watches)
    assert watches[1]._silent == 0
    stale = json.loads(watches[0]._table.look("news") or "")
    watches[1]._silent = 3
    watches[1]._take_turn()
    assert watches[1]._silent == 0 and stale["verdict"] is None  # read for the first time
    watches[1]._silent = 3
    watches[1]._take_turn()
    assert watches[1]._silent == 3
