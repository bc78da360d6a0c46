"""Starts one training run as N processes on this machine and answers with one exit code.

    python launch/local.py 2 --devices=1 --config=configs/text.py --workdir=runs/two ...
    python launch/local.py 2 --restarts=3 -- python -m flaxbert.train --config=...

Arguments that are not its own go to `python -m flaxbert.train`; after `--` stands any command.
--devices=K trains on K simulated CPU devices a process; without it each process has the GPU of its
number, unless JAX_LOCAL_DEVICE_IDS says otherwise. Process 0 writes as it would alone, lines of the
others begin with their number.

The exit code is 0 if all ended with 0, otherwise the most telling one, in this order: a user's
mistake or a defect that a new start cannot mend (2, 3, 4, 5, then 1 and unknown ones), 75
(interrupted and saved), 70 (stuck or a defect), death by a signal (128 + its number), 71 (a peer
was lost: a consequence). SIGTERM and Ctrl-C go on to every process, once.

Note: a child is started by a Python that asks the kernel to end it together with this process and
then becomes the command. So even SIGKILL leaves no process of the run behind, on Linux, without
running Python between fork and exec; what a command starts itself is its own affair.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from types import FrameType
from typing import BinaryIO

# PR_SET_PDEATHSIG is 1. The parent may have died before it: then nobody would send the signal.
_BECOME = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    os.kill(os.getpid(), signal.SIGKILL)
os.execvp(sys.argv[2], sys.argv[2:])
"""

_FINAL = (2, 3, 4, 5)


def _rank(code: int) -> int:
    """Returns how telling an exit code is, 0 the most."""
    if code == 0:
        return 6
    if code in _FINAL:
        return 0
    return {75: 2, 70: 3, 71: 5}.get(code, 4 if code > 128 else 1)


def most_telling(codes: Iterable[int]) -> int:
    """Returns the one exit code that says why a run of several processes ended."""
    return min(codes, key=lambda code: (_rank(code), code))


def may_restart(code: int) -> bool:
    """Returns whether the same command may do better: a peer lost, stuck, killed."""
    return code in (70, 71) or code > 128


def environment_for(index: int, count: int, port: int, devices: int | None) -> dict[str, str]:
    """Returns the environment of one process.

    The coordinator has no authentication: it listens on this machine only.
    """
    address = f"127.0.0.1:{port}"
    environment = {
        **os.environ,
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_COORDINATOR_BIND_ADDRESS": address,
        "JAX_NUM_PROCESSES": str(count),
        "JAX_PROCESS_ID": str(index),
    }
    if devices is not None:
        environment |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    elif count > 1:
        environment.setdefault("JAX_LOCAL_DEVICE_IDS", str(index))
    return environment


def _free_port() -> int:
    # Another program may take it before process 0 does; the run then ends and says so.
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def _pass_on(source: BinaryIO, target: BinaryIO, prefix: bytes) -> None:
    for line in source:
        with contextlib.suppress(OSError):  # our reader may be gone; the run goes on
            target.write(prefix + line.removesuffix(b"\n") + b"\n")  # one write: lines stay whole
            target.flush()


class _Run:
    """The processes of one start, and the signals that go to them."""

    def __init__(self, patience: float):
        self.patience = patience
        self.stopped_by: int | None = None
        self.processes: list[subprocess.Popen] = []
        self.readers: list[threading.Thread] = []

    def forward(self, number: int, frame: FrameType | None = None) -> None:
        """Sends a signal to every process; each is in a session of its own and gets it once."""
        self.stopped_by = number
        for process in self.processes:
            process.send_signal(number)

    def start(self, command: Sequence[str], devices: int | None, count: int) -> None:
        """Starts all processes with a new coordinator's address."""
        port = _free_port()
        self.processes, self.readers = [], []
        for index in range(count):
            output = None if index == 0 else subprocess.PIPE
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _BECOME, str(os.getpid()), *command],
                env=environment_for(index, count, port, devices),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # a terminal's Ctrl-C reaches it through us only
            )
            self.processes.append(process)
            if self.stopped_by is not None:  # the signal came before this process was there
                process.send_signal(self.stopped_by)
        for index, process in enumerate(self.processes):
            prefix = f"[{index}] ".encode()
            for pipe, own in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
                if pipe is not None:
                    arguments = (pipe, own.buffer, prefix)
                    self.readers.append(
                        threading.Thread(target=_pass_on, args=arguments, daemon=True)
                    )
                    self.readers[-1].start()

    def wait(self) -> int:
        """Waits for all of them. Once one has failed the others get `patience` seconds.

        Not after 75: the others then save the same update, and that takes what it takes.
        """
        failed_at = None
        while None in (codes := [process.poll() for process in self.processes]):
            time.sleep(0.02)
            if failed_at is None and any(code not in (None, 0, 75) for code in codes):
                failed_at = time.monotonic()
            if failed_at is not None and time.monotonic() - failed_at > self.patience:
                self.kill()
        for reader in self.readers:
            reader.join(timeout=5)  # what a process left running may hold its pipe
        codes = [process.wait() for process in self.processes]
        return most_telling(code if code >= 0 else 128 - code for code in codes)

    def kill(self) -> None:
        """Ends what still runs, with whatever it started in its session."""
        for process in self.processes:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    own, command = arguments[:cut], list(arguments[cut + 1 :])
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="local.py", description=__doc__, formatter_class=formatter, allow_abbrev=False
    )
    parser.add_argument("processes", type=int, metavar="N", help="how many processes")
    parser.add_argument("--devices", type=int, metavar="K", help="CPU devices of each process")
    parser.add_argument(
        "--restarts",
        type=int,
        default=0,
        metavar="R",
        help="start all again after 71, 70 or death by a signal, at most R times (default 0)",
    )
    parser.add_argument(
        "--patience",
        type=float,
        default=90,
        metavar="SECONDS",
        help="how long the others may go on once one has failed (default 90)",
    )
    options, rest = parser.parse_known_args(own)
    if command and rest:
        parser.error(f"{' '.join(rest)}: a command after -- takes its arguments there")
    if options.processes < 1 or (options.devices is not None and options.devices < 1):
        parser.error("N and --devices are at least 1")
    if options.restarts < 0 or options.patience < 0:
        parser.error("--restarts and --patience are at least 0")
    command = command or [sys.executable, "-m", "flaxbert.train", *rest]
    if shutil.which(command[0]) is None:
        parser.error(f"{command[0]}: no such program")
    return options, command


def main(arguments: Sequence[str]) -> int:
    """Runs the command in N processes, again as often as allowed, and returns the exit code."""
    options, command = _parse(arguments)
    run = _Run(options.patience)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, run.forward)
    try:
        for restarts in range(options.restarts + 1):
            run.start(command, options.devices, options.processes)
            code = run.wait()
            if run.stopped_by is not None or not may_restart(code) or restarts == options.restarts:
                return code
            print(
                f"local.py: ended with {code}; restart {restarts + 1} of {options.restarts}",
                file=sys.stderr,
                flush=True,
            )
            time.sleep(min(2**restarts, 30) * 0.1)
            if run.stopped_by is not None:  # meanwhile
                return code
    finally:
        run.kill()
    raise AssertionError("the loop returns")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
