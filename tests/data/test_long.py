"""Texts over max_length: which tokens stay, against transformers' own tokenizer."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import AutoTokenizer

from flaxbert.data.long import LONG, cut_for, cut_middle, windows
from flaxbert.data.tokenize import Tokenizer

WORDS = ["the", "of", "and", "to", "in", "is", "that", "for", "it", "as", "was", "with"]


def _text(count: int, seed: int) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, count))


@pytest.fixture(scope="module")
def ours(minilm):
    return Tokenizer(minilm, vocab_size=30522, pad_token_id=0)


@pytest.fixture(scope="module")
def theirs(minilm):
    tokenizer = AutoTokenizer.from_pretrained(str(minilm))
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()
    return tokenizer


def _sequences(tokens) -> list[tuple[list[int], list[int]]]:
    bounds = zip(tokens.offsets[:-1], tokens.offsets[1:], strict=True)
    return [
        (tokens.input_ids[a:b].tolist(), tokens.token_type_ids[a:b].tolist()) for a, b in bounds
    ]


@pytest.mark.parametrize("count", [29, 30, 31, 45, 46, 200])
@pytest.mark.parametrize("stride", [0, 7, 15])
def test_windows_are_those_of_transformers(count, stride, ours, theirs):
    texts = [_text(count, 1), _text(3, 2), _text(2 * count, 3)]
    tokens = ours.encode(texts, None, max_length=32, cut=cut_for("window", stride))
    expected = theirs(
        texts, truncation=True, max_length=32, stride=stride, return_overflowing_tokens=True
    )
    assert [ids for ids, _ in _sequences(tokens)] == expected["input_ids"]
    owners = np.arange(3) if tokens.owners is None else tokens.owners
    assert owners.tolist() == expected["overflow_to_sample_mapping"]
    assert tokens.truncated == sum(length > 30 for length in (count, 2 * count))


@pytest.mark.parametrize(
    ("first", "second", "strategy"), [(60, 6, "only_first"), (6, 60, "only_second")]
)
def test_windows_of_pairs_are_those_of_transformers(first, second, strategy, ours, theirs):
    pair = [_text(first, 1)], [_text(second, 2)]
    tokens = ours.encode(*pair, max_length=32, cut=cut_for("window", 5))
    expected = theirs(
        *pair, truncation=strategy, max_length=32, stride=5, return_overflowing_tokens=True
    )
    found = [list(column) for column in zip(*_sequences(tokens), strict=True)]
    assert found == [expected["input_ids"], expected["token_type_ids"]]
    assert len(found[0]) > 2


def test_two_long_texts_share_the_room_and_windows_still_go_on(ours):
    """29 of 32 places; the shorter text gets 14, the windows 15 and at most 7 in common."""
    tokens = ours.encode([_text(40, 1)], [_text(30, 2)], max_length=32, cut=cut_for("window", 15))
    sequences = _sequences(tokens)
    assert all(sum(types) == 15 for _, types in sequences)  # 14 and [SEP]
    assert [len(ids) for ids, _ in sequences] == [32, 32, 32, 32, 25]
    firsts = [ids[1 : types.index(1) - 1] for ids, types in sequences]
    rebuilt = firsts[0] + [token for part in firsts[1:] for token in part[7:]]
    whole = _sequences(ours.encode([_text(40, 1)], None, max_length=128))[0][0]
    assert rebuilt == whole[1:-1]


def test_head_and_tail_of_510_tokens_are_128_and_382():
    special = np.zeros(1000, bool)
    special[[0, -1]] = True
    (kept,) = cut_middle(special, 512)
    expected = [0, *range(1, 129), *range(999 - 382, 999), 999]
    assert np.flatnonzero(kept).tolist() == expected


@pytest.mark.parametrize("long", ["truncate", "head_tail"])
def test_cut_pairs_keep_as_many_tokens_as_longest_first(long, ours, theirs):
    for first, second in ((60, 6), (6, 60), (40, 40), (14, 90), (29, 1)):
        pair = [_text(first, 1)], [_text(second, 2)]
        ((ids, types),) = _sequences(ours.encode(*pair, max_length=32, cut=cut_for(long, 0)))
        expected = theirs(*pair, truncation="longest_first", max_length=32)
        assert types == expected["token_type_ids"][0]
        whole = theirs(*pair)["input_ids"][0]
        if long == "truncate":
            assert ids == expected["input_ids"][0]
        elif len(whole) > 32:
            # The pair's last token before [SEP] stays if its text was cut.
            assert ids != expected["input_ids"][0]
            assert ids[-2] == whole[-2] and ids[1] == whole[1]


@pytest.mark.parametrize("long", LONG)
def test_short_texts_stay_as_they_are(long, ours):
    texts = ["a fine film", "", _text(30, 4)]
    plain = ours.encode(texts, None, max_length=512)
    tokens = ours.encode(texts, None, max_length=32, cut=cut_for(long, 3))
    assert tokens.truncated == 0 and tokens.owners is None
    assert tokens.digest() == plain.digest()


def test_windows_of_a_very_long_text_take_little_memory():
    """A mask for each window would be 3 GB here."""
    special = np.zeros(500_000, bool)
    special[[0, -1]] = True
    found = windows(special, 128, 32)
    assert sum(part.nbytes for part in found) < 50e6
    assert len(found) > 5000 and found[-1][-1] == 499_999
