"""Token classification: words and their pieces, windows, tag schemes, entities with characters."""

from __future__ import annotations

import numpy as np
import pytest

from flaxbert.config import Config, make_config
from flaxbert.data.checks import Known, Labels
from flaxbert.data.rows import Rows
from flaxbert.data.tokenize import Tokenizer
from flaxbert.errors import ConfigError, DataError
from flaxbert.heads import head_named
from flaxbert.heads.token import word_spans

HEAD = head_named("token")
CONFIG = Config()


@pytest.fixture(scope="module")
def tokenizer(minilm) -> Tokenizer:
    return Tokenizer(minilm, vocab_size=30522, pad_token_id=0)


def rows_of(words, tags=None) -> Rows:
    columns = {"text": words} | ({} if tags is None else {"label": tags})
    return Rows("rows.conll", columns, [10 * i + 1 for i in range(len(words))])


def split_of(words, tags, tokenizer, max_length=128, config=CONFIG):
    rows = HEAD.usable(rows_of(words, tags), config)
    labels = HEAD.learn_labels(rows, config, Known())
    return labels, HEAD.split("training", rows, labels, tokenizer, max_length, config)


def test_labels_stand_at_first_pieces(tokenizer):
    labels, split = split_of(
        [["unbelievably", "Paris"], ["\u200b", "ok"]], [["O", "B-LOC"], ["O", "O"]], tokenizer
    )
    assert labels.names == ("B-LOC", "I-LOC", "O")
    examples = split.examples
    first = examples.labels[: examples.tokens.offsets[1]]
    assert first[0] == first[-1] == -1 and (first >= 0).sum() == 2 < len(first) - 2
    assert HEAD.gold(examples).tolist() == [2, 0, 2, 2]
    # A word without a piece has the unknown token: exactly one label out for each word in.
    second = examples.tokens.input_ids[examples.tokens.offsets[1] :]
    assert second[1] == tokenizer.unk_token_id


def test_long_rows_are_read_in_windows_and_each_word_once(tokenizer):
    words = [[f"word{i}" for i in range(60)], ["short"]]
    tags = [["B-X" if i % 7 == 0 else "O" for i in range(60)], ["O"]]
    _, split = split_of(words, tags, tokenizer, max_length=32)
    examples = split.examples
    assert len(examples) > 3 and examples.count == 2
    assert (examples.labels >= 0).sum() == 61 == len(examples.extra["word_tokens"])
    assert HEAD.gold(examples).tolist() == [0 if t == "B-X" else 2 for row in tags for t in row]
    # A word answers where it has the most context: none near the border of two windows.
    inside = np.concatenate([np.arange(n) for n in examples.tokens.lengths])
    to_end = np.repeat(examples.tokens.lengths, examples.tokens.lengths) - 1 - inside
    context = np.minimum(inside, to_end)[examples.extra["word_tokens"]]
    assert context[10:45].min() >= 3
    assert "read in windows of 32" in split.lines[-1]


@pytest.mark.parametrize(
    ("tags", "config", "names"),
    [
        ([["I-LOC", "I-LOC", "B-LOC"]], {}, ("B-LOC", "I-LOC", "O")),  # IOB1
        ([["B-LOC", "E-LOC", "S-LOC"]], {}, ("B-LOC", "I-LOC", "O")),
        ([["NOUN", "VERB", "NOUN"]], {}, ("NOUN", "VERB")),
        ([["10", "9", "10"]], {}, ("9", "10")),
    ],
)
def test_schemes_become_iob2(tags, config, names, tokenizer):
    labels, split = split_of([["a", "b", "c"]], tags, tokenizer)
    assert labels.names == names
    if names[0][0] == "B":
        assert split.targets == [["B-LOC", "I-LOC", "B-LOC"]]


