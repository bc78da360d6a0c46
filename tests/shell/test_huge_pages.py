"""When a command starts anew for huge pages, and that it stays the same; freed memory goes back."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest

from flaxbert.shell.huge_pages import (
    SETTING,
    VARIABLE,
    _kernel,
    _libc,
    give_back_memory,
    is_command,
    tunables_for,
)
from tests.commands import ROOT, start, train_flags

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
def test_when_huge_pages_make_a_difference(environment, libc, kernel, tunables):
    assert tunables_for(environment, libc, kernel) == tunables


@pytest.mark.parametrize(
    ("started", "argv", "answer"),
    [
        (["python", "-m", "flaxbert.x", "--a"], ["x.py", "--a"], True),
        (["python", "-u", "-W", "error", "-X", "dev", "-m", "flaxbert.x"], ["x.py"], True),
        (["python", "-m", "pdb", "-m", "flaxbert.x"], ["x.py"], False),
        (["python", "/bin/coverage", "run", "-m", "flaxbert.x"], ["x.py"], False),
        (["python", "host.py", "-m", "flaxbert.x"], ["x.py"], False),
        (["python", "host.py"], ["x.py"], False),  # runpy, a notebook's %run
        (["python", "-c", "...", "-m", "flaxbert.x"], ["x.py"], False),
        (["python", "-m", "flaxbert.y"], ["x.py"], False),
        (["python", "-m", "flaxbert.x", "--a"], ["x.py"], False),
        ([], ["x.py"], False),
    ],
)
def test_only_a_command_starts_anew(started, argv, answer):
    assert is_command(started, "flaxbert.x", argv) is answer


# A module that does what a command's first lines do, on a kernel and a C library that make a
# difference, and shows which Python runs it.
COMMAND = """
import os, sys
from flaxbert.shell import huge_pages, signals
huge_pages._kernel = lambda: "always [madvise] never"
huge_pages._libc = lambda: "glibc 2.36"
os.write(1, f"{os.getpid()} {os.environ.get(huge_pages.VARIABLE, '-')} {sys.argv[1:]}\\n".encode())
huge_pages.restart_with_huge_pages("command")
signals.install()
os.write(1, b"goes on\\n")
"""


def _run(folder: Path, *arguments: str) -> list[str]:
    folder.joinpath("command.py").write_text(COMMAND)
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    done = subprocess.run(
        [sys.executable, *arguments],
        env=environment | {"PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing starts anew")


@linux
def test_it_is_the_same_process_with_the_same_arguments(tmp_path):
    first, second, last = _run(tmp_path, "-W", "error", "-m", "command", "--a b", "")
    pid, told, arguments = first.split(" ", 2)
    assert told == "-" and arguments == "['--a b', '']"
    assert second == f"{pid} {SETTING}=1 {arguments}"
    assert last == "goes on"


@linux
def test_it_starts_anew_once_even_if_the_variable_is_lost(tmp_path):
    """A process with capabilities loses it, and so does one behind a wrapper that cleans up."""
    folder = tmp_path / "bin"
    folder.mkdir()
    wrapper = folder / "python3"
    wrapper.write_text(f'#!/bin/sh\nexec env -u {VARIABLE} {sys.executable} "$@"\n')
    wrapper.chmod(0o755)
    module = tmp_path / "wrapped.py"
    module.write_text(f"import sys; sys.executable = {str(wrapper)!r}\n{COMMAND}")
    text = module.read_text().replace('"command"', '"wrapped"')
    module.write_text(text)
    first, second, last = _run(tmp_path, "-m", "wrapped")
    assert first == second and " - " in first and last == "goes on"


@linux
def test_a_program_that_runs_a_command_is_left_alone(tmp_path):
    host = "import runpy; print('begins', flush=True); runpy.run_module('command', {}, '__main__')"
    begins, first, last = _run(tmp_path, "-c", host)
    assert begins == "begins" and " - " in first and last == "goes on"


@linux
def test_a_signal_while_python_starts_anew_is_answered(tmp_path):
    """It is held back until handlers stand: then there is nothing to save, exit 75."""
    text = COMMAND.replace("signals.install()", "import time; time.sleep(3); signals.install()")
    text = text.replace('"command"', '"slow"') + "import time; time.sleep(60)"
    (tmp_path / "slow.py").write_text(text)
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    process = subprocess.Popen(
        [sys.executable, "-m", "slow"],
        env=environment | {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()
        assert SETTING in process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 75 and "nothing to save" in err


@pytest.mark.skipif(
    tunables_for({}, _libc(), _kernel()) is None, reason="here huge pages need no asking"
)
@pytest.mark.parametrize("told", ["", f"{SETTING}=0"])
def test_a_training_has_them_unless_told_otherwise(told, tiny_bert, reviews, tmp_path):
    flags = train_flags(tiny_bert, reviews["train"], tmp_path / "work", train__steps=50)
    process = start("train", *flags, env={VARIABLE: told})
    try:
        assert process.stderr is not None
        first = process.stderr.readline()
        environment = Path(f"/proc/{process.pid}/environ").read_bytes().decode().split("\0")
        assert f"{VARIABLE}={told or f'{SETTING}=1'}" in environment, first
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=100)
    finally:
        process.kill()
    assert process.returncode == 75, first + err


@pytest.mark.skipif(not _libc(), reason="another C library keeps memory, or not, in its own way")
def test_freed_memory_goes_back_to_the_system():
    """In a process of its own: which memory is freed last decides what glibc gives back alone."""
    code = """
import ctypes, resource
from flaxbert.shell.huge_pages import give_back_memory

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20

blocks = [libc.malloc(64 * 1024) for _ in range(4000)]
for block in blocks:
    ctypes.memset(block, 1, 64 * 1024)
full = resident()
for block in blocks[:-1]:  # the last one holds the heap's end where it is
    libc.free(block)
kept = resident()
give_back_memory()
print(full - kept, kept - resident())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    alone, given_back = map(float, done.stdout.split())
    assert alone < 50 and given_back > 200


def test_another_library_has_nothing_to_give_back(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: types.SimpleNamespace())
    give_back_memory()
