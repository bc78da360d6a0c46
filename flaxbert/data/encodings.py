"""Which encoding a file that is not UTF-8 has, by what decodes to text.

Bytes of one encoding mostly decode in others too, but to rare characters. So an encoding fits if
nearly all characters outside of ASCII are common ones of its languages.
"""

from __future__ import annotations

import codecs
import re
import shlex
import unicodedata
from itertools import pairwise

# The language and encoding, iconv's name, Python's name, and common characters: as bytes (the
# national standards have them in rows of their own), as letters, or as a script.
_MULTI_BYTE = (
    (
        "Korean (EUC-KR)",
        "CP949",
        "cp949",
        rb"[\xa1\xa3\xb0-\xc8][\xa1-\xfe]|\xa4[\xbb\xbe\xcc\xd0]",
    ),
    ("Chinese (GBK)", "GB18030", "gb18030", rb"[\xa1\xa3\xb0-\xd7][\xa1-\xfe]"),
    ("Chinese (Big5)", "BIG5", "cp950", rb"[\xa1-\xc6][\x40-\xfe]"),
    ("Japanese (Shift-JIS)", "CP932", "cp932", rb"[\x81-\x83\x88-\x97][\x40-\xfc]"),
    ("Japanese (EUC-JP)", "EUC-JP", "euc_jp", rb"[\xa1\xa3-\xa5\xb0-\xcf][\xa1-\xfe]"),
)
_LATIN = (
    ("Western European (Windows-1252)", "WINDOWS-1252", "cp1252", "À-ÏÑ-ÖØ-Üß-ïñ-öø-üÿŒœ"),
    ("Central European (Windows-1250)", "WINDOWS-1250", "cp1250",
     "ĄĆĘŁŃÓŚŹŻąćęłńóśźżÁČĎÉĚÍŇŘŠŤÚŮÝŽáčďéěíňřšťúůýžÄÖÜäöüßÔôŐőŰűĂÂÎŞŢăâîşţ"),
    ("Turkish (Windows-1254)", "WINDOWS-1254", "cp1254", "ÇĞİÖŞÜçğıöşüÂÎÛâîû"),
)  # fmt: skip
_SCRIPTS = (
    ("Cyrillic (Windows-1251)", "WINDOWS-1251", "cp1251", "CYRILLIC"),
    ("Cyrillic (KOI8-R)", "KOI8-R", "koi8_r", "CYRILLIC"),
    ("Greek (Windows-1253)", "WINDOWS-1253", "cp1253", "GREEK"),
    ("Hebrew (Windows-1255)", "WINDOWS-1255", "cp1255", "HEBREW"),
    ("Arabic (Windows-1256)", "WINDOWS-1256", "cp1256", "ARABIC"),
    ("Thai (TIS-620)", "CP874", "cp874", "THAI"),
)
_PUNCTUATION = "‘’“”„–—…€™"
_SIGNS = "\xa0¡¢£¥§©ª«¬®°±²³µ¶·¹º»¼½¾¿×÷"  # common ones, but not between letters

_FITS = 0.8  # share of common characters
_FEW = 6  # different characters in which Chinese may happen to be Korean


def advice(sample: bytes, source: str) -> str:
    """Says how to save a file as UTF-8; `sample` is a part of it that is not UTF-8."""
    text = sample.decode(errors="replace")
    if len(_outside_ascii(text.replace("\ufffd", ""))) > 4 * text.count("\ufffd"):
        return "Other characters near it are UTF-8: repair this line, or drop such bytes: " + iconv(
            "UTF-8", source, "-c "
        )
    found = candidates(sample) or candidates(sample.splitlines()[0])
    if found:
        ways = [f"from {title}: {iconv(name, source)}" for title, name in found]
        return f"Save the file as UTF-8, for example {'; or '.join(ways)}"
    names = ", ".join(row[1] for row in (*_MULTI_BYTE, *_LATIN, *_SCRIPTS))
    return (
        f"Save the file as UTF-8, for example: {iconv('ENCODING', source)}, where ENCODING is "
        f"what it was written in, such as {names}."
    )


