"""Keeps libraries from printing errors that they also raise, and from importing unused packages.

A command prints an error as one line; tracebacks of the same error around it would hide that line.
Note: this changes the whole process, so only commands do it, never an import or a library call
(except `left_out`, which is undone when its imports are done).
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from typing import Any

from absl import logging as absl_logging

_CLIENTS = ("gcsfs", "asyncio", "google.auth")  # bucket clients: they log tracebacks and raise too


class _NotTwice(logging.Filter):
    """Drops the traceback of a failed save, which Orbax logs through absl and raises as well."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and "orbax" in record.pathname)


def be_quiet() -> None:
    """Silences what Orbax, its event loop and gcsfs print about errors that they also raise.

    When one of many writes fails, Orbax closes its event loop, while TensorStore still reports the
    others to it: Python would print a traceback for each.
    """
    for name in _CLIENTS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    absl = absl_logging.get_absl_logger()  # getLogger would create it too early, as another class
    if any(isinstance(some, _NotTwice) for some in absl.filters):
        return
    absl.addFilter(_NotTwice())
    show = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            show(unraisable)

    sys.unraisablehook = hook


@contextlib.contextmanager
def left_out(*packages: str) -> Iterator[None]:
    """Hides packages while the block imports others, as if they were not installed."""
    absent = [package for package in packages if package not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))  # pyright: ignore[reportArgumentType,reportCallIssue]
    try:
        yield
    finally:
        for package in absent:
            del sys.modules[package]
