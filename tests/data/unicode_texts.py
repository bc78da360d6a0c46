"""Random Unicode strings that are hard to tokenize, and a vocabulary that shows every difference.

Note: most words are not in a real vocabulary and would all be [UNK], however they were normalised;
so there is a second vocabulary in which characters are tokens.
"""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Callable
from pathlib import Path

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def _chars(*ranges: tuple[int, int]) -> str:
    return "".join(chr(code) for first, last in ranges for code in range(first, last + 1))


def _class(*prefixes: str) -> str:
    """Returns all characters whose general category begins so."""
    characters = map(chr, range(0x110000))
    return "".join(c for c in characters if unicodedata.category(c).startswith(prefixes))


# Runs of one alphabet each.
SCRIPTS = {
    "ascii": _chars((0x21, 0x7E)),
    "letters": _chars((0x41, 0x5A), (0x61, 0x7A)),
    "latin": _chars((0xC0, 0x24F), (0x1E00, 0x1EFF)),
    "turkish and german": "İıIiŞşĞğßẞſÄäÖöÜü",
    "greek": _chars((0x370, 0x3FF), (0x1F00, 0x1FFF)) + "Σσς" * 20,
    "cyrillic": _chars((0x400, 0x52F), (0x1C80, 0x1C88)),
    "armenian, georgian": _chars((0x531, 0x58F), (0x10A0, 0x10FF), (0x1C90, 0x1CBF)),
    "hebrew": _chars((0x591, 0x5F4), (0xFB1D, 0xFB4F)),
    "arabic": _chars((0x600, 0x6FF), (0x750, 0x77F), (0x870, 0x8FF), (0xFB50, 0xFDFF)),
    "indic": _chars((0x900, 0xDFF)),
    "south-east asian": _chars(
        (0xE01, 0xEFF), (0x1000, 0x109F), (0x1700, 0x17FF), (0x1A20, 0x1BFF)
    ),
    "tibetan": _chars((0xF00, 0xFDA)),
    "ethiopic, cherokee, syllabics": _chars((0x1200, 0x167F), (0xAB70, 0xABBF)),
    "hangul": _chars((0xAC00, 0xD7A3)),
    "jamo": _chars((0x1100, 0x11FF), (0x3131, 0x318E), (0xA960, 0xA97C), (0xD7B0, 0xD7FB)),
    "kana": _chars((0x3041, 0x30FF), (0x31F0, 0x31FF), (0xFF66, 0xFF9F)),
    "ideographs": _chars((0x4E00, 0x9FFF)),
    "rare ideographs": _chars(
        *((0x3400, 0x4DBF), (0xF900, 0xFAFF), (0x2F00, 0x2FDF), (0x2A6D0, 0x2A750)),
        *((0x2B730, 0x2B940), (0x2CEA0, 0x2CEC0), (0x2F800, 0x2FA1F), (0x30000, 0x30040)),
    ),
    "wide and other forms": _chars((0xFF01, 0xFFEF), (0xFE10, 0xFE6F), (0xFB00, 0xFB17)),
    "mathematical": _chars((0x1D400, 0x1D7FF), (0x2100, 0x22FF), (0x1D15E, 0x1D1BF)),
    "numbers": "0123456789" * 8 + _chars((0x660, 0x669), (0x966, 0x96F), (0x2150, 0x218B)),
    "old scripts": _chars((0x10000, 0x10FFF), (0x11000, 0x11FFF), (0x13000, 0x1343F)),
    "emoji": _chars((0x1F300, 0x1FAFF), (0x2600, 0x27BF), (0x1F1E6, 0x1F1FF)) + "\u200d\ufe0f" * 99,
    "marks": _class("Mn"),
    "punctuation": _class("P") + "$+<=>^`|~" * 4,
    "spaces": _class("Zs") + "\t\n\r\v\f\x1c\x1d\x1e\x1f\x85\u2028\u2029" * 3,
    "control": _chars((0x00, 0x1F), (0x7F, 0x9F)) + "\ufffd\ufffc\ufffe\uffff",
    "bidi and zero width": "\u200b\u200c\u200d\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060"
    "\u2066\u2067\u2068\u2069\ufeff\xad\u061c\u180e\u034f\u115f\u3164",
    "private": _chars((0xE000, 0xE0FF), (0xF0000, 0xF00FF), (0x10FF00, 0x10FFFF)),
    "tags and selectors": _chars((0xE0000, 0xE01EF), (0xFE00, 0xFE0F)),
}

