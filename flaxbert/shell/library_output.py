"""Keeps libraries from printing what they also raise, and from importing what nothing here uses.

A command tells an error in one line; tracebacks of the same error around it hide that line.
Note: it changes the process, so only commands do it, never an import or a library call (but for
`left_out`, which is over when an import is).
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from typing import Any

from absl import logging as absl_logging

_CLIENTS = ("gcsfs", "asyncio", "google.auth")  # of a bucket: tracebacks of what they also raise


class _NotTwice(logging.Filter):
    """Drops the traceback of a failed save, which Orbax logs through absl and raises as well."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and "orbax" in record.pathname)


def be_quiet() -> None:
    """Silences what Orbax, its event loop and gcsfs print of errors that reach us anyway.

    Where one of many writes fails, Orbax closes its event loop, and TensorStore still tells it of
    the others: Python would print a traceback for each.
    """
    for name in _CLIENTS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    absl = absl_logging.get_absl_logger()  # by name it would be made too early, of another class
    if any(isinstance(some, _NotTwice) for some in absl.filters):
        return
    absl.addFilter(_NotTwice())
    show = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            show(unraisable)

    sys.unraisablehook = hook


def leave_out_torch() -> None:
    """Makes PyTorch as good as not installed for this process, unless it is imported already.

    transformers and tensorboardX import it where they find it, though the tokenizer and event files
    need none of it: one to two seconds of each start. Not where the user's config file imported
    transformers or datasets, which have decided by then whether it is there.
    """
    if not {"transformers", "datasets"} & sys.modules.keys():
        sys.modules.setdefault("torch", None)  # pyright: ignore[reportArgumentType]


@contextlib.contextmanager
def left_out(*packages: str) -> Iterator[None]:
    """Makes packages as good as not installed while the block imports others."""
    absent = [package for package in packages if package not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))  # pyright: ignore[reportArgumentType,reportCallIssue]
    try:
        yield
    finally:
        for package in absent:
            del sys.modules[package]
