"""Huge pages for what a command computes in the host's memory: a fifth of an update on a CPU.

XLA maps the temporaries of a program anew each time it runs, and Linux fills each 4 KiB of them on
its own: 95,000 page faults an update of the quickstart. With huge pages they are a few hundred, and
no more memory is used (benchmarks/NOTES.md). glibc asks for them only if it is told so before the
process starts. The surprising thing: so the command starts Python once more, in the same process,
before anything else; it takes some 40 ms.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping

VARIABLE, SETTING = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"
_SINCE = [2, 35]  # glibc
_KERNEL = "/sys/kernel/mm/transparent_hugepage/enabled"


def restart_with() -> None:
    """Starts this command anew with huge pages, where that makes a difference.

    To be called first: nothing may have begun. GLIBC_TUNABLES=glibc.malloc.hugetlb=0 says no.
    """
    tunables = tunables_for(os.environ, _libc(), _kernel())
    if tunables is None or not sys.executable:
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
