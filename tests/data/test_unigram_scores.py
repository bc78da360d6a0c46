"""Scores of a Unigram tokenizer.json are the same numbers for Python and the tokenizers library."""

from __future__ import annotations

import json
import random
import struct

import pytest
import tokenizers

from flaxbert.data.unigram_scores import respelled


@pytest.mark.parametrize("single", [False, True])
def test_both_readers_get_the_same_scores(single):
    """Also those of SentencePiece, which are float32."""
    chance = random.Random(0)
    scores = [-chance.uniform(0, 20) for _ in range(4000)] + [0.0, -1e-7, -2.5, -1e-30, -5e-324]
    if single:
        scores = [struct.unpack("f", struct.pack("f", score))[0] for score in scores]
    vocabulary = [(f"piece {number}", score) for number, score in enumerate(scores)]
    saved = tokenizers.Tokenizer(tokenizers.models.Unigram(vocabulary, 0)).to_str(pretty=True)

    def differ(file: bytes) -> int:
        values = json.loads(file)["model"]["vocab"]
        assert [score for _, score in values] == scores
        read = json.loads(tokenizers.Tokenizer.from_buffer(file).to_str())["model"]["vocab"]
        return sum(one != other for (_, one), (_, other) in zip(values, read, strict=True))

    assert differ(saved.encode()) > 400
    assert differ(respelled(saved.encode())) < 20
    assert respelled(respelled(saved.encode())) == respelled(saved.encode())
