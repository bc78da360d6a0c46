"""Starts a command whose file-system calls below one folder are numbered, logged and disturbed.

inject.c is built with cc and loaded by LD_PRELOAD. It names calls by what they do, whichever
variant was called: create, open (of a file that is there, for writing), write, sync, truncate,
close (of what was open for writing), rename, link, unlink, mkdir, rmdir, attribute, lock; and, only
for a fault that names them, look (open for reading) and read. Note: it cannot see raw system calls
or the inside of libc, so tests/slow/test_faults.py compares its log with strace.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from tests.commands import Done, start

SOURCE = Path(__file__).with_name("inject.c")
ACTIONS = ("kill", "term", "short", "sleep", "ask")

# What a full disk refuses. Removing, and opening what is there, still works on one.
NEED_SPACE = ("create", "write", "mkdir", "link", "truncate", "sync")
# What a read-only disk refuses; a descriptor that was open before fails to write as well.
NEED_WRITING = (*NEED_SPACE, "open", "rename", "unlink", "rmdir", "attribute")


@dataclasses.dataclass(frozen=True)
class Fault:
    """What happens at which call.

    Attributes:
      do: "kill" and "term" (signals to the process itself, before the call), "short" (half of a
        write), "sleep" (`seconds`, before the call), "ask" (the harness is asked, see `run`),
        or the name of an errno: the call fails with it.
      at: the first call that it happens at, counted from 1 among those that match.
      times: number of matching calls that it happens at; 0 = all from `at` on.
      calls: which kinds match; () = all that change something.
      path: pattern of the path below the folder ("*" matches "/" too); "" = any.
      after: counting begins with the first call on a path like this; "" = from the start.
    """

    do: str
    at: int = 1
    times: int = 1
    calls: tuple[str, ...] = ()
    path: str = ""
    after: str = ""
    seconds: float = 0.0

    def rule(self) -> str:
        action, value = self.do, round(self.seconds * 1000)
        if action not in ACTIONS:
            action, value = "error", getattr(errno, self.do)
        fields = {
            "calls": f",{','.join(self.calls)}," if self.calls else "",
            "path": self.path,
            "after": self.after,
            "at": self.at,
            "times": self.times,
            "do": action,
            "value": value,
        }
        return ";".join(f"{name}={value}" for name, value in fields.items())


@dataclasses.dataclass(frozen=True)
class Call:
    """One line of the log; `fired` is the action taken, "" = none."""

    number: int
    name: str
    path: str
    other: str  # the second name of a rename or link
    fired: str


def missing_tool(*tools: str) -> str:
    """Returns what to install, or "" if every tool is there."""
    packages = {"cc": "gcc (or another C compiler named cc)", "strace": "strace"}
    absent = [packages[tool] for tool in tools if shutil.which(tool) is None]
    return f"install {' and '.join(absent)}; these tests need it" if absent else ""


def build(folder: Path) -> Path:
    """Compiles inject.c into `folder` and returns the library.

    Raises:
      RuntimeError: there is no compiler, or it refuses the file.
    """
    if problem := missing_tool("cc"):
        raise RuntimeError(problem)
    library = folder / "inject.so"
    flags = ("-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread")
    done = subprocess.run(
        ["cc", *flags, "-o", str(library), str(SOURCE), "-ldl"], capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"cc: {done.stderr}")
    return library


def environment(
    library: Path, root: Path, log: Path, faults: tuple[Fault, ...] = ()
) -> dict[str, str]:
    """Returns what a process must find in its environment."""
    return {
        "LD_PRELOAD": str(library),
        "FAULT_ROOT": str(root.resolve()),
        "FAULT_LOG": str(log),
        "FAULT_RULES": "\n".join(fault.rule() for fault in faults),
    }


def run(
    command: str,
    flags: list[str],
    *,
    library: Path,
    root: Path,
    log: Path,
    faults: tuple[Fault, ...] = (),
    ask: Callable[[int], bool] | None = None,
    timeout: float = 300.0,
    file_size: int | None = None,
) -> Done:
    """Runs the real command under faults and waits for its end.

    With `ask`, a fault "ask" stops the process, which then holds still below `root`: no thread of
    it changes anything there. `ask(number of the call)` looks at the folder and returns True to go
    on, False to kill it with SIGKILL at that call. `file_size` is the kernel's limit, in bytes.

    Raises:
      subprocess.TimeoutExpired: it did not end; it is killed.
    """
    log.unlink(missing_ok=True)
    values = environment(library, root, log, faults)
    with contextlib.ExitStack() as stack:
        server, handed = None, ()
        if ask is not None:
            questions, asked = os.pipe()
            answered, answers = os.pipe()
            stack.callback(os.close, questions)
            stack.callback(os.close, answers)
            values["FAULT_PIPES"] = f"{asked},{answered}"
            handed = (asked, answered)
            server = threading.Thread(target=_answer, args=(questions, answers, ask))
        process = start(command, *flags, env=values, pass_fds=handed)
        if file_size is not None:
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (file_size, file_size))
        if server is not None:
            os.close(asked)
            os.close(answered)
            server.start()
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            process.communicate()
            raise
        finally:
            if server is not None:
                server.join()
    return Done(process.returncode, out, err)


def _answer(questions: int, answers: int, ask: Callable[[int], bool]) -> None:
    with open(questions, closefd=False) as lines:
        for line in lines:
            go_on = ask(int(line))
            with contextlib.suppress(BrokenPipeError):
                os.write(answers, b"g" if go_on else b"k")


def read_log(log: Path) -> list[Call]:
    """Returns the calls in their order."""
    if not log.is_file():
        return []
    calls = []
    for line in log.read_text(errors="surrogateescape").splitlines():
        number, name, path, other, fired = line.split("\t")
        calls.append(Call(int(number), name, path, other, fired))
    return calls


def fired(log: Path) -> list[Call]:
    """Returns the calls at which a fault happened."""
    return [call for call in read_log(log) if call.fired]


def supported() -> bool:
    """Whether faults can be injected here at all: LD_PRELOAD and /proc are Linux."""
    return sys.platform.startswith("linux")
