"""Tag schemes of token classification: detection, entities, and conversion to IOB2.

Files may use any scheme; models are trained and exported in IOB2, because the pipeline of
transformers joins B- and I- tags only and shows E- and S- tags as separate groups. Tags without a
scheme, such as parts of speech, are "plain": each is a label, and there are no entities.

Note: an entity also begins at an I- tag after O or after another type, as in conlleval and in
seqeval's default mode. So IOB1 and IOB2 are read alike, and an entity with a forgotten B- is not
lost; `irregular_words` finds these.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from flaxbert.errors import ConfigError, DataError

PLAIN = "plain"

# The prefixes of each scheme, in terms of BIOES. IO may also omit them: PER, O.
_PREFIXES = {
    "IOB1": {"B": "B", "I": "I"},
    "IOB2": {"B": "B", "I": "I"},
    "BIOES": {"B": "B", "I": "I", "E": "E", "S": "S"},
    "BILOU": {"B": "B", "I": "I", "L": "E", "U": "S"},
    "BMES": {"B": "B", "M": "I", "E": "E", "S": "S"},
    "IO": {"I": "I"},
}
SCHEMES = (*_PREFIXES, PLAIN)

# Other names of the same schemes have the same letters: IOBES, BILUO, BIO2.
_NAMES = {"".join(sorted(name.upper())): name for name in SCHEMES}
_NAMES |= {"BIO": "IOB2", "BEMOS": "BMES"}

# The type of tags that are only a prefix (B, I, O in biomedical data).
UNNAMED = "entity"

_ADVICE = f"correct them, or name their scheme ({PLAIN}: each tag is a label of its own)"

_OUTSIDE = ("O", "o")
_TAG = re.compile(r"([BIEMSLU])(?:[-_](.*))?", re.IGNORECASE)
_PREFIX_LAST = re.compile(r".+[-_][BIEMSLU]", re.IGNORECASE)


class Entities(NamedTuple):
    """Entities E of one sequence of words, in their order; `end` is the word after the last."""

    types: Int[np.ndarray, " E"]  # numbers in TagSet.types
    start: Int[np.ndarray, " E"]
    end: Int[np.ndarray, " E"]
    regular: Bool[np.ndarray, " E"]  # all of its tags follow the scheme

    def strict(self) -> Entities:
        """Returns those that follow the scheme."""
        return Entities._make(column[self.regular] for column in self)


@dataclass(frozen=True)
class TagSet:
    """The meaning of each of a list of tag names; the ids of words W are indices in it."""

    scheme: str
    types: tuple[str, ...]  # in code-point order
    prefix_of: np.ndarray  # of each name: B, I, E, S or O, in terms of BIOES
    type_of: Int[np.ndarray, " C"]  # of each name; -1 for O

    @classmethod
    def make(cls, names: Sequence[str], scheme: str) -> TagSet:
        """Raises DataError for names that the scheme does not have."""
        parts = [_split(name, scheme) for name in names]
        types = tuple(sorted({kind for _, kind in parts} - {""}))
        numbers = {kind: number for number, kind in enumerate(types)} | {"": -1}
        return cls(
            scheme,
            types,
            np.array([prefix for prefix, _ in parts], "U1"),
            np.array([numbers[kind] for _, kind in parts], np.int64),
        )

    def entities(self, ids: Int[np.ndarray, " W"], sentences: Int[np.ndarray, " W"]) -> Entities:
        """Returns the entities of words; none spans two sentence numbers."""
        starts, ends, irregular = self._read(ids, sentences)
        start, end = np.flatnonzero(starts), np.flatnonzero(ends) + 1
        before = np.concatenate([[0], np.cumsum(irregular)])
        return Entities(self.type_of[ids[start]], start, end, before[start] == before[end])

    def irregular(
        self, ids: Int[np.ndarray, " W"], sentences: Int[np.ndarray, " W"]
    ) -> Bool[np.ndarray, " W"]:
        """Whether a word's tag differs from the scheme's tag for the entities as read."""
        return self._read(ids, sentences)[2]

    def _read(self, ids, sentences):
        """Returns three flags of each word: begins an entity, ends one, has an irregular tag."""
        prefix, kind = self.prefix_of[ids], self.type_of[ids]
        inside = prefix != "O"
        touches = np.zeros(len(ids), bool)  # the word before has the same type
        touches[1:] = inside[1:] & (kind[1:] == kind[:-1]) & (sentences[1:] == sentences[:-1])
        continues = touches & ((prefix == "I") | (prefix == "E"))
        continues[1:] &= (prefix[:-1] == "B") | (prefix[:-1] == "I")
        starts, ends = inside & ~continues, inside.copy()
        ends[:-1] &= ~continues[1:]
        if self.scheme == "IOB2":
            demanded = np.where(starts, "B", "I")
        elif self.scheme in ("IOB1", "IO"):
            demanded = np.where(starts & touches, "B", "I")
        else:
            demanded = np.select([starts & ends, starts, ends], ["S", "B", "E"], "I")
        return starts, ends, inside & (prefix != demanded)


def scheme_for(sequences: Sequence[Sequence[str]], choice: str = "auto") -> str:
    """Returns the scheme of training rows: the user's choice, or the one detected.

    IOB1 and IOB2 differ in the use of B; the one with fewer irregular words is chosen. The choice
    may use other names: BIO, IOBES, BILUO.
    """
    names, ids, sentences = flatten(sequences)
    if choice != "auto":
        return _named(choice, names)
    tags = sorted(set(names) - {*_OUTSIDE})
    if not tags:
        raise DataError(f"tags: expected entities, found {'only O' if names else 'no word'}")
    examples = {_form(tag): tag for tag in reversed(tags)}  # the first of each form
    if "typed" not in examples and "other" in examples:
        return _without_prefixes(tags, Counter(names[number] for number in ids.tolist()))
    if len(examples) > 1:
        one, other, *_ = sorted(examples.values())
        raise DataError(
            f"tags: expected all of one form, found {one!r} beside {other!r}; {_ADVICE}"
        )
    letters = {tag[0].upper() for tag in tags}
    if letters <= {"B", "I"}:
        irregular = {
            scheme: np.sum(TagSet.make(names, scheme).irregular(ids, sentences))
            for scheme in ("IOB2", "IOB1")
        }
        return min(irregular, key=lambda scheme: irregular[scheme])
    for scheme, prefixes in _PREFIXES.items():
        if letters <= set(prefixes):
            return scheme
    raise DataError(
        f"tags: expected the prefixes of one scheme ({', '.join(_PREFIXES)}), found "
        f"{', '.join(sorted(letters))} (as in {', '.join(tags[:5])}); {_ADVICE}"
    )


def irregular_words(sequences: Sequence[Sequence[str]], scheme: str) -> list[tuple[int, int]]:
    """Returns (sentence, word) of each tag that the scheme does not allow there.

    In IOB2 that is an I- after O or after another type, in BIOES also an entity without its E-.
    """
    names, ids, sentences = flatten(sequences)
    words = np.flatnonzero(TagSet.make(names, scheme).irregular(ids, sentences))
    first = np.searchsorted(sentences, sentences[words])
    return list(zip(sentences[words].tolist(), (words - first).tolist(), strict=True))


def to_iob2(sequences: Sequence[Sequence[str]], scheme: str) -> list[list[str]]:
    """Returns the tags of the same entities in IOB2."""
    names, ids, sentences = flatten(sequences)
    tag_set = TagSet.make(names, scheme)
    found = tag_set.entities(ids, sentences)
    begins = np.array([f"B-{kind}" for kind in tag_set.types], object)
    others = np.array(["O", *(f"I-{kind}" for kind in tag_set.types)], object)
    tags = others[tag_set.type_of[ids] + 1]
    tags[found.start] = begins[found.types]
    cuts = np.cumsum([0, *map(len, sequences)]).tolist()
    flat = tags.tolist()
    return [flat[cut:end] for cut, end in pairwise(cuts)]


def iob2_labels(types: Iterable[str]) -> list[str]:
    """Returns the label set of entity types, in code-point order.

    It is complete: a type with only single words in training still has its I- label, so that longer
    entities of other splits can be labelled and scored.
    """
    return sorted({"O"} | {f"{prefix}-{kind}" for kind in types for prefix in "BI"})


def flatten(
    sequences: Sequence[Sequence[str]],
) -> tuple[list[str], Int[np.ndarray, " W"], Int[np.ndarray, " W"]]:
    """Returns the distinct tags, and for each word the index of its tag and its sentence."""
    numbers: dict[str, int] = {}
    ids = [numbers.setdefault(tag, len(numbers)) for tags in sequences for tag in tags]
    lengths = np.array([len(tags) for tags in sequences], np.int64)
    return list(numbers), np.array(ids, np.int64), np.repeat(np.arange(len(lengths)), lengths)


def _split(tag: str, scheme: str) -> tuple[str, str]:
    """Returns prefix (in terms of BIOES) and type of a tag; the type of O is ""."""
    if tag in _OUTSIDE:
        return "O", ""
    match = _TAG.fullmatch(tag)
    if scheme == "IO" and not (match and match[2]):
        return "I", tag
    if match is None or match[1].upper() not in _PREFIXES[scheme]:
        expected = ", ".join(f"{letter}-TYPE" for letter in _PREFIXES[scheme])
        raise DataError(f"tags: expected O, {expected} ({scheme}), found {tag!r}")
    return _PREFIXES[scheme][match[1].upper()], match[2] or UNNAMED


def _form(tag: str) -> str:
    match = _TAG.fullmatch(tag)
    return "other" if match is None else "typed" if match[2] else "bare"


def _named(choice: str, names: Sequence[str]) -> str:
    """Returns the scheme that the user names; DataError if the tags do not have it."""
    scheme = _NAMES.get("".join(sorted(choice.upper())))
    if scheme is None:
        raise ConfigError(f"tag scheme: expected auto or {', '.join(SCHEMES)}, got {choice!r}")
    if scheme != PLAIN:
        TagSet.make(names, scheme)
    return scheme


def _without_prefixes(tags: Sequence[str], counts: Counter[str]) -> str:
    """Distinguishes IO without prefixes (mostly O) from plain labels (parts of speech)."""
    if all(map(_PREFIX_LAST.fullmatch, tags)):
        raise DataError(
            f"tags: expected the prefix first (B-PER), found {', '.join(tags[:5])}; {_ADVICE}"
        )
    return "IO" if counts.most_common(1)[0][0] in _OUTSIDE else PLAIN
