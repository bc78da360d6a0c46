"""Writes flaxbert/data/unicode14.py from Python 3.11's own tables, which are Unicode 14.

    python3.11 -m tests.golden.make_unicode

tests/data/test_normalize.py compares the file with the interpreter's tables on Python 3.11.
"""

from __future__ import annotations

import textwrap
import unicodedata
from pathlib import Path

TARGET = Path(__file__).parents[2] / "flaxbert" / "data" / "unicode14.py"

# name: (first letters of the general category, what they are)
CLASSES = {
    "OTHERS": ("C", "Cc, Cf, Cn, Co, Cs: control, format, unassigned, private use, surrogates"),
    "NONSPACING_MARKS": ("Mn", "Mn: accents and vowel signs that take no room of their own"),
    "PUNCTUATION": ("P", "Pc, Pd, Pe, Pf, Pi, Po, Ps"),
    "SPACES": ("Zs", "Zs"),
}

HEADER = '''"""Classes of characters in Unicode 14; written by tests/golden/make_unicode.py.

Each is (first, last, first, last, ...) of its ranges, both ends inside. The surprising thing: the
text form. As Python numbers the file would be five times as long.
"""

from __future__ import annotations


def _ranges(text: str) -> tuple[int, ...]:
    """Reads hexadecimal "first-last", or "only" for a range of one."""
    ends = [part.split("-") for part in text.split()]
    return tuple(int(end, 16) for pair in ends for end in (pair[0], pair[-1]))

'''


def ranges_of(prefix: str) -> list[tuple[int, int]]:
    """Returns the ranges of characters whose category begins with a prefix."""
    found: list[tuple[int, int]] = []
    for code in range(0x110000):
        if unicodedata.category(chr(code)).startswith(prefix):
            if found and found[-1][1] == code - 1:
                found[-1] = (found[-1][0], code)
            else:
                found.append((code, code))
    return found


def main() -> None:
    if unicodedata.unidata_version != "14.0.0":
        raise SystemExit(f"expected Python 3.11 (Unicode 14), got {unicodedata.unidata_version}")
    text = HEADER
    for name, (prefix, meaning) in CLASSES.items():
        pairs = ranges_of(prefix)
        words = " ".join(f"{a:x}" if a == b else f"{a:x}-{b:x}" for a, b in pairs)
        lines = textwrap.wrap(words, 96, break_on_hyphens=False)
        body = "\n".join(f"    {line}" for line in lines)
        text += f'\n# {meaning}.\n{name} = _ranges(\n    """\n{body}\n    """\n)\n'
    TARGET.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
