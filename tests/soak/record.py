"""The result file of a soak: written as results come, so a soak that is cut off loses little.

The same command with the same --output goes on where it stopped; another command refuses the file.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


class Record:
    """The cases of a soak that are done, by name, in a JSON file."""

    def __init__(self, output: Path, what: str, command: str) -> None:
        """Goes on with `output` if it holds an unfinished record of the same command.

        Raises:
          SystemExit: it holds one of another command.
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
            for case, outcome in zip(todo, pool.map(run, todo), strict=True):
                self.add(case, outcome)

    def finish(self, **summary: Any) -> None:
        """Writes the summary; the record is complete."""
        self._values |= {"complete": True} | summary
        with self._lock:
            self._write()

    def _write(self) -> None:
        values = {
            **self._values,
            "seconds": round(self._before + time.monotonic() - self._begun),
            "python": platform.python_version(),
            "versions": {name: version(name) for name in PACKAGES},
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
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


@contextlib.contextmanager
def workplace() -> Iterator[Path]:
    """A temporary folder; what is compiled is kept in it for all processes of the soak."""
    with tempfile.TemporaryDirectory(prefix="flaxbert-soak-") as temporary:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(temporary) / "compiled"))
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        yield Path(temporary)
