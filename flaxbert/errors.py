"""The errors a user can cause, each with the exit code of the command line.

Every room may import this file. They are ordinary exceptions for Python callers; only `cli.py`
turns them into an exit code, and prints the message without a traceback. A message says what was
expected, what came (file and line where there is one) and what to do next.
"""

from __future__ import annotations


class FlaxbertError(Exception):
    """Base of all of them; `exit_code` is the command line's."""

    exit_code: int


class ConfigError(FlaxbertError, ValueError):
    """A wrong flag, config field or combination of them."""

    exit_code = 2


class DataError(FlaxbertError, ValueError):
    """A data file that is missing, unreadable or would make training dishonest."""

    exit_code = 3


class ModelFileError(FlaxbertError, OSError):
    """A model folder, weight file or checkpoint that cannot be used."""

    exit_code = 4


class StorageError(FlaxbertError, RuntimeError):
    """An object store that refuses, or does not answer.

    No OSError: what cannot be read for now must not be taken for damaged.
    """

    exit_code = 4


class NonFiniteError(FlaxbertError, ArithmeticError):
    """The loss or its gradient is not finite."""

    exit_code = 5


class InterruptedRun(BaseException):
    """A signal asked the run to stop; every finished update is saved.

    Like KeyboardInterrupt no Exception: code that handles errors must not swallow it.
    """

    exit_code = 75
