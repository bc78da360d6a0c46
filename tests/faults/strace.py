"""What strace sees of the calls that inject.c logs: the kernel's word against the library's.

The library cannot see raw system calls, nor what libc does inside itself. strace can, but counts
them per thread and knows no folders, so it checks the library instead of taking its place.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

from tests.commands import ROOT
from tests.faults import inject

_KINDS = {
    "write": ("write", "pwrite64", "writev", "pwritev", "pwritev2", "sendfile", "copy_file_range"),
    "sync": ("fsync", "fdatasync", "syncfs", "sync_file_range"),
    "truncate": ("ftruncate", "truncate", "fallocate"),
    "rename": ("rename", "renameat", "renameat2"),
    "link": ("link", "linkat", "symlink", "symlinkat"),
    "unlink": ("unlink", "unlinkat"),
    "rmdir": ("rmdir",),
    "mkdir": ("mkdir", "mkdirat"),
    "attribute": ("chmod", "fchmod", "fchmodat", "utimensat", "setxattr", "fsetxattr"),
    "lock": ("flock",),
    "open": ("open", "openat", "openat2", "creat"),
}
_KIND = {name: kind for kind, names in _KINDS.items() for name in names}


def run(flags: list[str], *, library: Path, root: Path, log: Path, trace: Path) -> int:
    """Runs the real command under both; returns its exit code."""
    values = inject.environment(library, root, log)
    preload = f"LD_PRELOAD={values.pop('LD_PRELOAD')}"  # for the command, not for strace itself
    options = ["-f", "-y", "-qq", "-o", str(trace), "-e", f"trace={','.join(_KIND)}"]
    done = subprocess.run(
        ["strace", *options, "-E", preload, sys.executable, "-m", "flaxbert.train", *flags],
        env={**os.environ, "PYTHONPATH": str(ROOT), **values},
        capture_output=True,
        timeout=600,
    )
    return done.returncode


def seen(trace: Path, root: Path) -> Counter[tuple[str, str]]:
    """Returns how often strace saw each (kind, path below root)."""
    counts: Counter[tuple[str, str]] = Counter()
    for line in trace.read_text(errors="surrogateescape").splitlines():
        # "<... fsync resumed>" is the second half of a call whose first line said everything.
        call = re.match(r"\d+\s+(\w+)\((.*)", line)
        if not call:
            continue
        name, rest = call[1], call[2]
        kind = _KIND[name]
        if kind == "open" and not re.search(r"O_(CREAT|TRUNC|WRONLY|RDWR)", rest):
            continue
        if kind == "unlink" and "AT_REMOVEDIR" in rest:
            kind = "rmdir"
        path = _path(rest, by_name=kind not in ("write", "sync", "lock"))
        if path == str(root) or path.startswith(f"{root}/"):
            counts[kind, os.path.relpath(path, root)] += 1
    return counts


def logged(log: Path) -> Counter[tuple[str, str]]:
    """Returns the same of the library's log. strace cannot tell whether a file was there before
    an open, nor whether what is closed was open for writing: the first is one kind, the second
    left out."""
    kinds = {"create": "open"}
    calls = inject.read_log(log)
    return Counter((kinds.get(c.name, c.name), c.path) for c in calls if c.name != "close")


def _path(arguments: str, *, by_name: bool) -> str:
    """The path of "3</a/b>, ...", of "3</a>, "b", ..." or of ""/a/b", ..."; what follows a
    descriptor is a name only in calls `by_name`."""
    found = re.match(
        r'(?:(?:AT_FDCWD|\d+)(?:<([^>]*)>)?)?(?:, )?(?:"((?:[^"\\]|\\.)*)")?', arguments
    )
    assert found
    folder, name = found[1] or "", found[2] or ""
    return os.path.join(folder, name) if by_name and name else folder
