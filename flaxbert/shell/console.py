"""Messages on standard error. Standard output is for results.

Names of files, labels and columns come from data, so they may contain terminal control sequences
(colours, titles, text direction). They are escaped here, as the last step before printing, so no
caller has to do it and files keep the names unchanged.
"""

from __future__ import annotations

import contextlib
import re
import sys

# Control characters except tab and line feed, line separators, marks of text direction, and lone
# surrogates, which cannot be encoded.
_OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    r"""Returns the text with terminal control characters escaped, as "\x1b" and "\u202e"."""
    return _OBEYED.sub(lambda found: ascii(found[0])[1:-1], text)


def printable_json(text: str) -> str:
    r"""Returns the same JSON with these characters as JSON escapes them, "\u001b"."""
    return _OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def say(line: str) -> None:
    """Prints a message at once; of several processes of a run only the first one does."""
    if not _process:
        _write(line)


def complain(text: str) -> None:
    """Prints an error, in every process of a run, with the process number in front."""
    lines = f"[{_process}] ".join(["", *text.splitlines(True)]) if _process else text
    _write(lines)


def _write(text: str) -> None:
    encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
    shown = printable(text).encode(encoding, "backslashreplace").decode(encoding)
    # A closed terminal or pipe must not end a run or change its exit code.
    with contextlib.suppress(OSError):
        print(shown, file=sys.stderr, flush=True)


def speak_as(process: int) -> None:
    """Sets the number of this process in its run."""
    global _process
    _process = process


_process = 0
