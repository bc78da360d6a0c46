"""Freed memory goes back to the system."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import types

import pytest

from flaxbert.shell.free_memory import give_back_memory


@pytest.mark.skipif(
    "CS_GNU_LIBC_VERSION" not in getattr(os, "confstr_names", {}),
    reason="another C library keeps memory, or not, in its own way",
)
def test_freed_memory_goes_back_to_the_system():
    """In a process of its own: which memory is freed last decides what glibc gives back alone."""
    code = """
import ctypes, resource
from flaxbert.shell.free_memory import give_back_memory

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