def test_the_scheme_can_be_named(tokenizer):
    config = make_config({"head": {"name": "token", "token": {"scheme": "plain"}}})
    labels, split = split_of([["a", "b"]], [["B-LOC", "O"]], tokenizer, config=config)
    assert labels.names == ("B-LOC", "O")
    assert split.targets == [["B-LOC", "O"]]


@pytest.mark.parametrize(
    ("words", "tags", "said"),
    [
        ([["a"], None], [["O"], ["O"]], "rows.conll:11: the words are missing"),
        ([["a"], ["b", 3]], [["O"], ["O", "O"]], "rows.conll:11: a word is no string"),
        ([["a"], ["b", "c"]], [["B-X"], ["O"]], "rows.conll:11: there are 2 words and 1 tags"),
        (["a b"], [["O", "B-X"]], "rows.conll:1: the words or the tags are no list"),
        ([["a"]], [[-100]], "rows.conll:1: a tag is negative"),
        ([["a"]], None, "rows.conll: has no tag column"),
    ],
)
def test_bad_rows(words, tags, said, tokenizer):
    with pytest.raises(DataError, match=said):
        split_of(words, tags, tokenizer)


def test_bad_rows_can_be_left_out(tokenizer):
    config = make_config({"data": {"on_bad_row": "skip"}})
    _, split = split_of([["a"], ["b", "c"]], [["B-X"], ["O"]], tokenizer, config=config)
    assert split.targets == [["B-X"]] and split.rows.lines == [1]


def test_tags_of_another_split_must_be_known(tokenizer):
    labels, _ = split_of([["a"]], [["B-X"]], tokenizer)
    with pytest.raises(DataError, match=r"a tag is not among .*\(got 'B-Y'\)"):
        HEAD.split("dev", rows_of([["a"]], [["B-Y"]]), labels, tokenizer, 32, CONFIG)


@pytest.mark.parametrize(
    ("names", "tags", "expected"),
    [
        # Too few words to tell IO without prefixes from plain tags: the model's labels do.
        (("B-PER", "I-PER", "O"), [["PER", "O"]], [["B-PER", "O"]]),
        (("B-PER", "I-PER", "O"), [["o", "b-PER"]], [["O", "B-PER"]]),
        # What breaks IOB2 stays, for the strict scores.
        (("B-PER", "I-PER", "O"), [["B-PER", "O", "I-PER"]], [["B-PER", "O", "I-PER"]]),
        # Numbers are ids of names.
        (("O", "B-PER", "I-PER"), [[0, 1, 2]], [["O", "B-PER", "I-PER"]]),
        # Models of others have schemes of their own.
        (("O", "S-PER", "B-PER", "E-PER"), [["S-PER", "O"]], [["S-PER", "O"]]),
        (("O", "b-per", "i-per"), [["b-per", "i-per"]], [["b-per", "i-per"]]),
    ],
)
def test_tags_are_said_in_the_terms_of_the_models_labels(names, tags, expected, tokenizer):
    rows = rows_of([["a"] * len(row) for row in tags], tags)
    split = HEAD.split("dev", rows, Labels("token", names), tokenizer, 32, CONFIG)
    assert split.targets == expected


@pytest.mark.parametrize("tags", [[["NOUN", "VERB"]], [[0, 7]]])
def test_tags_of_another_kind_are_refused(tags, tokenizer):
    labels = Labels("token", ("B-PER", "I-PER", "O"))
    with pytest.raises(DataError, match="a tag is not among those of the training data"):
        HEAD.split("dev", rows_of([["a", "b"]], tags), labels, tokenizer, 32, CONFIG)


def test_numbers_are_ids_of_the_checkpoints_names(tokenizer):
    known = Known(checkpoint=("O", "B-X", "I-X"))
    rows = rows_of([["a", "b", "c"]], [[1, 2, 0]])
    assert HEAD.learn_labels(rows, CONFIG, known).names == known.checkpoint
    assert HEAD.learn_labels(rows, CONFIG, Known()).names == ("0", "1", "2")


