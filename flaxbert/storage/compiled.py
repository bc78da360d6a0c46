"""Compiled programs, kept from one start to the next in the user's cache.

This is JAX's own persistent cache, in a folder that only its user may write to, since programs are
machine code. Note: so it is not in the workdir, which may come from somebody else and from which
nothing is run. JAX_COMPILATION_CACHE_DIR names another folder, as everywhere in JAX.
"""

from __future__ import annotations

import collections
import contextlib
import os
import stat
import sys
import warnings
from pathlib import Path
from typing import Any

import jax

from flaxbert.shell.console import say
from flaxbert.storage.embedded import cache_directory

# How JAX's warnings begin; the name of the exception follows.
_READING = "Error reading persistent compilation cache entry"
_WRITING = "Error writing persistent compilation cache entry"
_OF_THE_DISK = ("OSError", "PermissionError", "FileNotFoundError", "TimeoutError")

_MOST_BYTES = 4 * 2**30

# Events that JAX reports to its listeners.
_EVENTS = {
    "/jax/compilation_cache/cache_hits": "kept",
    "/jax/compilation_cache/cache_misses": "compiled",
}

_counts: collections.Counter[str] = collections.Counter()


def keep(*, several: bool = False) -> None:
    """Makes this process read programs from the cache and write new ones there; for commands only.

    With `several` processes JAX writes only those of the first. On GPUs processes autotune kernels
    together, and would wait for one that found its program in the cache: there the cache is used
    only if JAX_COMPILATION_CACHE_DIR names it for all of them.

    If the cache cannot be used, a line says so and programs are compiled.
    """
    # Small programs too: a start compiles dozens.
    for name, value in (
        ("jax_persistent_cache_min_compile_time_secs", 0.0),
        ("jax_persistent_cache_min_entry_size_bytes", -1),
    ):
        if name.upper() not in os.environ:
            jax.config.update(name, value)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        if several and jax.default_backend() == "gpu":
            return
        folder, reason = place()
        if folder is None:
            say(f"flaxbert: compiled programs are not kept: {reason}")
            return
        jax.config.update("jax_compilation_cache_dir", str(folder))
        _shrink(folder)
        _tell_in_words(folder)
    if not _counts:
        _counts.update(kept=0, compiled=0)
        jax.monitoring.register_event_listener(_count)


def told() -> str:
    """Returns how many programs were compiled and how many found; "" without a cache."""
    if not _counts:
        return ""
    return f"{_counts['compiled']} programs compiled, {_counts['kept']} kept from before"


def _count(event: str, **_: Any) -> None:
    if event in _EVENTS:
        _counts[_EVENTS[event]] += 1


def place() -> tuple[Path | None, str]:
    """Makes the folder and returns it; None, and why, if other users can put programs into it."""
    try:
        folder = cache_directory() / "compiled"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        open_to_others = None if sys.platform == "win32" else _open_to_others(folder.resolve())
    except (OSError, RuntimeError) as error:  # RuntimeError: a user without a home
        return None, str(error)
    if open_to_others is not None:
        return None, (
            f"others may write to {open_to_others}. Change that, or name another place with "
            "JAX_COMPILATION_CACHE_DIR."
        )
    return folder, ""


def _open_to_others(folder: Path) -> Path | None:
    """Returns the folder, or the one above it, that other users may write to; None if none."""
    if folder.stat().st_uid != os.geteuid():
        return folder
    for place in (folder, *folder.parents):
        status = place.stat()
        # On most Linux systems a group with its user's number has that user alone. In a sticky
        # folder nobody can replace another user's files.
        shared = status.st_mode & stat.S_IWGRP and status.st_gid not in (0, status.st_uid)
        sticky = place != folder and status.st_mode & stat.S_ISVTX
        if (shared or status.st_mode & stat.S_IWOTH) and not sticky:
            return place
    return None


def _shrink(folder: Path) -> None:
    """Deletes the oldest programs if the cache is too large."""
    with contextlib.suppress(OSError):  # another process may do the same
        entries = [(entry.stat(), entry) for entry in folder.glob("*-cache")]
        size = sum(status.st_size for status, _ in entries)
        for status, entry in sorted(entries, key=lambda pair: pair[0].st_mtime):
            if size <= _MOST_BYTES:
                break
            entry.unlink()
            size -= status.st_size


def _tell_in_words(folder: Path) -> None:
    """Replaces JAX's warnings about the cache by one line, and disables or clears the cache.

    JAX writes entries in place: one cut short by a kill would fail at every start.
    """
    show, told = warnings.showwarning, []

    def shown(message: Any, *rest: Any, **named: Any) -> None:
        text = str(message)
        if not text.startswith((_READING, _WRITING)):
            show(message, *rest, **named)
        elif told:
            return
        elif text.startswith(_WRITING) or any(f": {name}: " in text for name in _OF_THE_DISK):
            told.append(text)
            say(f"flaxbert: compiled programs are not kept in {folder}: {text.split(': ', 2)[-1]}")
            jax.config.update("jax_enable_compilation_cache", False)
        else:
            told.append(text)
            say(f"flaxbert: a compiled program in {folder} is damaged: all of them are made anew")
            for entry in folder.glob("*-cache"):
                with contextlib.suppress(OSError):
                    entry.unlink()

    warnings.showwarning = shown
