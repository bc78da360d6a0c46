"""Every tag scheme is told by its tags, read into entities and turned into IOB2."""

from __future__ import annotations

import numpy as np
import pytest

from flaxbert.errors import ConfigError, DataError
from flaxbert.metrics.tag_schemes import (
    TagSet,
    flatten,
    iob2_labels,
    irregular_words,
    scheme_for,
    to_iob2,
)

# First, middle, last and single word of an entity.
LETTERS = {"IOB2": "BIIB", "BIOES": "BIES", "BILOU": "BILU", "BMES": "BMES", "IO": "IIII"}
TYPES = ("PER", "creative-work", "O", "B-x", "per_son")


def entity_spans(tags: list[str], scheme: str) -> list[tuple[str, int, int]]:
    """Returns (type, first word, word after the last) of each entity of one sentence."""
    names, ids, sentences = flatten([tags])
    tag_set = TagSet.make(names, scheme)
    types, start, end, _ = (column.tolist() for column in tag_set.entities(ids, sentences))
    return [(tag_set.types[kind], *place) for kind, *place in zip(types, start, end, strict=True)]


def write(length: int, entities: list[tuple[str, int, int]], scheme: str) -> list[str]:
    """Returns a sentence's tags, word by word."""
    tags = ["O"] * length
    for kind, start, end in entities:
        if scheme == "IOB1":
            touches = any(other[0] == kind and other[2] == start for other in entities)
            letters = "B" * touches + "I" * (end - start - touches)
        else:
            first, middle, last, single = LETTERS[scheme]
            letters = single if end == start + 1 else first + middle * (end - start - 2) + last
        tags[start:end] = [f"{letter}-{kind}" for letter in letters]
    return tags


def sentences(seed: int, apart: bool) -> list[tuple[int, list[tuple[str, int, int]]]]:
    """Returns (length, entities); `apart` keeps an O between any two."""
    generator, rows = np.random.default_rng(seed), []
    for _ in range(30):
        entities, place = [], 0
        for _ in range(generator.integers(0, 5)):
            start = place + int(generator.integers(int(apart), 3))
            place = start + int(generator.integers(1, 4))
            entities.append((TYPES[generator.integers(len(TYPES))], start, place))
        rows.append((place + int(generator.integers(0, 2)), entities))
    return rows


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("scheme", ["IOB1", *LETTERS])
def test_every_scheme_is_told_read_and_converted(scheme, seed):
    rows = sentences(seed, apart=scheme == "IO")
    tags = [write(*row, scheme) for row in rows]
    # Without neighbours of one type, tags of IO with I- are IOB1.
    assert scheme_for(tags) == ("IOB1" if scheme == "IO" else scheme)
    assert scheme_for(tags, scheme) == scheme
    assert [entity_spans(row, scheme) for row in tags] == [entities for _, entities in rows]
    assert irregular_words(tags, scheme) == []
    assert to_iob2(tags, scheme) == [write(*row, "IOB2") for row in rows]


@pytest.mark.parametrize(
    ("scheme", "tags"),
    {
        "I only": ("IOB1", ["I-PER", "I-PER", "O"]),
        "B only": ("IOB2", ["B-PER", "O"]),
        "as many contradict IOB1 as IOB2": ("IOB2", ["B-PER", "O", "I-PER"]),
        "mostly IOB2": ("IOB2", ["B-A", "O", "B-A", "I-A", "O", "I-A"]),
        "mostly IOB1": ("IOB1", ["I-A", "O", "I-A", "B-A", "O", "B-A"]),
        "no long entity": ("BIOES", ["B-A", "E-A", "S-A"]),
        "single words": ("BILOU", ["U-A", "O"]),
        "neither": ("plain", ["NOUN", "VERB", "PUNCT"]),
        "parts of speech, some a letter": ("plain", ["N", "V", "S", "N", "O"]),
        "types without prefixes": ("IO", ["person-actor", "person-actor", "O", "O", "O"]),
    }.values(),
)
def test_detection(scheme, tags):
    assert scheme_for([tags]) == scheme


@pytest.mark.parametrize(
    ("given", "iob2"),
    {
        "lower case": (["b-per", "i-per", "o"], ["B-per", "I-per", "O"]),
        "lower case of IOB1": (["i-per", "i-per", "b-per"], ["B-per", "I-per", "B-per"]),
        "underscore": (["B_PER", "I_PER", "O"], ["B-PER", "I-PER", "O"]),
        "bare": (["B", "I", "O", "B"], ["B-entity", "I-entity", "O", "B-entity"]),
        "bare with dash": (["B-", "I-", "O"], ["B-entity", "I-entity", "O"]),
        "bare BMES": (["B", "M", "E", "S"], ["B-entity", "I-entity", "I-entity", "B-entity"]),
        "no prefix": (["A", "A", "B", "O", "O", "O"], ["B-A", "I-A", "B-B", "O", "O", "O"]),
    }.values(),
)
def test_unusual_spelling(given, iob2):
    assert to_iob2([given], scheme_for([given])) == [iob2]


