"""Spells the scores of a Unigram tokenizer.json so that all its readers get the same numbers.

The tokenizers library reads JSON by serde_json, which computes digits / 10**places in float64: one
score in eight comes out one unit in the last place away from what Python's json reads. Where two
ways to split a word are nearly as good, another one wins then.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction

# As the library writes them: a number with a point or an exponent, alone in its line.
_SCORE = re.compile(rb"(?m)^( +-?)(\d+\.\d+(?:e-?\d+)?|\d+e-?\d+)$")


def respelled(tokenizer_json: bytes) -> bytes:
    """Returns the file with the same scores for Python, and for the library too.

    Note: about one score in a thousand has no such spelling, and stays as it is.
    """
    return _SCORE.sub(
        lambda found: found[1] + _spelling(found[2].decode()).encode(), tokenizer_json
    )


def _spelling(text: str) -> str:
    score = float(text)
    if _as_serde_json(text) == score:
        return text
    half = Fraction(math.ulp(score)) / 2  # what Python rounds to this score
    for places in range(12, 23):
        power = 10**places
        nearest, reach = round(Fraction(score) * power), int(half * power)
        for eighths in range(-8, 9):
            digits = nearest + reach * eighths // 8
            spelled = f"{digits}e-{places}"
            if 0 < digits < 2**64 and _as_serde_json(spelled) == float(spelled) == score:
                return spelled
    return text


def _as_serde_json(text: str) -> float:
    mantissa, _, exponent = text.partition("e")
    whole, _, fraction = mantissa.partition(".")
    power = int(exponent or 0) - len(fraction)
    digits = float(int(whole + fraction))
    if abs(power) > 300:
        return float(text)  # next to 0
    return digits * 10.0**power if power >= 0 else digits / 10.0**-power