def test_nothing_to_train_on_or_to_score_is_refused(tokenizer):
    labels, skip = Labels("token", ("B-X", "O")), make_config({"data": {"on_bad_row": "skip"}})
    with pytest.raises(DataError, match="has no word"):
        HEAD.split("dev", rows_of([[]], [[]]), labels, tokenizer, 32, CONFIG)
    with pytest.raises(DataError, match=r"no row can be used\. Skipped: a tag is not among"):
        HEAD.split("dev", rows_of([["a"]], [["B-Y"]]), labels, tokenizer, 32, skip)


@pytest.mark.parametrize("field", ["problem", "label_separator", "on_single_class"])
def test_fields_without_effect_are_refused(field):
    value = {"problem": "single_label", "label_separator": "|", "on_single_class": "warn"}[field]
    config = make_config({"data": {field: value}})
    with pytest.raises(ConfigError, match=f"config.data.{field} has no effect on word tags"):
        HEAD.learn_labels(rows_of([["a"]], [["B-X"]]), config, Known())
    pairs = Rows("x", {"text": [["a"]], "text_pair": [["b"]]}, [1])
    with pytest.raises(ConfigError, match=r"data\.text_pair"):
        HEAD.usable(pairs, CONFIG)


def test_answers_of_a_text_have_places_in_it(tokenizer):
    text = "Angela Merkel visits Paris (again)."
    rows = rows_of([text, ["New", "York"]])
    names = ("B-X", "I-X", "O")
    examples = HEAD.encode(rows, tokenizer, 64)
    words = [text[start:end] for start, end in word_spans(text)]
    assert words == ["Angela", "Merkel", "visits", "Paris", "(", "again", ")", "."]
    predicted = [0, 1, 2, 0, 2, 2, 2, 2, 0, 1]
    answers = np.full((10, 3), -9.0)
    answers[np.arange(10), predicted] = 9.0
    first, second = HEAD.readable(answers, examples, rows, names)
    assert [entity["text"] for entity in first["entities"]] == ["Angela Merkel", "Paris"]
    assert all(e["text"] == text[e["start_char"] : e["end_char"]] for e in first["entities"])
    assert second["words"] == ["New", "York"] and second["tags"] == ["B-X", "I-X"]
    assert "start_char" not in second["entities"][0]


@pytest.mark.parametrize("names", [("B-X", "I-X", "O"), ("NOUN", "VERB")])
def test_a_row_that_cannot_be_used_is_answered_as_an_empty_text(names, tokenizer):
    rows = rows_of([""])
    examples = HEAD.encode(rows, tokenizer, 64)
    (empty,) = HEAD.readable(np.zeros((0, len(names))), examples, rows, names)
    assert HEAD.no_answer(names) == empty and list(HEAD.no_answer(names)) == list(empty)


def test_words_of_a_text():
    text = "The U.N. met in New-York, didn't it?"
    words = [text[start:end] for start, end in word_spans(text)]
    assert words == ["The", "U.N.", "met", "in", "New-York", ",", "didn't", "it", "?"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("www.example.com, 10.0.0.1", ["www.example.com", ",", "10.0.0.1"]),
        ("(e.g. U.S.A)", ["(", "e.g.", "U.S.A", ")"]),
        ("a.b.smith@x.org.", ["a.b.smith@x.org", "."]),
        # Marks belong to their letters, in composed scripts and decomposed ones.
        ("\u0926\u093f\u0932\u094d\u0932\u0940 \u092e\u0947\u0902", None),
        ("cafe\u0301!", ["cafe\u0301", "!"]),
        ("love\u2764\ufe0f", ["love", "\u2764\ufe0f"]),
    ],
)
def test_what_is_inside_of_a_word_does_not_cut_it(text, words):
    assert [text[start:end] for start, end in word_spans(text)] == (words or text.split())
