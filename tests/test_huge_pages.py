"""A command starts anew to get huge pages: when, and that it stays the same command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flaxbert.huge_pages import SETTING, VARIABLE, tunables_for
from tests.commands import start, train_flags

ASKED = "always [madvise] never\n"
NEW = "glibc 2.36"


@pytest.mark.parametrize(
    ("environment", "libc", "kernel", "tunables"),
    [
        ({}, NEW, ASKED, f"{SETTING}=1"),
        ({}, "glibc 2.35.9000", ASKED, f"{SETTING}=1"),
        ({VARIABLE: "glibc.malloc.check=3"}, NEW, ASKED, f"glibc.malloc.check=3:{SETTING}=1"),
        ({VARIABLE: f"{SETTING}=1"}, NEW, ASKED, None),  # started anew, or asked for
        ({VARIABLE: f"{SETTING}=0"}, NEW, ASKED, None),  # refused
        ({}, "glibc 2.34", ASKED, None),
        ({}, "", ASKED, None),  # musl, macOS
        ({}, NEW, "[always] madvise never\n", None),
        ({}, NEW, "always madvise [never]\n", None),
        ({}, NEW, "", None),
    ],
)
def test_when_a_command_starts_anew(environment, libc, kernel, tunables):
    assert tunables_for(environment, libc, kernel) == tunables


# Runs a command as `python -m` does, on a kernel and a C library that make a difference, and shows
# which Python runs it.
SHOW = """
import os, sys
from flaxbert import huge_pages
huge_pages._kernel = lambda: "always [madvise] never"
huge_pages._libc = lambda: "glibc 2.36"
print(os.getpid(), os.environ.get(huge_pages.VARIABLE, "-"), sys.argv, flush=True)
huge_pages.restart_with()
print("goes on")
"""


def test_it_is_the_same_process_with_the_same_arguments():
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SHOW, "--a b", ""],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    first, second, last = done.stdout.splitlines()
    assert last == "goes on"
    pid, told, arguments = first.split(" ", 2)
    assert told == "-" and arguments == "['-c', '--a b', '']"
    assert second == f"{pid} {SETTING}=1 {arguments}"


@pytest.mark.skipif(not Path("/proc/self/environ").is_file(), reason="reads /proc, so Linux only")
@pytest.mark.parametrize("said", ["", "0"])
def test_a_training_has_them_unless_told_otherwise(said, tiny_bert, reviews, tmp_path):
    from flaxbert import huge_pages

    wanted = tunables_for({}, huge_pages._libc(), huge_pages._kernel()) or ""
    flags = train_flags(tiny_bert, reviews["train"], tmp_path / "work", train__steps=50)
    told = f"{SETTING}={said}" if said else ""
    process = start("train", *flags, env={VARIABLE: told})
    try:
        assert process.stderr is not None
        first = process.stderr.readline()
        environment = Path(f"/proc/{process.pid}/environ").read_bytes().decode().split("\0")
        assert f"{VARIABLE}={told or wanted}" in environment, first
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=100)
    finally:
        process.kill()
    assert process.returncode == 75, first + err
