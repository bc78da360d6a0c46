"""What BERT's own tokenizer does to a text before WordPiece: clean, lower-case, strip, split.

Equal to the Python BertTokenizer of transformers 4, character for character. The surprising thing:
the Rust normalizer behind transformers 5 is not. Its Unicode tables are those of 2015, it keeps
unassigned characters, and it does not compose accents (NFC) in cased models. And Python's own
tables change with the interpreter, so that ids would too: the classes of characters are frozen
here, at Unicode 14 (unicode14.py).
"""

from __future__ import annotations

import bisect
import re
import unicodedata
from collections.abc import Sequence

from flaxbert.data import unicode14

# CJK ideographs are words of their own; the blocks are those of BERT's first release.
_IDEOGRAPHS = (
    *(0x3400, 0x4DBF, 0x4E00, 0x9FFF, 0xF900, 0xFAFF, 0x20000, 0x2A6DF, 0x2A700, 0x2B73F),
    *(0x2B740, 0x2B81F, 0x2B820, 0x2CEAF, 0x2F800, 0x2FA1F),
)
# ASCII characters that BERT splits at although Unicode calls them symbols.
_ASCII_SYMBOLS = frozenset("$+<=>^`|~")


class Normalizer:
    """Text -> words with spaces between them, ready to be split at spaces for WordPiece."""

    def __init__(
        self,
        *,
        lowercase: bool,
        strip_accents: bool,
        split_ideographs: bool,
        special_tokens: Sequence[str] = (),
    ) -> None:
        """`special_tokens` stay as they are, wherever they stand in a text."""
        self._lowercase = lowercase
        self._clean = _Clean(split_ideographs)
        self._strip = _Strip() if strip_accents else None
        self._split = _Split()
        self._special = frozenset(special_tokens)
        longest_first = sorted(self._special, key=len, reverse=True)
        self._around = re.compile(f"({'|'.join(map(re.escape, longest_first))})")

    def __call__(self, text: str) -> str:
        if self._special and any(token in text for token in self._special):
            parts = self._around.split(text)
            parts[::2] = map(self._words, parts[::2])
            return " ".join(parts)
        return self._words(text)

    def _words(self, text: str) -> str:
        if self._lowercase:
            # First, and letter by letter: a sigma at the end of a word is an ordinary one.
            text = text.replace("Σ", "σ").lower()
        text = unicodedata.normalize("NFC", text.translate(self._clean))
        if self._strip is not None and not text.isascii():
            text = unicodedata.normalize("NFD", text).translate(self._strip)
        # In cased models, what is left of "[S\u200bEP]" is a special token.
        if any(token in text for token in self._special):
            return " ".join(
                word if word in self._special else word.translate(self._split)
                for word in text.split()
            )
        return text.translate(self._split)


class _Table(dict[int, str | None]):
    """A table for str.translate that learns each character when it is first seen."""

    def __missing__(self, code: int) -> str | None:
        self[code] = result = self.replacement(code)
        return result

    def replacement(self, code: int) -> str | None:
        raise NotImplementedError


class _Clean(_Table):
    """Drops control, format, private and unassigned characters; makes white space spaces."""

    def __init__(self, split_ideographs: bool) -> None:
        super().__init__()
        self._split_ideographs = split_ideographs

    def replacement(self, code: int) -> str | None:
        if chr(code) in "\t\n\r" or _inside(unicode14.SPACES, code):
            return " "
        if code == 0xFFFD or _inside(unicode14.OTHERS, code):
            return None
        if self._split_ideographs and _inside(_IDEOGRAPHS, code):
            return f" {chr(code)} "
        return chr(code)


class _Strip(_Table):
    """Drops accents."""

    def replacement(self, code: int) -> str | None:
        return None if _inside(unicode14.NONSPACING_MARKS, code) else chr(code)


class _Split(_Table):
    """Puts punctuation between spaces."""

    def replacement(self, code: int) -> str | None:
        if chr(code) in _ASCII_SYMBOLS or _inside(unicode14.PUNCTUATION, code):
            return f" {chr(code)} "
        return chr(code)


def _inside(ranges: Sequence[int], code: int) -> bool:
    """Whether one of the ranges (first, last, first, last, ...) contains a character."""
    index = bisect.bisect_left(ranges, code)
    return index % 2 == 1 or (index < len(ranges) and ranges[index] == code)
