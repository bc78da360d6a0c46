"""What the C library does with a command's memory: huge pages, and giving back what was freed.

XLA maps the temporaries of a program anew each time it runs, and Linux fills each 4 KiB of them on
its own, 95,000 times an update of the quickstart; in huge pages it is 500 times fewer, which saves
a sixth of the time at no memory (benchmarks/NOTES.md). glibc asks for them only if it is told so
before the process starts. The surprising thing: so a command starts Python once more, in the same
process, before anything else; it takes some 40 ms.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import sys
from collections.abc import Mapping, Sequence

VARIABLE, SETTING = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"
_SINCE = [2, 35]  # glibc
_KERNEL = "/sys/kernel/mm/transparent_hugepage/enabled"


def restart_with_huge_pages(module: str) -> None:
    """Starts `python -m MODULE ...` anew with huge pages, where that makes a difference.

    To be called first: nothing may have begun. Not for programs that only run the module: a
    notebook or a debugger would start anew with it. GLIBC_TUNABLES=glibc.malloc.hugetlb=0 says no.
    """
    tunables = tunables_for(os.environ, _libc(), _kernel())
    if tunables is None or not sys.executable or not is_command(sys.orig_argv, module, sys.argv):
        return
    # Held back until signals.install(), so that one that comes meanwhile is answered there.
    # That they are held back already says that this is the second start, whatever has become of
    # the variable: a process with capabilities loses it.
    held = {signal.SIGTERM, signal.SIGINT}
    if held & signal.pthread_sigmask(signal.SIG_BLOCK, held):
        return
    with contextlib.suppress(OSError):  # then it goes on as it is, only slower
        os.execve(sys.executable, sys.orig_argv, os.environ | {VARIABLE: tunables})


def tunables_for(environment: Mapping[str, str], libc: str, kernel: str) -> str | None:
    """Returns what glibc must be told; None if it has been, does not listen, or need not be told.

    `libc` is like "glibc 2.36", `kernel` like "always [madvise] never": whoever says so gets huge
    pages, and with "[always]" everybody does.
    """
    name, _, version = libc.partition(" ")
    numbers = [int(part) for part in version.split(".") if part.isdecimal()]
    if name != "glibc" or numbers < _SINCE:
        return None
    told = environment.get(VARIABLE, "")
    if "[madvise]" not in kernel or SETTING in told:
        return None
    return f"{told}:{SETTING}=1".removeprefix(":")


def is_command(started: Sequence[str], module: str, argv: Sequence[str]) -> bool:
    """Whether Python was started, as `sys.orig_argv` has it, to run the module and nothing else."""
    if "-m" not in started:
        return False
    at = started.index("-m")
    options = [
        option
        for before, option in itertools.pairwise(started[:at])
        if before not in ("-W", "-X")  # their values stand apart
    ]
    alone = all(option.startswith("-") and option != "-c" for option in options)
    return alone and list(started[at:]) == ["-m", module, *argv[1:]]


def give_back_memory() -> None:
    """Returns to the system what was freed.

    glibc keeps freed memory in the arenas of the threads that wrote it: hundreds of MiB that a
    compiler used, up to 1.5 times the state after a save. Elsewhere (macOS, musl) there is nothing
    to call.
    """
    import ctypes  # a start has no time for it

    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def _libc() -> str:
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (AttributeError, ValueError, OSError):  # not glibc, or not Linux at all
        return ""


def _kernel() -> str:
    try:
        with open(_KERNEL, encoding="ascii") as file:
            return file.read()
    except (OSError, ValueError):
        return ""
