"""Sides end with figures, or with a reason; none of them is helped more than the others."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from tests.benchmarks import BENCHMARKS, load

sides = load("sides")


def program(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_figures_are_the_last_line():
    assert sides.figures_of(program("print('hello'); print('{\"a\": 1}')"), {}) == {"a": 1}


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("", "SideError: expected a JSON object on the last line, got ''"),
        ("print('done')", "SideError: expected a JSON object on the last line, got 'done'"),
        ("print(3)", "SideError: expected a JSON object on the last line, got '3'"),
        ("import os; os.kill(os.getpid(), 9)", "SideError: ended by signal 9"),
        ("raise SystemExit('no device')", "no device"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
    ],
)
def test_no_figures_are_an_error_with_its_reason(code, reason):
    with pytest.raises(sides.SideError) as caught:
        sides.figures_of(program(code), {})
    assert sides.reason_of(str(caught.value)) == reason


def test_a_side_that_does_not_end_is_killed():
    start = time.monotonic()
    code = "import sys, time; print('ValueError: x', file=sys.stderr, flush=True); time.sleep(60)"
    with pytest.raises(sides.SideError) as caught:
        sides.figures_of(program(code), {}, seconds=0.5)
    assert time.monotonic() - start < 30
    assert sides.reason_of(str(caught.value)) == "SideError: no end after 0.5 seconds"


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("Traceback\ntorch.OutOfMemoryError: no memory\nSee the docs\n", "torch.OutOfMemoryError:"),
        ("KeyError: 'a'\nand then\nmy.Exception: last\n\nSet VERBOSE=1", "my.Exception: last"),
        ("a warning\nunpadded needs PyTorch 2.10 or later", "unpadded needs PyTorch"),
        ("file.py:3: an Error: not a name\nthe last line", "the last line"),
        ("\n", "no message"),
    ],
)
def test_the_reason_is_the_last_exception_that_is_named(message, reason):
    assert sides.reason_of(message).startswith(reason)


def test_a_peer_that_fails_later_keeps_what_it_had(capsys):
    rounds = iter([{"samples_per_second": 123.456, "versions": {}}])

    def peer():
        for figures in rounds:
            return figures
        raise sides.SideError("RuntimeError: gone\nbye")

    def ours():
        return {"samples_per_second": 200.0, "versions": {}}

    *_, turns = sides.take_turns("case", {"flaxbert x": ours, "peer": peer}, 3)
    summary = sides.summary(turns)
    assert summary["failed"] == {"peer": {"reason": "RuntimeError: gone", "rounds": [123.46]}}
    assert summary["sides"].keys() == {"flaxbert x"} and not summary["speed_ratios"]
    assert "case 1 peer: failed: RuntimeError: gone" in capsys.readouterr().out


def test_our_own_failure_is_not_passed_over():
    def ours():
        raise sides.SideError("gone")

    with pytest.raises(sides.SideError, match="gone"):
        list(sides.take_turns("case", {"flaxbert x": ours}, 1))


def test_all_sides_have_huge_pages_on_cpus(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(BENCHMARKS)
    speed = load("speed")
    given = []

    def run(command, environment, *_):
        given.append(environment)
        return subprocess.CompletedProcess(command, 1, "", "no figures"), 0.0

    monkeypatch.setattr(speed, "run", run)
    monkeypatch.setattr(speed, "figures_of", run)
    for workload in speed.workloads().values():
        for side in speed.sides_of(workload, tmp_path, "python").values():
            try:
                side()
            except SystemExit as stop:  # ours reads its results itself
                assert str(stop) == "no figures"
    assert len(given) >= 7
    told = {environment["GLIBC_TUNABLES"] for environment in given}
    assert told == {"glibc.malloc.hugetlb=1"}
    code = "import os; print('{\"told\": \"%s\"}' % os.environ['GLIBC_TUNABLES'])"
    assert sides.figures_of(program(code), sides.ON_CPU) == {"told": told.pop()}


TURNS = """
import json, sys
print("a word of a library", "", "ready", sep="\\n", flush=True)
for number, _ in enumerate(sys.stdin):
    print("", "another", 3, sep="\\n")
    print(json.dumps({"turn": number}), flush=True)
    if number:
        raise ValueError("not a third time")
"""


def test_a_standing_side_answers_each_turn():
    side = sides.Standing([sys.executable, "-c", TURNS], {})
    side.wait_until_ready(60)
    assert [side.turn(60), side.turn(60)] == [{"turn": 0}, {"turn": 1}]
    with pytest.raises(sides.SideError) as caught:
        side.turn(60)
    assert sides.reason_of(str(caught.value)) == "ValueError: not a third time"


@pytest.mark.parametrize(
    "code, reason",
    [
        ("raise MemoryError('the GPU is full')", "MemoryError: the GPU is full"),
        ("import time; time.sleep(600)", "SideError: no answer after 1 seconds"),
        ("print('something else')", "SideError: it ended with exit code 0"),
    ],
)
def test_a_side_that_does_not_get_ready(code, reason):
    side = sides.Standing([sys.executable, "-c", code], {})
    with pytest.raises(sides.SideError) as caught:
        side.wait_until_ready(1 if "sleep" in code else 60)
    assert sides.reason_of(str(caught.value)) == reason
