"""Lines for a person, on standard error. Standard output is for results.

Names of files, labels and columns come from data, so they may hold what a terminal obeys: colours,
titles, the order of letters. They are made harmless here alone, as the last step, so no caller has
to think of it and no file holds anything but the name itself.
"""

from __future__ import annotations

import re
import sys

# Control characters but tab and line feed, line separators, marks that turn the direction of
# letters, and halves of pairs, which no encoding can say.
_OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    r"""Returns the text with what a terminal would obey written out, as "\x1b" and "\u202e"."""
    return _OBEYED.sub(lambda found: ascii(found[0])[1:-1], text)


def printable_json(text: str) -> str:
    r"""Returns the same JSON with these characters as JSON escapes them, "\u001b"."""
    return _OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def say(line: str) -> None:
    """Tells the user something, at once; of several processes of a run only the first does."""
    if not _process:
        print(printable(line), file=sys.stderr, flush=True)


def complain(text: str) -> None:
    """Tells the user what ends this process, whichever of a run's it is."""
    lines = f"[{_process}] ".join(["", *text.splitlines(True)]) if _process else text
    print(printable(lines), file=sys.stderr, flush=True)


def speak_as(process: int) -> None:
    """From here on this is that process of a run."""
    global _process
    _process = process


_process = 0
