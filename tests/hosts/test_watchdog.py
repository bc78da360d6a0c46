"""What ends a process because of another one, and what is stuck.

The table is a dict here; tests/slow/test_several.py has the real one, and real processes.
"""

from __future__ import annotations

import threading
import time

import pytest

from flaxbert.hosts import watchdog as module
from flaxbert.hosts.watchdog import Watchdog
from flaxbert.shell import signals


class Table:
    lost_after = 5.0

    def __init__(self, index: int, values: dict[str, str]) -> None:
        self.index, self.values = index, values

    def put(self, key, value, *, again=True):
        if not again and key in self.values:
            raise RuntimeError("ALREADY_EXISTS")
        self.values[key] = value

    def look(self, key):
        return self.values.get(key)

    def all_know(self, what, seconds):
        self.waited = seconds


@pytest.fixture
def left(monkeypatch):
    """What processes left with, instead of leaving."""
    codes = []
    monkeypatch.setattr(signals, "leave", lambda code, line="": codes.append((code, line)))
    monkeypatch.setattr(module.faulthandler, "dump_traceback", lambda *a, **k: codes.append("dump"))
    return codes


@pytest.fixture
def watchdogs():
    values: dict[str, str] = {}
    return [Watchdog(Table(index, values)) for index in range(3)]  # type: ignore[arg-type]


def turns(watchdogs, number=1):
    """Lets each look `number` times; its thread would do so once a second."""
    for watchdog in watchdogs:
        left = iter([False] * number)
        watchdog._over.wait = lambda seconds, left=left: next(left, True)
        watchdog._watch()
        watchdog._over = threading.Event()


def test_all_are_stuck_where_nothing_is_finished(watchdogs, left):
    for watchdog in watchdogs:
        watchdog.stuck_after = 5.0
        watchdog.beat()
    turns(watchdogs, 4)
    watchdogs[0].beat()
    turns(watchdogs)
    assert left == []
    turns(watchdogs[1:])
    turns(watchdogs)
    cause = "no progress for 6 s"
    because = f"because of process 1: {cause}"
    ends = [(1, cause), (2, because), (0, because)]
    # Each its own stacks, before it leaves.
    assert left[::2] == ["dump"] * 3
    assert left[1::2] == [(70, f"process {index} ends: {text}") for index, text in ends]


@pytest.mark.parametrize("limit", [0.0, 5.0])
def test_nothing_is_due_without_a_limit_or_before_the_first_beat(limit, watchdogs, left):
    watchdogs[0].stuck_after = limit
    if not limit:
        watchdogs[0].beat()
    turns(watchdogs, 10)
    assert left == []


@pytest.mark.parametrize(("code", "others"), [(2, None), (4, None), (70, None), (70, 71)])
@pytest.mark.parametrize("who", [0, 2])
def test_what_ended_one_ends_all(code, others, who, watchdogs, left):
    watchdogs[who].tell(code, "no such file", others=others)
    watchdogs[who].tell(4, "something that follows from it")
    turns(watchdogs)
    assert [code for code, _ in left] == [others or code] * 2
    assert all(line.endswith(f"ends: because of process {who}: no such file") for _, line in left)


def test_others_have_time_to_read_unless_a_signal_ends_this_process(watchdogs):
    """A signal's path has 3 s in all (shell/signals.py)."""
    watchdogs[0].tell(2, "no such file")
    watchdogs[1].tell(75, "interrupted", patience=module.LEAVING_PATIENCE)
    assert watchdogs[0]._table.waited >= 10
    assert watchdogs[1]._table.waited < signals._PATIENCE


def test_what_follows_from_anothers_error_does_not_change_the_exit_code(watchdogs, left):
    """The main thread fails when process 0 goes; the watchdog is about to end the process."""
    first, second = watchdogs[:2]
    first.tell(2, "no such file")
    go = threading.Event()
    second._table.all_know = lambda what, seconds: go.wait(10)
    second.start()
    while not second._leaves:
        time.sleep(0.01)
    failing = threading.Thread(target=lambda: second.tell(71, "the first process is gone"))
    failing.start()
    failing.join(0.2)
    assert failing.is_alive() and left == []
    go.set()
    second.close()
    failing.join(10)
    assert [code for code, _ in left] == [2] and not failing.is_alive()


def test_a_lost_process_ends_the_others_unless_they_end_already(watchdogs, left):
    watchdogs[0].lost()
    watchdogs[1].tell(2, "no such file")
    watchdogs[1].lost()
    assert left[0][0] == 71 and "process 0 ends: another process of the run is gone" in left[0][1]
    assert left[1] == (2, "process 1 ends: no such file")