@pytest.mark.parametrize(
    ("tags", "message"),
    {
        "mixed": (["B-PER", "NOUN", "O"], "expected all of one form, found 'B-PER' beside 'NOUN'"),
        "bare and typed": (["B", "B-PER"], "found 'B' beside 'B-PER'"),
        "two schemes": (["B-A", "E-A", "L-A"], "found B, E, L \\(as in B-A, E-A, L-A\\)"),
        "letters of no scheme": (["M", "U"], "found M, U"),
        "prefix last": (["PER-B", "PER-I", "O"], "expected the prefix first .* found PER-B, PER-I"),
        "no entity": (["O", "O"], "found only O"),
        "nothing": ([], "found no word"),
    }.values(),
)
def test_refused(tags, message):
    with pytest.raises(DataError, match=message):
        scheme_for([tags])


@pytest.mark.parametrize(
    ("choice", "scheme"),
    {"BIO": "IOB2", "iob": "IOB2", "IOBES": "BIOES", "biluo": "BILOU", "bmeso": "BMES"}.items(),
)
def test_choice_may_be_spelled_in_other_ways(choice, scheme):
    assert scheme_for([["B-A", "O"]], choice) == scheme


def test_choice():
    assert scheme_for([["B-PER", "NOUN"]], "plain") == "plain"
    assert scheme_for([["A", "B", "O"]], "IO") == "IO"
    assert to_iob2([["I-A", "I-A", "O"]], "IO") == [["B-A", "I-A", "O"]]
    with pytest.raises(ConfigError, match=r"expected auto or IOB1, .*, got 'IOE1'"):
        scheme_for([["B-A"]], "IOE1")
    with pytest.raises(DataError, match=r"expected O, B-TYPE, I-TYPE \(IOB2\), found 'E-A'"):
        scheme_for([["B-A", "E-A"]], "IOB2")
    with pytest.raises(DataError, match=r"expected O, I-TYPE \(IO\), found 'B-A'"):
        scheme_for([["B-A", "I-A"]], "IO")


@pytest.mark.parametrize(
    ("scheme", "tags", "spans", "irregular"),
    {
        "I after O": ("IOB2", "O I-A I-A", [("A", 1, 3)], [1]),
        "I after another type": ("IOB2", "B-A I-B I-B", [("A", 0, 1), ("B", 1, 3)], [1]),
        "IOB1, B at the start": ("IOB1", "B-A I-A I-B", [("A", 0, 2), ("B", 2, 3)], [0]),
        "IOB1, B of another type": ("IOB1", "I-A B-B", [("A", 0, 1), ("B", 1, 2)], [1]),
        "IOB1, types change": ("IOB1", "I-A I-B B-B", [("A", 0, 1), ("B", 1, 2), ("B", 2, 3)], []),
        "no E": ("BIOES", "B-A I-A O S-A", [("A", 0, 2), ("A", 3, 4)], [1]),
        "no B": ("BIOES", "I-A E-A", [("A", 0, 2)], [0]),
        "E twice": ("BIOES", "B-A E-A E-A", [("A", 0, 2), ("A", 2, 3)], [2]),
        "I after S": ("BIOES", "S-A I-A E-A", [("A", 0, 1), ("A", 1, 3)], [1]),
        "B for U": ("BILOU", "B-A O", [("A", 0, 1)], [0]),
        "L without M": ("BMES", "B-A E-A B-A", [("A", 0, 2), ("A", 2, 3)], [2]),
    }.values(),
)
def test_irregular_tags_are_read_and_told(scheme, tags, spans, irregular):
    tags = tags.split()
    assert entity_spans(tags, scheme) == spans
    # Behind a sentence that ends inside an entity: none reaches over.
    rows = [write(2, [("A", 0, 2)], "IOB2" if scheme[:3] == "IOB" else scheme), [], tags]
    assert [word for row, word in irregular_words(rows, scheme) if row == 2] == irregular
    length = len(tags)
    assert to_iob2(rows, scheme)[1:] == [[], write(length, spans, "IOB2")]
    assert irregular_words(to_iob2(rows, scheme), "IOB2") == []


def test_labels_are_complete():
    assert iob2_labels(["PER", "LOC", "PER"]) == ["B-LOC", "B-PER", "I-LOC", "I-PER", "O"]
