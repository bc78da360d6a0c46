"""Starts the processes of one run on this machine, for real, and tells how they ended.

Note: each writes to a file of its own. Nobody reads pipes while a test waits, and a
full pipe would stop a process in the middle of a line.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.compiling import QUICKLY

ROOT = Path(__file__).parent.parent.parent


@dataclasses.dataclass
class Several:
    """Processes of one run, by their number."""

    children: list[subprocess.Popen]
    logs: list[Path]

    def text(self, process: int) -> str:
        return self.logs[process].read_text(errors="replace")

    def said(self) -> str:
        return "\n".join(f"--- {i}\n{self.text(i)[-4000:]}" for i in range(len(self.logs)))

    def wait_for(self, words: str, process: int = 0, seconds: float = 300.0) -> None:
        """Waits until a process has printed the words."""
        until = time.monotonic() + seconds
        while words not in self.text(process):
            codes = [child.poll() for child in self.children]
            assert any(code is None for code in codes), (codes, self.said())
            assert time.monotonic() < until, (words, self.said())
            time.sleep(0.05)

    def signal(self, number: int, processes: Sequence[int]) -> None:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                self.children[process].send_signal(number)

    def codes(self, seconds: float = 300.0) -> list[int]:
        """Waits for all; returns their exit codes."""
        until = time.monotonic() + seconds
        for child in self.children:
            try:
                child.wait(max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired as error:
                raise AssertionError(f"still running after {seconds} s:\n{self.said()}") from error
        return [child.returncode for child in self.children]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(count: int, index: int, devices: int, port: int) -> dict[str, str]:
    """What tells process `index` of `count` who it is; one alone is told nothing."""
    values = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        # JAX keeps the programs of process 0 alone: the others compile at every start.
        "XLA_FLAGS": QUICKLY,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
    }
    if count > 1:
        values |= {
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
            "JAX_COORDINATOR_BIND_ADDRESS": f"127.0.0.1:{port}",
            "JAX_NUM_PROCESSES": str(count),
            "JAX_PROCESS_ID": str(index),
        }
    return values


@contextlib.contextmanager
def started(
    folder: Path,
    count: int,
    devices: int,
    command: Sequence[object],
    env: dict[str, str] | None = None,
    ports: Sequence[int] | None = None,
) -> Iterator[Several]:
    """Starts `python COMMAND` in so many processes of so many devices; kills what is left.

    `ports`: where each process is told that the coordinator is, if not all at one port.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    children, logs = [], []
    try:
        for index in range(count):
            log = folder / f"process-{index}.log"
            logs.append(log)
            values = environment(count, index, devices, ports[index] if ports else port)
            with log.open("wb") as file:
                children.append(
                    subprocess.Popen(
                        [sys.executable, *map(str, command)],
                        env={**values, **(env or {})},
                        stdin=subprocess.DEVNULL,
                        stdout=file,
                        stderr=subprocess.STDOUT,
                        cwd=folder,
                    )
                )
        yield Several(children, logs)
    finally:
        for child in children:
            if child.poll() is None:
                child.send_signal(signal.SIGKILL)
            child.wait()


def train(flags: Sequence[object]) -> list[object]:
    """The train command, for `started`."""
    return ["-m", "flaxbert.train", *flags]