_NEAR_SPECIAL = (
    *SPECIAL,
    *("[sep]", "[Mask]", "[ SEP ]", "[SEP", "SEP]", "[[SEP]]", "[S\u200bEP]", "[SE\u0301P]"),
    *("[unused7]", "##ing", "##", "[\u0000CLS]", "［ＳＥＰ］", "[SEP]\u0301", "[UNK][MASK]"),
)
_WORDS = (
    *("the", "film's", "unforgettable", "naïve", "façade", "don't", "U.S.A.", "3.14", "1,000,000"),
    *("straße", "STRASSE", "ΟΔΥΣΣΕΥΣ", "ὈΔΥΣΣΕΎΣ", "İstanbul", "ISPARTA", "e-mail", "a_b", "c++"),
    *(
        "100%",
        "O'Brien",
        "ﬁne",
        "Ångström",
        "\u212b",
        "é",
        "e\u0301",
        "ñ",
        "n\u0303",
        "ǰ",
        "J\u030c",
    ),
)


def _run(chance: random.Random) -> str:
    """One to twelve characters of one alphabet."""
    alphabet = SCRIPTS[chance.choice(list(SCRIPTS))]
    return "".join(chance.choices(alphabet, k=chance.randint(1, 12)))


def _accented(chance: random.Random) -> str:
    """Letters with one to four marks each, in any order."""
    letters = chance.choice([SCRIPTS["letters"], SCRIPTS["greek"], SCRIPTS["latin"], "가각힣나"])
    marks = chance.choice([_chars((0x300, 0x36F)), SCRIPTS["marks"]])
    return "".join(
        chance.choice(letters) + "".join(chance.choices(marks, k=chance.randint(1, 4)))
        for _ in range(chance.randint(1, 5))
    )


def _long(chance: random.Random) -> str:
    """A word around the limit of 100 characters, counted before or after normalisation."""
    alphabet = SCRIPTS[chance.choice(["letters", "latin", "greek", "marks", "hangul"])]
    return "".join(chance.choices(alphabet + "abc" * 200, k=chance.choice([98, 99, 100, 101, 130])))


def _anything(chance: random.Random) -> str:
    """Code points of all planes alike, most of them unassigned; no halves of surrogate pairs."""
    top = chance.choice([0x2FF, 0xFFFF, 0x2FFFF, 0x10FFFF])
    codes = (chance.randint(0, top) for _ in range(chance.randint(1, 8)))
    return "".join(chr(code) for code in codes if not 0xD800 <= code < 0xE000)


_PIECES: tuple[tuple[Callable[[random.Random], str], int], ...] = (
    (_run, 40),
    (_accented, 10),
    (lambda chance: chance.choice(_WORDS), 25),
    (lambda chance: chance.choice(_NEAR_SPECIAL), 8),
    (_anything, 15),
    (_long, 2),
)


def texts(count: int, seed: int, *, pieces: int = 12) -> list[str]:
    """Returns random strings of at most so many pieces; the same ones for the same seed."""
    chance = random.Random(seed)
    makers, weights = zip(*_PIECES, strict=True)
    gaps = ["", "", "", " ", " ", "\u00a0", "\u3000", "\n", "-", "\u200b"]
    return [
        "".join(
            make(chance) + chance.choice(gaps)
            for make in chance.choices(makers, weights, k=chance.randint(1, pieces))
        )
        for _ in range(count)
    ]


def write_every_character(folder: Path) -> int:
    """Writes a vocab.txt in which each character of two planes is a token, alone and in a word.

    Returns the number of tokens.
    """
    characters = [
        character
        for character in map(chr, range(0x20000))
        if not character.isspace() and unicodedata.category(character) not in ("Cc", "Cs")
    ]
    tokens = [*SPECIAL, *characters, *(f"##{character}" for character in characters)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    return len(tokens)
