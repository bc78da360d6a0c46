"""Which thread is gloo's, by what Linux says of each; tests/slow/test_several.py has a real one."""

from __future__ import annotations

import os
import threading

import pytest

from flaxbert.hosts import gloo


@pytest.fixture
def lowered(monkeypatch, tmp_path):
    """lowered(threads): what give_way returns among them, and the calls that it made."""
    calls = []
    monkeypatch.setattr(gloo, "_TASKS", tmp_path)
    monkeypatch.setattr(gloo, "_PAUSE", 0)
    monkeypatch.setattr(os, "setpriority", lambda *arguments: calls.append(arguments))

    def lower(threads):
        for number, files in {os.getpid(): ("python", "futex_do_wait", 0), **threads}.items():
            (tmp_path / str(number)).mkdir()
            for name, text in zip(("comm", "wchan", "schedstat"), files, strict=True):
                (tmp_path / str(number) / name).write_text(str(text))
        return gloo.give_way(), calls

    return lower


@pytest.mark.parametrize("waits", ["do_epoll_wait", "ep_poll"])
def test_the_one_that_has_worked_gives_way(waits, lowered):
    gloos, grpcs, python = 10**9, 10**9 + 1, threading.main_thread().native_id
    found, calls = lowered(
        {
            gloos: ("python", waits, 900),
            grpcs: ("python", waits, 5),
            10**9 + 2: ("event_engine", waits, 9000),
            10**9 + 3: ("python", "futex_do_wait", 9000),
            **({} if python == os.getpid() else {python: ("python", waits, 9000)}),
        }
    )
    assert found == gloos and calls == [(os.PRIO_PROCESS, gloos, 19)]


def test_nothing_is_done_where_it_is_not_found(lowered, monkeypatch, tmp_path):
    assert lowered({}) == (None, [])
    monkeypatch.setattr(gloo, "_TASKS", tmp_path / "not there")
    assert gloo.give_way() is None
