"""The errors a user can cause, each with the exit code of the command line.

Every room may import this file. They are ordinary exceptions for Python callers; only `cli.py`
turns them into an exit code, and prints the message without a traceback. A message says what was
expected, what came (file and line where there is one) and what to do next.
"""

from __future__ import annotations

INTERNAL_ERROR = 70


def exit_code_of(error: BaseException) -> int:
    """Returns the exit code that an error of any kind ends a command with."""
    code = getattr(error, "exit_code", None)
    if code is not None:
        return code
    if isinstance(error, OSError) and error.errno is not None:
        return ModelFileError.exit_code  # a full or read-only disk is no defect of ours
    if is_out_of_memory(error):
        return ConfigError.exit_code
    return INTERNAL_ERROR


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message; the name of its type if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")[:500]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error is a device's or compiler's out-of-memory error."""
    return "RESOURCE_EXHAUSTED" in str(error)


class FlaxbertError(Exception):
    """Base of all of them; `exit_code` is the command line's."""

    exit_code: int


class ConfigError(FlaxbertError, ValueError):
    """A wrong flag, config field or combination of them."""

    exit_code = 2


class DataError(FlaxbertError, ValueError):
    """A data file that is missing or unreadable, or has invalid rows."""

    exit_code = 3


class ModelFileError(FlaxbertError, OSError):
    """A model folder, weight file or checkpoint that cannot be used."""

    exit_code = 4


class StorageError(FlaxbertError, RuntimeError):
    """An object store refuses a request or does not answer.

    Not an OSError: a file that cannot be read at the moment must not be treated as damaged.
    """

    exit_code = 4


class PeerLostError(FlaxbertError, RuntimeError):
    """Another process of the run is gone or cannot be reached."""

    exit_code = 71


class StuckError(FlaxbertError, RuntimeError):
    """The run makes no progress, although all processes are alive."""

    exit_code = INTERNAL_ERROR


class WrongNumbersError(FlaxbertError, ArithmeticError):
    """The devices, or collectives between them, compute wrong numbers."""

    exit_code = INTERNAL_ERROR


class NonFiniteError(FlaxbertError, ArithmeticError):
    """The loss or its gradient is not finite."""

    exit_code = 5


class InterruptedRun(BaseException):
    """A signal asked the run to stop; every finished update is saved.

    Not an Exception, like KeyboardInterrupt: code that handles errors must not swallow it.

    """

    exit_code = 75
