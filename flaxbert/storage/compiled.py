"""Compiled programs, kept from one start to the next in the user's cache.

JAX's own persistent cache, in a folder that only its user may write to: programs are machine code.
The surprising thing: so it does not stand beside the workdir, which may come from somebody else and
of which nothing is run. JAX_COMPILATION_CACHE_DIR names another place, as everywhere in JAX.
"""

from __future__ import annotations

import collections
import contextlib
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import jax

from flaxbert.storage.embedded import cache_directory
from flaxbert.terminal import say

_DAMAGED = "Error reading persistent compilation cache entry"
_MOST_BYTES = 4 * 2**30  # the least recently used go first

# What JAX tells its listeners. Programs too small to be looked for are none of them.
_EVENTS = {
    "/jax/compilation_cache/cache_hits": "kept",
    "/jax/compilation_cache/cache_misses": "compiled",
}

_counts: collections.Counter[str] = collections.Counter()


def keep() -> None:
    """Makes this process take programs from the cache and put new ones there; for commands only.

    A cache that cannot be used costs time and nothing else: it is said, and programs are compiled.
    """
    # Small programs too: a start compiles dozens.
    for name, value in (
        ("jax_persistent_cache_min_compile_time_secs", 0.0),
        ("jax_persistent_cache_min_entry_size_bytes", -1),
    ):
        if name.upper() not in os.environ:
            jax.config.update(name, value)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = cache_directory() / "compiled"
        if not _is_ours(folder):
            return
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_compilation_cache_max_size", _MOST_BYTES)
        _empty_when_damaged(folder)
    if not _counts:
        _counts.update(kept=0, compiled=0)
        jax.monitoring.register_event_listener(_count)


def told() -> str:
    """How many programs were compiled and how many found, for people; "" if nobody counts."""
    if not _counts:
        return ""
    return f"{_counts['compiled']} programs compiled, {_counts['kept']} kept from before"


def _count(event: str, **_: Any) -> None:
    if event in _EVENTS:
        _counts[_EVENTS[event]] += 1


def _is_ours(folder: Path) -> bool:
    """Makes the folder, and returns whether nobody else can put programs into it."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError as error:
        say(f"flaxbert: compiled programs are not kept: {error}")
        return False
    if sys.platform != "win32" and (status.st_uid != os.geteuid() or status.st_mode & 0o022):
        say(
            f"flaxbert: compiled programs are not kept: {folder} is not yours alone. Delete it, or "
            "name another place with JAX_COMPILATION_CACHE_DIR."
        )
        return False
    return True


def _empty_when_damaged(folder: Path) -> None:
    """JAX writes entries in place: one that a kill cut short would be tried at every start."""
    show = warnings.showwarning

    def shown(message: Any, *rest: Any, **named: Any) -> None:
        if not str(message).startswith(_DAMAGED):
            show(message, *rest, **named)
            return
        say(f"flaxbert: a compiled program in {folder} is damaged: all of them are made anew")
        for entry in folder.glob("*-cache"):
            with contextlib.suppress(OSError):
                entry.unlink()

    warnings.showwarning = shown