def iconv(encoding: str, source: str, options: str = "") -> str:
    """Returns the command that writes a file as UTF-8."""
    convert = f"iconv {options}-f {encoding} -t UTF-8"
    if source.lower().endswith(".gz"):
        return f"gunzip -c {shlex.quote(source)} | {convert} > NEW"
    return f"{convert} {shlex.quote(source)} > NEW"


def candidates(sample: bytes) -> list[tuple[str, str]]:
    """Returns (language and encoding, iconv's name) of what fits, [] if nothing does."""
    latin = {row: _share_of_latin(sample, *row[2:]) for row in _LATIN}
    best = max(latin.values())
    if best >= _FITS:  # several, if they give different texts that are as good
        texts: dict[str | None, tuple[str, str]] = {}
        for row in latin:
            if latin[row] == best:
                texts.setdefault(_decoded(sample, row[2]), row[:2])
        return list(texts.values())
    shares = {row[:2]: _share_of_common(sample, *row[2:]) for row in _MULTI_BYTE}
    least = max(_FITS, max(shares.values()) - 0.05)
    fitting = [row for row, share in shares.items() if share >= least]
    if fitting:
        # Korean letters have the places of a half of the common Chinese characters.
        korean = _MULTI_BYTE[0]
        text = _decoded(sample, korean[2]) if korean[:2] in fitting else None
        return [korean[:2]] if len(set(_outside_ascii(text or ""))) >= _FEW else fitting
    return [row[:2] for row in _SCRIPTS if _is_script(sample, *row[2:])]


def _decoded(sample: bytes, codec: str) -> str | None:
    try:  # not as a whole: the sample may end in the middle of a character
        return codecs.getincrementaldecoder(codec)().decode(sample)
    except UnicodeDecodeError:
        return None


def _outside_ascii(text: str) -> list[str]:
    return [character for character in text if character > "\x7f"]


def _share_of_common(sample: bytes, codec: str, common: bytes) -> float:
    """Returns the share of characters that are common; Japanese has kana among them."""
    characters = _outside_ascii(_decoded(sample, codec) or "")
    if codec in ("cp932", "euc_jp"):
        kana = sum("\u3041" <= character <= "\u30ff" for character in characters)
        if 6 * kana < len(characters):
            return 0.0
    fitting = sum(bool(re.fullmatch(common, c.encode(codec))) for c in characters)
    return fitting / len(characters) if characters else 0.0


def _share_of_latin(sample: bytes, codec: str, letters: str) -> float:
    """Returns the share of characters that are punctuation, or letters among those of ASCII."""
    text = _decoded(sample, codec) or ""
    signs = f"(?<![A-Za-z])[{_SIGNS}]|[{_SIGNS}](?![A-Za-z])"
    alone = f"(?<![^\0-\x7f])(?:[{letters}]|{signs})(?![^\0-\x7f])"
    near = f"(?<=[A-Za-z])[{letters}]{{1,3}}|[{letters}]{{1,3}}(?=[A-Za-z])"
    found = sum(map(len, re.findall(f"{alone}|{near}|[{_PUNCTUATION}]", text)))
    return (found - 2 * _misplaced(text)) / max(1, len(_outside_ascii(text)))


def _misplaced(text: str) -> int:
    """Counts capitals outside of ASCII behind a small letter."""
    return sum(a.islower() and b.isupper() and b > "\x7f" for a, b in pairwise(text))


def _is_script(sample: bytes, codec: str, script: str) -> bool:
    """Whether nearly all letters are of a script, and capitals stand where words begin."""
    text = _decoded(sample, codec) or ""
    of_ascii = sum(c.isascii() and c.isalpha() for c in text)
    characters = [c for c in _outside_ascii(text) if c not in _PUNCTUATION + _SIGNS]
    own = sum(unicodedata.name(c, "").startswith(script) for c in characters)
    capitals = sum(c.isupper() for c in characters)
    is_text = 2 * own >= of_ascii and 2 * capitals <= own and 20 * _misplaced(text) <= own
    return own > 0.9 * len(characters) and is_text
