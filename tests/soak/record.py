"""The result file of a soak: written as results come, so a soak that is cut off loses little.

The same command with the same --output goes on where it stopped; another command, or one with other
versions, refuses the file. A soak that found anything wrong ends with exit code 1. Note: processes
that are killed leave temporary files, so theirs are in the soak's own folder.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import flaxbert

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


class Record:
    """The cases of a soak that are done, by name, in a JSON file."""

    def __init__(self, output: Path, what: str, command: str) -> None:
        """Goes on with `output` if it holds an unfinished record of the same command.

        Raises:
          SystemExit: it holds one of another command, or made with other versions.
        """
        self._output = output
        self._lock = threading.Lock()
        self._begun = time.monotonic()
        self._values: dict[str, Any] = {"what": what, "command": command, "complete": False}
        self._before = 0.0
        self.cases: dict[str, dict[str, Any]] = {}
        if output.is_file():
            old = json.loads(output.read_text())
            if not old.get("complete", True):
                if old["command"] != command:
                    raise SystemExit(f"{output} is unfinished and of another command: delete it")
                if old["versions"] != versions():
                    raise SystemExit(f"{output} is unfinished and of other versions: delete it")
                self._before, self.cases = old["seconds"], old["cases"]

    def __contains__(self, case: str) -> bool:
        return case in self.cases

    def add(self, case: str, outcome: dict[str, Any]) -> None:
        with self._lock:
            self.cases[case] = outcome
            self._write()

    def run(
        self, cases: Iterable[str], run: Callable[[str], dict[str, Any]], *, jobs: int = 1
    ) -> None:
        """Runs the cases that are not done yet, `jobs` at a time, and records each."""
        todo = [case for case in cases if case not in self.cases]
        with ThreadPoolExecutor(jobs) as pool:
            try:
                for case, outcome in zip(todo, pool.map(run, todo), strict=True):
                    self.add(case, outcome)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)  # or it would run all that is left
                end_children()
                raise

    def finish(self, *, right: bool, **summary: Any) -> None:
        """Writes the summary; the record is complete. Exits 1 unless all was right."""
        self._values |= {"complete": True, "right": right} | summary
        with self._lock:
            self._write()
        print(json.dumps({"right": right} | summary, indent=1), flush=True)
        if not right:
            raise SystemExit(1)

    def _write(self) -> None:
        values = {
            **self._values,
            "seconds": round(self._before + time.monotonic() - self._begun),
            "python": platform.python_version(),
            "versions": versions(),
            "machine": machine(),
            "cases": self.cases,
        }
        self._output.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._output.with_name(self._output.name + ".tmp")
        temporary.write_text(json.dumps(values, indent=1) + "\n")
        temporary.replace(self._output)


def command_line(module: str, arguments: argparse.Namespace) -> str:
    """Returns the command that makes this record, without where it is written and how fast."""
    fields = {name: v for name, v in vars(arguments).items() if name not in ("output", "jobs")}
    return " ".join(
        [
            f"python -m tests.soak.{module}",
            *(f"--{name.replace('_', '-')}={v}" for name, v in fields.items()),
        ]
    )


def versions(names: Iterable[str] = PACKAGES) -> dict[str, str]:
    return {"flaxbert": flaxbert.__version__} | {name: version(name) for name in names}


def machine() -> str:
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs"


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder for the soak and the temporary files of all that it starts.

    It goes away, and with it all processes that were started, also after SIGTERM and Ctrl-C.
    """

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    outside = os.environ.get("TMPDIR")
    try:
        with tempfile.TemporaryDirectory(prefix="flaxbert-soak-") as folder:
            inside = Path(folder, "tmp")
            inside.mkdir()
            os.environ["TMPDIR"] = tempfile.tempdir = str(inside)
            try:
                yield Path(folder)
            finally:
                end_children()
    finally:
        tempfile.tempdir = None
        os.environ.pop("TMPDIR")
        if outside is not None:
            os.environ["TMPDIR"] = outside
        signal.signal(signal.SIGTERM, before)


def end_children() -> None:
    """Kills every process that this one has started, and theirs; returns when they have ended."""
    ended = list(_below(os.getpid()))
    for pid in ended:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    while any(runs(pid) for pid in ended):
        time.sleep(0.01)


def _below(pid: int) -> Iterator[int]:
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, path.read_text().split()):
                yield child
                yield from _below(child)


def runs(pid: int) -> bool:
    """Whether there is such a process, and it has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@contextlib.contextmanager
def workplace() -> Iterator[Path]:
    """`scratch`; what is compiled is kept in it for all processes of the soak."""
    with scratch() as folder:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder / "compiled"))
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        yield folder
