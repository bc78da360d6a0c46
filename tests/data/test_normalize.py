"""BERT's own words: which characters split, vanish or change; and the frozen Unicode tables."""

from __future__ import annotations

import unicodedata

import pytest

from flaxbert.data import unicode14
from flaxbert.data.normalize import Normalizer
from tests.golden.make_unicode import CLASSES, ranges_of


def words(text: str, *, lowercase: bool = True, strip_accents: bool | None = None, **options):
    normalize = Normalizer(
        lowercase=lowercase,
        strip_accents=lowercase if strip_accents is None else strip_accents,
        **{"split_ideographs": True, "special_tokens": ("[SEP]", "[MASK]"), **options},
    )
    return normalize(text).split()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello, World!", ["hello", ",", "world", "!"]),
        ("Crème BRÛLÉE e\u0301", ["creme", "brulee", "e"]),
        ("ΟΔΥΣΣΕΥΣ Σ", ["οδυσσευσ", "σ"]),  # no final sigma
        ("straße İstanbul", ["straße", "istanbul"]),
        ("a$b^c`d~e", ["a", "$", "b", "^", "c", "`", "d", "~", "e"]),
        ("a你好b", ["a", "你", "好", "b"]),
        ("a\U0002b820b", ["a", "\U0002b820", "b"]),  # the first of ideograph extension E
        ("a\u0378\U000e0001\ue000\ud800\x00\ufffdb", ["ab"]),  # nothing that is a character
        ("a\u200bb\u00a0c\u2028d\te", ["ab", "c", "d", "e"]),
        ("a\u2e5d b\u0cf3", ["a", "\u2e5d", "b"]),  # punctuation of 2021; unassigned until 2022
        ("x\u1734y \u166d", ["x\u1734y", "\u166d"]),  # no mark and no punctuation any more
        ("a [SEP]b [sep]", ["a", "[SEP]", "b", "[", "sep", "]"]),
        ("[S\u200bEP]", ["[", "sep", "]"]),
        ("", []),
    ],
)
def test_uncased(text, expected):
    assert words(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Crème e\u0301", ["Crème", "é"]),  # composed
        ("\u2126 \u212b", ["\u03a9", "\u00c5"]),
        ("a[MASK]b", ["a", "[MASK]", "b"]),
        ("[S\u200bEP] x[S\u200bEP]", ["[SEP]", "x", "[", "SEP", "]"]),
    ],
)
def test_cased(text, expected):
    assert words(text, lowercase=False) == expected


def test_options():
    assert words("É", strip_accents=False) == ["é"]
    assert words("É", lowercase=False, strip_accents=True) == ["E"]
    assert words("a你b", split_ideographs=False) == ["a你b"]
    assert words("[SEP]", special_tokens=()) == ["[", "sep", "]"]


@pytest.mark.parametrize("name", CLASSES)
def test_the_tables_are_those_of_unicode_14(name):
    """Characters that came later count as unassigned, so the tables may only lack those."""
    prefix, _ = CLASSES[name]
    flat = getattr(unicode14, name)
    frozen = {c for a, b in zip(flat[::2], flat[1::2], strict=True) for c in range(a, b + 1)}
    now = {code for first, last in ranges_of(prefix) for code in range(first, last + 1)}
    if unicodedata.unidata_version == "14.0.0":
        assert frozen == now
    elif name == "OTHERS":
        assert frozen >= now
    else:
        others = unicode14.OTHERS
        unassigned = {
            c for a, b in zip(others[::2], others[1::2], strict=True) for c in range(a, b + 1)
        }
        assert frozen == now - unassigned
