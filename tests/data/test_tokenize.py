"""Token ids are those of the transformers tokenizer; limits come from the run, not from the file.

The reference is a tokenizer that transformers builds from vocab.txt alone: it never sees
tokenizer.json, whose own truncation and padding must have no effect.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

import flaxbert.data.tokenize as tokenize
from flaxbert.data.tokenize import Tokenizer, Tokens, resolve_max_length
from flaxbert.data.tokenizer_files import FILES, files_in, write_files
from flaxbert.errors import ConfigError, ModelFileError
from flaxbert.weights import resolve
from tests.data.tokenizer_folders import (
    ROBERTA_SPECIAL,
    write_bpe,
    write_byte_level,
    write_settings,
    write_unigram,
)

VOCAB = 30522  # of the embedded checkpoint
CLS, SEP, UNK = 101, 102, 100

# The same examples in every run, so that a failure is a failure everywhere.
PROPERTY = settings(max_examples=150, deadline=None, derandomize=True)


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)

SENTENCES = [
    "The film is a quiet triumph, and its last half-hour is unforgettable.",
    "don't I'd we'll U.S.A. 3.14 1,000,000 $5 50% e-mail a_b c++",
    "unaffable pneumonoultramicroscopicsilicovolcanoconiosis antidisestablishmentarianism",
    "",
    " ",
    "\t tabs\nand\r\nnew lines\u00a0and\u2003wide spaces ",
    "Crème brûlée, naïve façade, ÅNGSTRÖM, İstanbul, straße, e\u0301",
    "你好，世界。日本語のテキスト 한국어 텍스트",
    "Привет мир Ελληνικά עברית العربية हिन्दी ไทย",
    "😀 👩‍👩‍👧‍👦 🇩🇪 ❤️ text😀text",
    "zero\u200bwidth \u202eright to left\u202c \ufeffmark \x00nul \x7f \ufffd",
    "[CLS] in a text [SEP] [MASK] [UNK] [PAD] [unused1]",
    "x" * 300,
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 ｆｕｌｌｗｉｄｔｈ ﬁ ligature Ⅷ ½",
    "love it \U0001fa77 \u1acf x",  # of later Unicode versions than the tokenizer's tables
    "word " * 90,
]


@pytest.fixture(scope="module")
def tokenizer(minilm) -> Tokenizer:
    return Tokenizer(minilm, vocab_size=VOCAB, pad_token_id=0)


@pytest.fixture(scope="module")
def reference(minilm, tmp_path_factory):
    from transformers import BertTokenizer

    folder = tmp_path_factory.mktemp("vocabulary")
    shutil.copy(minilm / "vocab.txt", folder)
    return BertTokenizer.from_pretrained(str(folder), local_files_only=True)


def sequences(tokens: Tokens) -> list[tuple[list[int], list[int]]]:
    """Returns (ids, types) of each sequence."""
    bounds = list(zip(tokens.offsets[:-1], tokens.offsets[1:], strict=True))
    return [
        (tokens.input_ids[a:b].tolist(), tokens.token_type_ids[a:b].tolist()) for a, b in bounds
    ]


def expected(reference, texts, pairs, max_length: int) -> list[tuple[list[int], list[int]]]:
    # Asked as a list: asked for one pair alone, transformers takes an empty second text for none.
    rows = reference(texts, pairs, truncation="longest_first", max_length=max_length)
    # Without types a model takes 0.
    types = rows.get("token_type_ids") or [[0] * len(ids) for ids in rows["input_ids"]]
    return list(zip(rows["input_ids"], types, strict=True))


# --- equal to transformers ----------------------------------------------------------------------


def test_known_ids(tokenizer):
    tokens = tokenizer.encode(["Hello world", ""], ["again", ""], max_length=16)
    assert sequences(tokens) == [
        ([CLS, 7592, 2088, SEP, 2153, SEP], [0, 0, 0, 0, 1, 1]),
        ([CLS, SEP, SEP], [0, 0, 1]),
    ]
    assert sequences(tokenizer.encode([""], None, max_length=16)) == [([CLS, SEP], [0, 0])]


@pytest.mark.parametrize("max_length", [5, 17, 512])
def test_sentences_equal_transformers(tokenizer, reference, max_length):
    tokens = tokenizer.encode(SENTENCES, None, max_length=max_length)
    assert sequences(tokens) == expected(reference, SENTENCES, None, max_length)


@pytest.mark.parametrize("max_length", [5, 17, 64, 512])
def test_pairs_equal_transformers(tokenizer, reference, max_length):
    texts = [text for text in SENTENCES for _ in SENTENCES]
    pairs = SENTENCES * len(SENTENCES)
    tokens = tokenizer.encode(texts, pairs, max_length=max_length)
    assert sequences(tokens) == expected(reference, texts, pairs, max_length)


@PROPERTY
@given(
    texts=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=4), max_length=st.integers(5, 40)
)
def test_any_text_equals_transformers(tokenizer, reference, texts, max_length):
    firsts, seconds = [a for a, _ in texts], [b for _, b in texts]
    for pairs in (None, seconds):
        tokens = tokenizer.encode(firsts, pairs, max_length=max_length)
        assert sequences(tokens) == expected(reference, firsts, pairs, max_length)


def test_shares_of_a_long_list_are_joined_in_order(tokenizer, monkeypatch):
    whole = tokenizer.encode(SENTENCES, SENTENCES[::-1], max_length=20)
    monkeypatch.setattr(tokenize, "_CHUNK", 4)
    parts = tokenizer.encode(SENTENCES, SENTENCES[::-1], max_length=20)
    assert sequences(parts) == sequences(whole)
    assert (parts.truncated, parts.unknown_share) == (whole.truncated, whole.unknown_share)
    lengths = [len(ids) for ids, _ in tokenizer.encode_with_offsets(SENTENCES)]
    assert lengths == (tokenizer.encode(SENTENCES, None, max_length=999).lengths - 2).tolist()
    words = [row.split() for row in SENTENCES]
    monkeypatch.undo()
    lengths = [len(ids) for ids, _ in tokenizer.encode_words(words)]
    monkeypatch.setattr(tokenize, "_CHUNK", 4)
    assert [len(ids) for ids, _ in tokenizer.encode_words(words)] == lengths


# --- truncation ---------------------------------------------------------------------------------


def test_long_sentences_are_cut_at_the_end_and_counted(tokenizer):
    texts = ["one two three four", "one two three four five", "one " * 600, ""]
    tokens = tokenizer.encode(texts, None, max_length=6)
    assert tokens.lengths.tolist() == [6, 6, 6, 2]
    assert tokens.truncated == 2  # the first fits exactly
    assert tokens.uncut_lengths is not None
    assert tokens.uncut_lengths.tolist() == [6, 7, 602, 2]
    assert tokenizer.encode(texts, None, max_length=602).uncut_lengths is None
    whole = sequences(tokenizer.encode(texts, None, max_length=10_000))
    for (cut, _), (full, _) in zip(sequences(tokens), whole, strict=True):
        assert cut == (full if len(full) <= 6 else [*full[:5], SEP])


def test_the_longer_of_a_pair_is_cut_first(tokenizer):
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    ids = tokenizer.encode([" ".join(words)], None, max_length=64).input_ids[1:-1].tolist()
    assert len(ids) == 10
    for first, second, room, kept in [
        (10, 2, 9, (7, 2)),  # only the longer one loses tokens
        (2, 10, 9, (2, 7)),
        (10, 10, 8, (4, 4)),  # both alike
        (10, 10, 9, (4, 5)),
        (10, 9, 9, (5, 4)),
        (10, 0, 9, (9, 0)),
        (0, 10, 9, (0, 9)),
        (5, 3, 8, (5, 3)),  # nothing to cut
    ]:
        texts, pairs = [" ".join(words[:first])], [" ".join(words[:second])]
        tokens = tokenizer.encode(texts, pairs, max_length=room + 3)
        a, b = kept
        assert tokens.input_ids.tolist() == [CLS, *ids[:a], SEP, *ids[:b], SEP]
        assert tokens.token_type_ids.tolist() == [0] * (a + 2) + [1] * (b + 1)
        assert tokens.truncated == (first + second > room)


def test_two_very_long_texts_are_cut_in_linear_time_and_memory(tokenizer):
    # transformers' own truncation takes gigabytes and minutes for this pair.
    tokens = tokenizer.encode(["one " * 30_000], ["two " * 30_000], max_length=128)
    one, two = tokenizer.encode(["one two"], None, max_length=8).input_ids[1:-1].tolist()
    assert tokens.input_ids.tolist() == [CLS, *[one] * 62, SEP, *[two] * 63, SEP]
    assert tokens.truncated == 1


def test_limits_of_the_file_are_ignored(minilm, tokenizer):
    stored = json.loads((minilm / "tokenizer.json").read_text("utf-8"))
    assert stored["truncation"]["max_length"] == 128  # there is something to ignore
    assert stored["padding"]["strategy"] == {"Fixed": 128}
    tokens = tokenizer.encode(["word", "word " * 300], None, max_length=512)
    assert tokens.lengths.tolist() == [3, 302]
    assert tokens.truncated == 0
    # One long call must not leave its own limit behind.
    tokenizer.encode(["word " * 300], None, max_length=8)
    assert tokenizer.encode(["word " * 300], None, max_length=512).lengths.tolist() == [302]


# --- what comes back ----------------------------------------------------------------------------


def test_arrays(tokenizer):
    tokens = tokenizer.encode(["a b", "c"], None, max_length=8)
    assert len(tokens) == 2
    assert tokens.offsets.tolist() == [0, 4, 7]
    assert tokens.lengths.tolist() == [4, 3]
    assert (tokens.input_ids.dtype, tokens.token_type_ids.dtype) == (np.uint16, np.uint8)


@pytest.mark.parametrize("pairs", [None, []])
def test_nothing_to_encode(tokenizer, pairs):
    tokens = tokenizer.encode([], pairs, max_length=8)
    assert (len(tokens), tokens.offsets.tolist(), tokens.truncated) == (0, [0], 0)
    assert tokens.unknown_share == 0.0
    assert tokens.input_ids.dtype == np.uint16


def test_unknown_share_leaves_special_tokens_out(tokenizer):
    # Emoji of these two kinds are not in the vocabulary.
    tokens = tokenizer.encode(["hello 🦖 world 🦕"], None, max_length=16)
    assert tokens.input_ids.tolist() == [CLS, 7592, UNK, 2088, UNK, SEP]
    assert tokens.unknown_share == 0.5
    assert tokenizer.encode(["", ""], None, max_length=16).unknown_share == 0.0
    assert tokenizer.encode(["🦖"], None, max_length=16).unknown_share == 1.0


def test_digest_is_that_of_the_tokens_as_32_bits(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenize, "_HASHED", 5)  # a run of any version finds its data again
    tokens = tokenizer.encode(["a b", "c", ""], None, max_length=16)
    sha = hashlib.sha256()
    sha.update(np.array([CLS, 1037, 1038, SEP, CLS, 1039, SEP, CLS, SEP], np.int32).tobytes())
    sha.update(np.zeros(9, np.int32).tobytes())
    sha.update(np.array([0, 4, 7, 9], np.int64).tobytes())
    assert tokens.digest() == sha.hexdigest()


def test_digest_tells_data_apart(tokenizer):
    def digest(texts, pairs=None, max_length=16):
        return tokenizer.encode(texts, pairs, max_length=max_length).digest()

    base = digest(["a b", "c"])
    assert base == digest(["a b", "c"])
    others = [
        digest(["a b", "d"]),
        digest(["c", "a b"]),
        digest(["a b"]),
        digest(["a b", "c", ""]),
        digest(["a b", "c"], max_length=3),
        digest(["a b", "c"], ["", ""]),
    ]
    assert len({base, *others}) == len(others) + 1
    # Boundaries and types count, not only the run of ids.
    ids, types = np.array([1, 2, 3], np.int32), np.zeros(3, np.int32)
    parts = [
        Tokens(ids, types, np.array([0, 1, 3]), 0, 0.0),
        Tokens(ids, types, np.array([0, 2, 3]), 0, 0.0),
        Tokens(ids, types + 1, np.array([0, 1, 3]), 0, 0.0),
    ]
    assert len({part.digest() for part in parts}) == 3


# --- words and offsets --------------------------------------------------------------------------

SPLIT = [
    ["don't", "stop", ":", "U.S.A.", "3.14"],
    ["Crème", "brûlée", "e\u0301tude", "ÅNGSTRÖM"],
    ["你好", "，", "世界", "日本語の", "한국어"],
    ["I", "❤\ufe0f", "👩\u200d👧", "text😀text", "🇩🇪"],
    ["", "\u200b", "\ufe0f", "\xad", "\u3000", "hello", ""],
    ["\u200b"],
    [],
    ["[SEP]", "unaffable", " two words ", "\x00"],
]


def test_words_have_the_pieces_that_the_tokenizer_gives_them(tokenizer, reference):
    theirs = reference(SPLIT, is_split_into_words=True, add_special_tokens=False)
    for row, ((ids, words), sentence) in enumerate(
        zip(tokenizer.encode_words(SPLIT), SPLIT, strict=True)
    ):
        assert (ids.dtype, words.dtype) == (np.int32, np.int32)
        present = set(theirs.word_ids(row))
        lacking = [word for word in range(len(sentence)) if word not in present]
        kept = ~np.isin(words, lacking)
        assert ids[kept].tolist() == theirs["input_ids"][row]
        assert words[kept].tolist() == theirs.word_ids(row)
        assert ids[~kept].tolist() == [UNK] * len(lacking)
        assert words.tolist() == sorted(words.tolist())
        assert set(words.tolist()) == set(range(len(sentence)))  # a piece for each
    assert tokenizer.encode_words([]) == []


def test_words_without_a_piece_become_unknown(tokenizer):
    ((ids, words),) = tokenizer.encode_words([SPLIT[4]])
    assert ids.tolist() == [UNK, UNK, UNK, UNK, UNK, 7592, UNK]
    assert words.tolist() == list(range(7))


def test_words_by_a_tokenizer_in_python(minilm, tmp_path):
    folder = copy_folder(minilm, tmp_path / "made")
    for change in FOLDERS["in Python"]:
        change(folder)
    tokenizer = load(folder)
    ((ids, words), _) = tokenizer.encode_words([["a", "\u200b", "bc"], []])
    whole = tokenizer.encode(["a bc"], None, max_length=9).input_ids.tolist()
    assert ids.tolist() == [whole[1], UNK, *whole[2:-1]]
    assert words.tolist() == [0, 1, *[2] * (len(whole) - 3)]
    with pytest.raises(ModelFileError, match="BertJapaneseTokenizer does not tell where"):
        tokenizer.encode_with_offsets(["a"])


def test_offsets_count_code_points_of_the_text_as_it_was_given(tokenizer):
    text = "Café e\u0301 \U0001f600\u200b 你好\u3000films, Nai\u0308ve"
    ((ids, offsets), (none, nothing)) = tokenizer.encode_with_offsets([text, "\u200b"])
    assert [text[a:b] for a, b in offsets] == [
        *("Café", "e", "😀", "你", "好", "films", ",", "Nai\u0308ve"),
    ]
    assert ids.tolist() == tokenizer.encode([text], None, max_length=64).input_ids[1:-1].tolist()
    assert none.shape == (0,) and nothing.shape == (0, 2)


@PROPERTY
@given(text=TEXTS)
def test_offsets_of_any_text_lead_back_to_it(tokenizer, text):
    ((ids, offsets),) = tokenizer.encode_with_offsets([text])
    assert ids.tolist() == tokenizer.encode([text], None, max_length=999).input_ids[1:-1].tolist()
    assert offsets.shape == (len(ids), 2)
    assert (offsets >= 0).all() and (offsets <= len(text)).all()
    assert (offsets[:, 0] < offsets[:, 1]).all()
    assert (np.diff(offsets[:, 0]) >= 0).all()


def test_ids_of_the_special_tokens(tokenizer):
    ids = (tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.unk_token_id)
    assert ids == (CLS, SEP, UNK)


@pytest.mark.usefixtures("unchecked")
def test_half_of_a_surrogate_pair_is_told(tokenizer):
    for encode in (
        lambda: tokenizer.encode(["a", "b\ud83d"], None, max_length=9),
        lambda: tokenizer.encode(["a"], ["b\ud83d"], max_length=9),
        lambda: tokenizer.encode_words([["a", "b\ud83d"]]),
        lambda: tokenizer.encode_with_offsets(["b\ud83d"]),
    ):
        with pytest.raises(ValueError, match=r"^half of a surrogate pair in the text 'b.ud83d'"):
            encode()


# --- folders ------------------------------------------------------------------------------------


def folder_of(minilm: Path, tmp_path: Path, *names: str) -> Path:
    for name in names:
        shutil.copy(minilm / name, tmp_path)
    return tmp_path


def load(folder: Path, vocab_size: int = VOCAB, pad_token_id: int | None = 0) -> Tokenizer:
    return Tokenizer(folder, vocab_size=vocab_size, pad_token_id=pad_token_id)


@pytest.mark.parametrize(
    "names",
    [
        ("vocab.txt",),
        ("vocab.txt", "config.json"),
        ("vocab.txt", "tokenizer_config.json"),
        ("tokenizer.json", "config.json"),
        ("tokenizer.json",),
    ],
)
def test_folders_that_are_enough(minilm, tmp_path, reference, names):
    tokenizer = load(folder_of(minilm, tmp_path, *names))
    tokens = tokenizer.encode(SENTENCES, None, max_length=32)
    assert sequences(tokens) == expected(reference, SENTENCES, None, 32)


def test_a_cased_vocabulary_keeps_its_case(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "Hello"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    tokens = load(tmp_path, 7).encode(["Hello hello HELLO"], None, max_length=8)
    assert tokens.input_ids.tolist() == [2, 6, 5, 1, 3]


def refusal(*args, **kwargs) -> str:
    with pytest.raises(ModelFileError) as caught:
        load(*args, **kwargs)
    assert caught.value.exit_code == 4
    return str(caught.value)


def test_no_vocabulary(minilm, tmp_path):
    # transformers would give a 5-token tokenizer here, and every word would be [UNK].
    folder = folder_of(minilm, tmp_path, "config.json", "tokenizer_config.json")
    message = refusal(folder)
    assert message.startswith(f"{folder}: has neither tokenizer.json nor vocab.txt. Copy")
    assert "has neither" in refusal(tmp_path / "nowhere")


def test_more_tokens_than_embeddings(minilm):
    message = refusal(minilm, vocab_size=VOCAB - 1)
    assert "the tokenizer has 30522 tokens, the model 30521 embeddings" in message
    load(minilm, vocab_size=VOCAB + 6)  # some models round the number of embeddings up


def test_another_padding_id_is_told(minilm):
    (warning,) = load(minilm, pad_token_id=1).warnings
    assert "pads with '[PAD]' (id 0), config.json says pad_token_id 1, which is '[unused0]'" in (
        warning
    )
    assert load(minilm, pad_token_id=None).warnings == ()


TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "world", "##s"]


def write_vocabulary(folder: Path, tokens: list[str], **settings: object) -> Path:
    (folder / "vocab.txt").write_text("".join(token + "\n" for token in tokens))
    if settings:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("tokenizer.json", b"{", "JSONDecodeError"),
        ("tokenizer.json", b"[]", "AttributeError"),
        ("tokenizer.json", b"{}", "KeyError: 'model'"),
        ("tokenizer.json", b'{"model": {"vocab": {"a": 0}}}', "KeyError"),
        ("tokenizer.json", b'{"model": ' + b"[" * 100_000, "RecursionError"),
        ("vocab.txt", b"[PAD]\n\xff\xfe\n", "UnicodeDecodeError"),
    ],
)
def test_unreadable_files(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    message = refusal(tmp_path)
    assert f"{tmp_path}: the tokenizer files cannot be read: " in message
    assert said in message
    assert message.endswith("Copy those of the checkpoint again.")


def test_settings_that_are_no_json(tmp_path):
    write_vocabulary(tmp_path, TOKENS)
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case":')
    assert "the tokenizer files cannot be read: JSONDecodeError" in refusal(tmp_path, 8)


@pytest.mark.parametrize("name", ["cls", "sep", "unk"])
def test_a_vocabulary_without_a_bert_token(tmp_path, name):
    # transformers appends the missing token; a padded embedding table would have room for it.
    missing = f"[{name.upper()}]"
    write_vocabulary(tmp_path, [token for token in TOKENS if token != missing])
    assert f"the tokenizer has no {name} token. Copy all tokenizer files" in refusal(tmp_path, 16)
    write_vocabulary(tmp_path, [])
    assert "the tokenizer has no cls token" in refusal(tmp_path, 16)
    # transformers looks for the id of an empty unknown token without end.
    write_vocabulary(tmp_path, TOKENS, **{f"{name}_token": ""})
    assert f"the tokenizer has no {name} token" in refusal(tmp_path, 16)


def test_a_byte_order_mark_before_the_vocabulary(tmp_path):
    # transformers makes it a part of the first token and invents another [PAD] at the end.
    (tmp_path / "vocab.txt").write_text("\ufeff" + "\n".join(TOKENS), "utf-8")
    message = refusal(tmp_path, 16, None)
    assert f"{tmp_path / 'vocab.txt'}: starts with a byte order mark. Save it as UTF-8" in message


@pytest.mark.parametrize("settings", [{}, {"model_max_length": 1e30}, {"model_max_length": 8}])
def test_the_models_own_longest_length_is_the_runs(tmp_path, settings):
    tokens = load(write_vocabulary(tmp_path, TOKENS, **settings), 8).encode(
        ["hello " * 30], None, max_length=20
    )
    assert tokens.lengths.tolist() == [20]


@pytest.mark.parametrize("end", ["\n", "\r\n", " \n"])
def test_line_ends_of_a_vocabulary_do_not_matter(tmp_path, end):
    (tmp_path / "vocab.txt").write_bytes(end.join([*TOKENS, ""]).encode())
    tokens = load(tmp_path, 8).encode(["hello worlds"], None, max_length=8)
    assert tokens.input_ids.tolist() == [2, 5, 6, 7, 3]


def test_a_token_twice_in_a_vocabulary(tmp_path):
    """The last line wins, as in PyTorch; ids stay line numbers, above the number of tokens."""
    write_vocabulary(tmp_path, [*TOKENS[:6], "hello", *TOKENS[6:]])
    assert "the tokenizer has 9 tokens, the model 8 embeddings" in refusal(tmp_path, 8)
    tokens = load(tmp_path, 9).encode(["hello worlds"], None, max_length=8)
    assert tokens.input_ids.tolist() == [2, 6, 7, 8, 3]


def test_a_tokenizer_of_another_family(minilm, tmp_path):
    folder = folder_of(minilm, tmp_path, "tokenizer.json", "tokenizer_config.json")
    values = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    values["post_processor"] = None
    settings = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer.json").write_text(json.dumps(values), "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    assert "gives an empty text the ids [], not [CLS] and [SEP]" in refusal(folder)


def test_casing_of_vocabulary_and_tokenizer(minilm, tmp_path):
    assert load(minilm).warnings == ()
    cased, uncased = [*TOKENS, "Hello", "##S"], TOKENS
    for tokens, lower, said in (
        (cased, False, None),
        (uncased, True, None),
        (cased, True, "2 of 5 words of the vocabulary have capital letters, but texts are lower"),
        (uncased, False, "no word of the vocabulary has a capital letter, but texts keep theirs"),
    ):
        write_vocabulary(tmp_path, tokens, do_lower_case=lower)
        warnings = load(tmp_path, 10).warnings
        assert len(warnings) == (said is not None)
        if said:
            fix = f'set "do_lower_case": {"false" if lower else "true"} in {tmp_path}'
            assert said in warnings[0] and fix in warnings[0]


def test_a_tokenizer_without_bert_tokens(minilm, tmp_path):
    # Without any settings the special tokens of tokenizer.json have no roles.
    folder = folder_of(minilm, tmp_path, "tokenizer.json")
    (folder / "config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    assert f"{tmp_path}: the tokenizer has no cls token" in refusal(folder)


def test_files_of_a_folder(minilm, tmp_path):
    names = {path.name for path in files_in(minilm)}
    assert names == {
        "tokenizer.json",
        "vocab.txt",
        "tokenizer_config.json",
        "special_tokens_map.json",
    }
    assert files_in(tmp_path) == []
    assert set(FILES) < set(resolve._FILES)  # all of them are fetched from a hub


# --- max_length ---------------------------------------------------------------------------------


def test_resolve_max_length():
    assert resolve_max_length(128, 512) == 128
    assert resolve_max_length(0, 512) == 512
    assert resolve_max_length(512, 512) == 512
    assert resolve_max_length(5, 512) == 5


@pytest.mark.parametrize(
    ("asked", "maximum", "said"),
    [
        (513, 512, "max_length=513: the model has 512 positions. Set it to at most 512"),
        (4, 512, "max_length=4: expected at least 5 tokens"),
        (0, 4, "expected at least 5 tokens"),
    ],
)
def test_max_length_out_of_range(asked, maximum, said):
    with pytest.raises(ConfigError) as caught:
        resolve_max_length(asked, maximum)
    assert said in str(caught.value)
    assert caught.value.exit_code == 2


# --- the class, and settings ---------------------------------------------------------------------

NFKC = tokenizers.normalizers.NFKC()
OWN = {
    "type": "Sequence",
    "normalizers": [
        {"type": "Replace", "pattern": {"String": "film"}, "content": "movie"},
        {"type": "Lowercase"},
    ],
}


def settings_of(**values: object):
    """Returns a change of a folder: other entries in tokenizer_config.json (None: no such file)."""

    def change(folder: Path) -> None:
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | values), "utf-8")

    return change


def parts_of(**values: object):
    """Returns a change of a folder: other parts of tokenizer.json."""

    def change(folder: Path) -> None:
        path = folder / "tokenizer.json"
        path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | values), "utf-8")

    return change


def without(*names: str):
    return lambda folder: [(folder / name).unlink() for name in names]


def class_in_config(name: str):
    def change(folder: Path) -> None:
        settings_of(tokenizer_class=None)(folder)
        values = json.loads((folder / "config.json").read_text("utf-8"))
        (folder / "config.json").write_text(json.dumps(values | {"tokenizer_class": name}))

    return change


def added(**tokens: int):
    return lambda folder: (folder / "added_tokens.json").write_text(json.dumps(tokens))


def trained(write, *arguments: object):
    """Returns a change of a folder: another tokenizer, trained on the sentences of this file."""

    def change(folder: Path) -> None:
        for path in files_in(folder):
            path.unlink()
        write(folder, SENTENCES, 700, *arguments)

    return change


WORDS = {"content": "Covid-19", "special": False, "normalized": True}
FOLDERS = {
    "as it came": [],
    "cased": [settings_of(do_lower_case=False)],
    "accents kept": [settings_of(strip_accents=False)],
    "a fast class": [settings_of(tokenizer_class="BertTokenizerFast")],
    "no settings": [without("tokenizer_config.json")],
    "vocab.txt alone": [without("tokenizer.json", "tokenizer_config.json")],
    "a normalizer of its own, not used": [parts_of(normalizer=OWN)],
    "a normalizer of its own, used": [
        parts_of(normalizer=OWN),
        settings_of(tokenizer_class="PreTrainedTokenizerFast"),
    ],
    "a class that is nowhere": [
        parts_of(normalizer=OWN),
        settings_of(tokenizer_class="KoBertTokenizer"),
    ],
    "a class that config.json names": [
        parts_of(normalizer=OWN),
        class_in_config("PreTrainedTokenizerFast"),
    ],
    "another model's class": [settings_of(tokenizer_class="DistilBertTokenizer")],
    "code of its own": [settings_of(auto_map={"AutoTokenizer": ["code.Evil", None]})],
    "added words": [without("tokenizer.json"), added(**{"Covid-19": 30522, "<USER>": 30523})],
    "added words in the settings": [
        settings_of(added_tokens_decoder={"30522": WORDS}),
        without("tokenizer.json"),
    ],
    "more special tokens": [
        without("tokenizer.json", "special_tokens_map.json"),
        settings_of(additional_special_tokens=["<USER>"]),
    ],
    "never split": [
        without("tokenizer.json"),
        settings_of(never_split=["half-hour"], do_basic_tokenize=False),
    ],
    "another vocab.txt beside": [lambda folder: (folder / "vocab.txt").write_text("[PAD]\n")],
    "no token types": [settings_of(model_input_names=["input_ids", "attention_mask"])],
    "BPE": [trained(write_bpe)],
    "BPE of bytes": [trained(write_byte_level)],
    "Unigram": [trained(write_unigram)],
    "Unigram, a normalizer of its own, not used": [trained(write_unigram, NFKC)],
    "Unigram, a normalizer of its own": [trained(write_unigram, NFKC, "PreTrainedTokenizerFast")],
    "in Python": [
        without("tokenizer.json"),
        settings_of(
            tokenizer_class="BertJapaneseTokenizer",
            word_tokenizer_type="basic",
            subword_tokenizer_type="character",
            mecab_kwargs={"mecab_dic": "ipadic", "mecab_option": None},
        ),
    ],
}


@pytest.fixture(params=FOLDERS)
def folder(request, minilm, tmp_path) -> Path:
    """One of the folders, with all files of the embedded checkpoint but its weights."""
    copy_folder(minilm, tmp_path / "made")
    for change in FOLDERS[request.param]:
        change(tmp_path / "made")
    return tmp_path / "made"


def copy_folder(minilm: Path, folder: Path) -> Path:
    shutil.copytree(minilm, folder, ignore=shutil.ignore_patterns("*.safetensors", "*.bin"))
    return folder


def test_ids_are_those_of_autotokenizer(folder, tmp_path):
    """Of each folder, and of what a run exports of it; a second export has the same bytes."""
    from transformers import AutoTokenizer

    texts = [*SENTENCES, "Covid-19! covid-19 hi <USER>!"]
    theirs = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    wanted = expected(theirs, texts, texts[::-1], 20_000)
    tokenizer = load(folder, VOCAB + 2)
    assert sequences(tokenizer.encode(texts, texts[::-1], max_length=20_000)) == wanted

    files = tokenizer.exported(64)
    exported = tmp_path / "exported"
    exported.mkdir()
    write_files(files, exported)
    shutil.copy(folder / "config.json", exported)
    again = load(exported, VOCAB + 2)
    assert sequences(again.encode(texts, texts[::-1], max_length=20_000)) == wanted
    assert again.exported(64) == files
    auto = AutoTokenizer.from_pretrained(str(exported), local_files_only=True)
    assert expected(auto, texts, texts[::-1], 20_000) == wanted
    assert auto.model_max_length == 64
    if auto.is_fast:
        alone = tokenizers.Tokenizer.from_file(str(exported / "tokenizer.json"))
        rows = alone.encode_batch(list(zip(texts, texts[::-1], strict=True)))
        assert [row.ids for row in rows] == [ids for ids, _ in wanted]
        assert [row.type_ids for row in rows] == [types for _, types in wanted]
    assert ("tokenizer.json" in files) == auto.is_fast == (not tokenizer.export_warnings)


def test_special_tokens_can_be_read_by_transformers_4(minilm, tmp_path):
    """Its `extra_special_tokens` is an object; a list there ends it with a traceback."""
    folder = copy_folder(minilm, tmp_path / "made")
    settings_of(additional_special_tokens=["[unused1]"])(folder)
    settings = json.loads(load(folder).exported(64)["tokenizer_config.json"])
    assert settings["additional_special_tokens"] == ["[unused1]"]
    assert "extra_special_tokens" not in settings


def test_a_normalizer_that_is_not_used_is_told(minilm, tmp_path):
    folder = copy_folder(minilm, tmp_path / "made")
    assert load(folder).warnings == ()
    parts_of(normalizer=OWN)(folder)
    (warning,) = load(folder).warnings
    assert "tokenizer.json has another normalizer than transformers uses for Bert" in warning
    assert f'"PreTrainedTokenizerFast" in {folder / "tokenizer_config.json"}' in warning
    settings_of(tokenizer_class="PreTrainedTokenizerFast")(folder)
    assert load(folder).warnings == ()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (
            "KoBertTokenizer",
            ("it is not transformers' own but a program, which is not run",),
        ),
        ("PreTrainedTokenizerFast", ("it reads a tokenizer.json, which is missing. Save",)),
        (
            "BertJapaneseTokenizer",
            ("You need to install fugashi", "pip install fugashi unidic-lite"),
        ),
        (
            "HerbertTokenizer",
            ("reads vocab.json and merges.txt,", "the folder has vocab.txt"),
        ),
        ("XLMRobertaTokenizer", ("reads sentencepiece.bpe.model, which is missing",)),
    ],
)
def test_a_class_that_cannot_be_used_is_named(minilm, tmp_path, name, says):
    folder = copy_folder(minilm, tmp_path / "made")
    (folder / "tokenizer.json").unlink()
    settings_of(tokenizer_class=name, word_tokenizer_type="mecab")(folder)
    message = refusal(folder)
    assert message.startswith(f"{folder}: the tokenizer class {name} ")
    for part in says:
        assert part in message
    assert "again" not in message


def test_bpe_files_without_the_name_of_their_class(tmp_path):
    """transformers would make a BertTokenizer of 5 tokens."""
    write_bpe(tmp_path, SENTENCES, 200)
    (tmp_path / "tokenizer_config.json").unlink()
    message = refusal(tmp_path)
    assert "the tokenizer class BertTokenizer reads vocab.txt, which is missing" in message
    assert "the folder has vocab.json, merges.txt" in message and '"tokenizer_class"' in message
    (tmp_path / "vocab.json").unlink()
    assert "has neither tokenizer.json nor vocab.txt" in refusal(tmp_path)


def test_a_sentencepiece_model_is_to_be_converted(tmp_path):
    (tmp_path / "sentencepiece.bpe.model").write_bytes(b"")
    for _ in range(2):
        message = refusal(tmp_path)
        assert "sentencepiece.bpe.model is a SentencePiece model, which is not read" in message
        assert f"A.from_pretrained('{tmp_path}').save_pretrained('{tmp_path}')" in message
        write_settings(tmp_path, tokenizer_class="XLMRobertaTokenizer")
        write_vocabulary(tmp_path, TOKENS)


def test_tokens_of_a_bpe_folder(tmp_path):
    """Its special tokens are those of RoBERTa; a word of two pieces is merged as the file says."""
    characters = [letter + end for letter in "films" for end in ("", "</w>")]
    vocabulary = [*ROBERTA_SPECIAL, *characters, "fi", "fil", "film</w>"]
    ids = {token: number for number, token in enumerate(vocabulary)}
    (tmp_path / "vocab.json").write_text(json.dumps(ids))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nf i\nfi l\nfil m</w>\n")
    write_settings(tmp_path, tokenizer_class="HerbertTokenizerFast")
    tokenizer = load(tmp_path, len(ids), 1)
    assert tokenizer.warnings == ()  # pieces of words do not tell a cased vocabulary
    (got,) = sequences(tokenizer.encode(["film films x"], None, max_length=16))
    pieces = ["<s>", "film</w>", "fil", "m", "s</w>", "<unk>", "</s>"]
    assert got[0] == [ids[piece] for piece in pieces]


def test_files_that_do_not_agree_are_told_and_not_exported(minilm, tmp_path):
    folder = copy_folder(minilm, tmp_path / "made")
    assert load(folder).exported(64)["vocab.txt"] == (minilm / "vocab.txt").read_bytes()
    lines = (minilm / "vocab.txt").read_text("utf-8").splitlines()
    assert (lines[2000], lines[2006]) == ("to", "on")
    lines[2000], lines[2006] = "on", "to"
    (folder / "vocab.txt").write_text("\n".join(lines), "utf-8")
    (warning,) = load(folder).warnings
    assert warning.startswith(f"tokenizer: WARNING: {folder / 'vocab.txt'} does not agree with tok")
    assert "tokenizer.json, which is used: 'on' has the id 2000 in the former, 2006 in" in warning
    assert "vocab.txt" not in load(folder).exported(64)
    (folder / "vocab.txt").write_text("\n".join([*lines[:2000], "\n"]), "utf-8")
    assert "'to' has the id none in the former, 2000 in the latter" in load(folder).warnings[0]
    (folder / "vocab.txt").write_bytes(b"\xff")
    assert "vocab.txt cannot be read ('utf-8' codec" in load(folder).warnings[0]


def test_added_words_with_other_ids_than_in_the_file_are_told(minilm, tmp_path):
    folder = copy_folder(minilm, tmp_path / "made")
    added(**{"<user>": 30522})(folder)
    assert load(folder, VOCAB + 1).warnings == ()
    for change in ([], [without("tokenizer.json")]):
        for write in (added(**{"<user>": 30550}), *change):
            write(folder)
        (warning,) = load(folder, VOCAB + 1).warnings
        assert "the added token '<user>' the id 30550, transformers gives it 30522" in warning


def test_a_tokenizer_in_python_reads_vocab_txt_and_says_so(minilm, tmp_path):
    folder = copy_folder(minilm, tmp_path / "made")
    settings_of(tokenizer_class="BertJapaneseTokenizer", do_lower_case=True)(folder)
    assert load(folder).warnings == ()
    assert "has no tokenizer.json" in load(folder).export_warnings[0]
    assert "BertJapaneseTokenizer is written in Python" in load(folder).export_warnings[0]
    parts = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    parts["model"]["vocab"] |= {"to": 2006, "on": 2000}
    (folder / "tokenizer.json").write_text(json.dumps(parts), "utf-8")
    assert "tokenizer.json does not agree with vocab.txt, which is used" in load(folder).warnings[0]


def test_pairs_without_token_types_are_told(minilm, tmp_path):
    folder = copy_folder(minilm, tmp_path / "made")
    assert load(folder).pair_warnings == ()
    settings_of(tokenizer_class="PreTrainedTokenizerFast")(folder)
    tokenizer = load(folder)
    assert 'set "model_input_names": ["input_ids", "token_type' in tokenizer.pair_warnings[0]
    assert sequences(tokenizer.encode(["a"], ["b"], max_length=9))[0][1] == [0] * 5
    settings_of(model_input_names=["input_ids", "token_type_ids"])(folder)
    tokenizer = load(folder)
    assert tokenizer.pair_warnings == ()
    assert sequences(tokenizer.encode(["a"], ["b"], max_length=9))[0][1] == [0, 0, 0, 1, 1]
    assert '"token_type_ids"' in tokenizer.exported(9)["tokenizer_config.json"].decode()
    trained(write_unigram)(folder)  # whose types are 0 by themselves
    assert load(folder, VOCAB, 1).pair_warnings == ()


SPECIAL = {"cls": ["[CLS]", 101], "sep": ["[SEP]", 102]}
PIECES = {
    name: [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
           {"SpecialToken": {"id": "[SEP]", "type_id": 0}}, *more]
    for name, more in {
        "single": [],
        "pair": [{"Sequence": {"id": "B", "type_id": 1}},
                 {"SpecialToken": {"id": "[SEP]", "type_id": 1}}],
    }.items()
}  # fmt: skip
NAMED = {token: {"id": token, "ids": [n], "tokens": [token]} for token, n in SPECIAL.values()}
TEMPLATE = {"type": "TemplateProcessing", **PIECES, "special_tokens": NAMED}
BYTES = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
PROCESSORS = {
    "template": TEMPLATE,
    "BERT": {"type": "BertProcessing", **SPECIAL},
    "RoBERTa": {"type": "RobertaProcessing", **SPECIAL, "trim_offsets": True,
                "add_prefix_space": True},
    "several": {"type": "Sequence", "processors": [BYTES, {"type": "BertProcessing", **SPECIAL}]},
}  # fmt: skip


@pytest.mark.parametrize("name", PROCESSORS)
def test_an_exported_file_has_the_token_types_of_training(minilm, tmp_path, name):
    """Read by the tokenizers library alone; its ids, and all types where they are fed, stay."""
    folder = copy_folder(minilm, tmp_path / "made")
    parts_of(post_processor=PROCESSORS[name])(folder)
    whole = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    whole.no_padding()
    pairs = [("a film", "so so"), ("", "b"), ("a", "")]
    for fed in (["input_ids", "attention_mask"], ["input_ids", "token_type_ids"]):
        settings_of(tokenizer_class="PreTrainedTokenizerFast", model_input_names=fed)(folder)
        tokenizer = load(folder)
        served = tokenizers.Tokenizer.from_str(tokenizer.exported(64)["tokenizer.json"].decode())
        for inputs in (pairs, [first for first, _ in pairs]):
            rows, before = served.encode_batch(inputs), whole.encode_batch(inputs)
            texts = zip(*inputs, strict=True) if inputs is pairs else (inputs, None)
            trained_on = sequences(tokenizer.encode(*texts, max_length=64))
            assert [(row.ids, row.type_ids) for row in rows] == trained_on
            assert [row.ids for row in rows] == [row.ids for row in before]
            assert [r.special_tokens_mask for r in rows] == [r.special_tokens_mask for r in before]
            types = [r.type_ids if "token_type_ids" in fed else [0] * len(r) for r in before]
            assert [row.type_ids for row in rows] == types


@pytest.mark.parametrize(
    ("settings", "ignored"),
    [
        ({"never_split": ["a-b"]}, "never_split"),
        ({"do_basic_tokenize": False}, "do_basic_tokenize"),
        ({"never_split": [], "do_basic_tokenize": True, "strip_accents": False}, None),
        (
            {"do_lower_case": False, "strip_accents": True, "tokenizer_class": "TokenizersBackend"},
            "do_lower_case, strip_accents",
        ),
    ],
)
def test_settings_without_effect_are_told(minilm, tmp_path, settings, ignored):
    folder = copy_folder(minilm, tmp_path / "made")
    settings_of(**settings)(folder)
    warnings = [line for line in load(folder).warnings if "has no effect" in line]
    assert len(warnings) == (ignored is not None)
    if ignored:
        assert f"{ignored} in {folder / 'tokenizer_config.json'} has no effect with" in warnings[0]


def test_a_file_of_another_kind_than_the_class_is_told(tmp_path):
    """As AutoTokenizer, which makes WordPiece of any vocabulary if no class is named."""
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2}, []))
    values = json.loads(bpe.to_str())
    (tmp_path / "tokenizer.json").write_text(json.dumps(values), "utf-8")
    write_settings(tmp_path, cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]")
    told = "\n".join(load(tmp_path, 9).warnings)
    assert "tokenizer.json has another model (BPE, not WordPiece)" in told
    assert '"tokenizer_class": "PreTrainedTokenizerFast"' in told
    write_unigram(tmp_path, SENTENCES, 200)
    (tmp_path / "tokenizer_config.json").unlink()
    message = refusal(tmp_path)
    assert "has no cls token" in message
    assert "tokenizer.json is Unigram, BertTokenizer is WordPiece: name its class" in message


def test_special_tokens_keep_the_ids_of_the_file(minilm, tmp_path):
    """transformers numbers added tokens anew where the vocabulary does not have them."""
    folder = copy_folder(minilm, tmp_path / "made")
    parts = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    parts["model"]["vocab"] = {"film": 0}
    (folder / "tokenizer.json").write_text(json.dumps(parts), "utf-8")
    assert "transformers gives '[CLS]' the id 3, the files 101. Copy all" in refusal(folder)


def test_a_vocabulary_without_its_own_unknown_token(tmp_path):
    write_unigram(tmp_path, ["film"], 200, None, "PreTrainedTokenizerFast")
    parts = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    parts["model"]["unk_id"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(parts), "utf-8")
    tokenizer = load(tmp_path, 99, 1)
    assert len(tokenizer.encode(["film"], None, max_length=9))
    with pytest.raises(ModelFileError, match=r"cannot split a text: .*unk_id"):
        tokenizer.encode(["x"], None, max_length=9)


def test_parts_that_are_written_in_an_older_way_are_no_others(tmp_path):
    write_unigram(tmp_path, SENTENCES, 200)
    values = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    older = {"type": "Metaspace", "replacement": "▁", "add_prefix_space": True}
    values["pre_tokenizer"]["pretokenizers"][1] = older
    (tmp_path / "tokenizer.json").write_text(json.dumps(values), "utf-8")
    assert load(tmp_path, 9999, 1).warnings == ()


def test_options_of_japanese_words_are_passed_on(minilm, tmp_path, monkeypatch):
    """fugashi is not installed here; a stand-in splits at spaces."""
    import sys
    import types

    asked = []

    class Tagger:
        def __init__(self, options):
            asked.append(options)

        def __call__(self, text):
            return [types.SimpleNamespace(surface=word) for word in text.split()]

    monkeypatch.setitem(sys.modules, "fugashi", types.SimpleNamespace(GenericTagger=Tagger))
    folder = copy_folder(minilm, tmp_path / "made")
    (folder / "tokenizer.json").unlink()
    options = {"mecab_dic": None, "mecab_option": None, "normalize_text": False}
    settings_of(
        tokenizer_class="BertJapaneseTokenizer",
        word_tokenizer_type="mecab",
        mecab_kwargs=options,
        do_lower_case=True,
    )(folder)
    tokenizer = load(folder)
    assert set(asked) == {""}  # of the system, as AutoTokenizer
    (wide, narrow) = sequences(tokenizer.encode(["Ｆilm", "Film"], None, max_length=9))
    assert wide != narrow and narrow[0] == [CLS, 2143, SEP]


@pytest.mark.parametrize("options", [{"mecab_option": "-r /etc/passwd"}, {"mecab_dic": "/tmp/x"}])
def test_options_for_other_programs_are_not_passed_on(minilm, tmp_path, options):
    folder = copy_folder(minilm, tmp_path / "made")
    settings_of(mecab_kwargs=options)(folder)
    message = refusal(folder)
    assert message.startswith(
        f"{folder / 'tokenizer_config.json'}: mecab_kwargs has {next(iter(options))}"
    )


@pytest.mark.parametrize("where", ["tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer.json"])
def test_settings_that_name_other_files_are_not_followed(minilm, tmp_path, where, name):
    """transformers would open some of them: they may lie anywhere."""
    folder = tmp_path / "made"
    folder.mkdir()
    shutil.copy(minilm / name, folder)
    if name == "tokenizer.json":
        (folder / "tokenizer_config.json").write_text('{"unk_token": "[UNK]"}')
    trap = tmp_path / "elsewhere"
    trap.mkdir()
    lines = (minilm / "vocab.txt").read_text().splitlines()
    (trap / "other.txt").write_text("\n".join([*lines[:106], *reversed(lines[106:])]))
    other = str(trap / "other.txt")
    names = ("tokenizer_file", "vocab_file", "merges_file", "gguf_file", "vocab", "chat_template")
    settings = dict.fromkeys(names, other) | {
        "auto_map": {"AutoTokenizer": ["made--up/code.Evil", None]},
        "fast_tokenizer_files": ["../elsewhere/tokenizer.4.0.0.json"],
        "name_or_path": str(trap),
        "init_inputs": [other],
    }
    (trap / "tokenizer.4.0.0.json").write_text("{")
    (folder / where).write_text(json.dumps(settings))
    texts = ["a gripping film", "Straße"]
    got = load(folder).encode(texts, None, max_length=64)
    assert got.digest() == load(minilm).encode(texts, None, max_length=64).digest()


def test_a_tokenizer_file_that_fills_the_memory_is_refused(minilm, tmp_path):
    shutil.copy(minilm / "vocab.txt", tmp_path)
    with (tmp_path / "added_tokens.json").open("wb") as file:
        file.truncate(2**40)  # takes no room on the disk
    with pytest.raises(ModelFileError, match=r"added_tokens.json: has 1099511627776 bytes"):
        Tokenizer(tmp_path, vocab_size=30522, pad_token_id=0)
