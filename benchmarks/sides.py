"""What benchmarks that compare programs share: sides take turns, their figures become a record.

A side is a process of its own. It prints one JSON object on its last line and ends, or stays and
prints one for each turn (Standing). Note: ratios are taken round by round, not between medians:
what disturbs a machine for a while disturbs the sides of one round alike.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import queue
import re
import signal
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
OURS = "flaxbert"  # how the names of our own sides begin

# Huge pages for everybody, where the kernel gives them to those who ask.
ON_CPU = {
    "JAX_PLATFORMS": "cpu",
    "CUDA_VISIBLE_DEVICES": "",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}

SIDE_SECONDS = 30 * 60.0  # after them a side is given up

Figures = dict[str, Any]


class SideError(Exception):
    """A side that ended without figures; carries its standard error and what else is wrong."""


@dataclasses.dataclass
class Turns:
    runs: dict[str, list[Figures]]
    failed: dict[str, Figures]  # sides that are out: the reason, and their speeds until then

    def drop(self, side: str, error: SideError) -> None:
        before = [round(run["samples_per_second"], 2) for run in self.runs.pop(side, [])]
        self.failed[side] = {"reason": reason_of(str(error)), "rounds": before}


def take_turns(name: str, sides: dict[str, Callable[[], Figures]], rounds: int) -> Iterator[Turns]:
    """Runs every side once a round; yields all figures so far after each round.

    A peer that fails is out, and the others go on: not every mode fits or runs on every device.

    Raises:
      SideError: one of our own sides failed.
    """
    turns = Turns({side: [] for side in sides}, {})
    for number in range(rounds):
        # Back and forth, so that no side always comes after the same other.
        for side in sorted(turns.runs, reverse=bool(number % 2)):
            try:
                turns.runs[side].append(sides[side]())
            except SideError as error:
                if side.startswith(OURS):
                    raise
                turns.drop(side, error)
                print(f"{name} {number} {side}: failed: {error}", flush=True)
                continue
            speed, load = turns.runs[side][-1]["samples_per_second"], os.getloadavg()[0]
            print(f"{name} {number} {side}: {speed:.1f}/s (load {load:.1f})", flush=True)
        yield turns


def reason_of(message: str) -> str:
    """The last line that names an exception, best one of the side's own, or else the last line."""
    lines = [line.strip() for line in message.strip().splitlines()] or ["no message"]
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception): ", line)]
    own = [
        line
        for line in named
        if not line.startswith(("SideError: it ended", "SideError: it has ended"))
    ]
    return (own or named or lines)[-1]


def summary(turns: Turns) -> dict[str, Any]:
    """Medians and spread of each side, and our ratios to each other side, round by round."""
    ratios = {}
    for ours in (side for side in turns.runs if side.startswith(OURS)):
        for other in (side for side in turns.runs if not side.startswith(OURS)):
            pairs = zip(turns.runs[ours], turns.runs[other], strict=True)
            each = [a["samples_per_second"] / b["samples_per_second"] for a, b in pairs]
            ratios[f"{ours} / {other}"] = {
                "median": round(statistics.median(each), 3),
                "least": round(min(each), 3),
                "most": round(max(each), 3),
            }
    return {
        "sides": {side: _of_side(found) for side, found in turns.runs.items()},
        "speed_ratios": ratios,
        **({"failed": turns.failed} if turns.failed else {}),
    }


def _of_side(found: list[Figures]) -> Figures:
    numbers = [key for key, value in found[0].items() if isinstance(value, (int, float))]
    figures: Figures = {
        key: rounded(statistics.median(run[key] for run in found)) for key in numbers
    }
    figures["rounds"] = [round(run["samples_per_second"], 2) for run in found]
    figures["versions"] = found[0]["versions"]
    repeats = [speed for run in found for speed in run.get("repeats", ())]
    if len(repeats) > len(found):
        low, _, high = statistics.quantiles(repeats, n=4, method="inclusive")
        figures["repeats"] = [round(speed, 2) for speed in repeats]
        figures["quartiles"] = [round(low, 2), round(high, 2)]
    return figures


def rounded(value: float) -> float:
    """To five digits: an update may take milliseconds."""
    return value if isinstance(value, int) else float(f"{value:.5g}")


def figures_of(
    command: list[Any], environment: dict[str, str], seconds: float = SIDE_SECONDS
) -> Figures:
    """Runs a side's program and reads its last line.

    Raises:
      SideError: it failed, took longer, or its last line is no JSON object.
    """
    done, _ = run(command, environment, seconds)
    if done.returncode < 0:
        raise SideError(f"{done.stderr}\nSideError: ended by signal {-done.returncode}")
    if done.returncode:
        raise SideError(done.stderr)
    last = (done.stdout.splitlines() or [""])[-1]
    try:
        figures = json.loads(last)
    except ValueError:
        figures = None
    if not isinstance(figures, dict):
        wrong = f"expected a JSON object on the last line, got {last!r}"
        raise SideError(f"{done.stderr}\nSideError: {wrong}")
    return figures


def _environment(own: dict[str, str]) -> dict[str, str]:
    return os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), **own}


def run(
    command: list[Any], environment: dict[str, str], seconds: float = math.inf
) -> tuple[subprocess.CompletedProcess[str], float]:
    """Runs a command with flaxbert importable; returns it and its peak memory in MiB.

    Raises:
      SideError: it took longer, and was killed.
    """
    command = [str(part) for part in command]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, env=_environment(environment))
        deadline, late = time.monotonic() + seconds, False
        # Not Popen's wait, which does not tell the memory.
        while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
            if not late and time.monotonic() > deadline:
                late = True
                os.kill(process.pid, signal.SIGKILL)
            time.sleep(0.05)
        _, status, usage = ended
        process.returncode = os.waitstatus_to_exitcode(status)
        for stream in (out, err):
            stream.seek(0)
        done = subprocess.CompletedProcess(command, process.returncode, out.read(), err.read())
    if late:
        raise SideError(f"{done.stderr}\nSideError: no end after {seconds:g} seconds")
    return done, usage.ru_maxrss / 1024


class Standing:
    """A side that was started once and answers each turn: for what takes long to be compiled.

    Its program prints "ready", and for each line of its standard input the figures of all its turns
    so far, a JSON object a line.
    """

    def __init__(self, command: list[Any], environment: dict[str, str]) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - gone with the side
        self._process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=_environment(environment),
        )
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()  # None at the end
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def wait_until_ready(self, seconds: float) -> None:
        """Raises SideError if it ended, or is not ready in time."""
        while self._line(seconds) != "ready":
            pass

    def turn(self, seconds: float = SIDE_SECONDS) -> Figures:
        """Raises SideError if there are no figures."""
        assert self._process.stdin
        try:
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        except OSError as error:
            raise self._failure(f"SideError: it has ended: {error}") from error
        deadline = time.monotonic() + seconds
        while True:
            line = self._line(deadline - time.monotonic())
            with contextlib.suppress(ValueError):  # a word of a library
                if isinstance(figures := json.loads(line), dict):
                    return figures

    def stop(self) -> None:
        self._end()
        self._errors.close()

    def _end(self) -> None:
        """Ends the program; what it had to say stays readable."""
        self._process.kill()
        self._process.wait()
        self._listener.join(10)  # a child of its own may hold the pipe
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                with contextlib.suppress(OSError):  # a line that nobody took
                    pipe.close()

    def _listen(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def _line(self, seconds: float) -> str:
        try:
            line = self._lines.get(timeout=max(0.0, seconds))
        except queue.Empty:
            raise self._failure(f"SideError: no answer after {seconds:.0f} seconds") from None
        if line is None:
            self._end()
            raise self._failure(f"SideError: it ended with exit code {self._process.returncode}")
        return line

    def _failure(self, message: str) -> SideError:
        self._end()
        self._errors.seek(0)
        error = SideError(f"{self._errors.read()}\n{message}")
        self._errors.close()
        return error


def write_workload(
    output: Path, what: str, machine: dict[str, Any], name: str, measured: dict[str, Any]
) -> None:
    """Puts one workload into the machine's file, beside those measured before."""
    record = json.loads(output.read_text()) if output.exists() else {"workloads": {}}
    workloads = record["workloads"] | {name: measured}
    output.parent.mkdir(exist_ok=True)
    record = {"what": what, "machine": machine, "workloads": workloads}
    output.write_text(json.dumps(record, indent=1) + "\n")
