"""CoNLL columns: sentences, separators, comments, columns by name and number, ragged lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from flaxbert.data.bad_rows import BadRows
from flaxbert.data.formats import Row, read_rows
from flaxbert.errors import DataError

CONLL2003 = (
    "-DOCSTART- -X- -X- O\n\n"
    "EU NNP B-NP B-ORG\nrejects VBZ B-VP O\n. . O O\n\n"
    "-DOCSTART- -X- O O\n\n"
    "Peter NNP B-NP B-PER\n"
)


@pytest.fixture
def read(tmp_path: Path):
    def write_and_read(content: str, *columns: str, bad: BadRows | None = None) -> list[Row]:
        path = tmp_path / "a.conll"
        path.write_bytes(content.encode())
        return list(read_rows(path, columns or ("tokens", "tags"), bad or BadRows()))

    return write_and_read


def test_conll_2003(read):
    assert read(CONLL2003) == [
        (3, {"tokens": ["EU", "rejects", "."], "tags": ["B-ORG", "O", "O"]}),
        (9, {"tokens": ["Peter"], "tags": ["B-PER"]}),
    ]
    numbered = read(CONLL2003, "1", "2", "4")
    assert numbered[0].cells == {
        "1": ["EU", "rejects", "."],
        "2": ["NNP", "VBZ", "."],
        "4": ["B-ORG", "O", "O"],
    }
    assert read(CONLL2003, "tags") == [(3, {"tags": ["B-ORG", "O", "O"]}), (9, {"tags": ["B-PER"]})]


def test_lines_of_blanks_end_a_sentence(read):
    """As in WNUT-17."""
    rows = read("\r\n@user\tO\r\n#\tO\r\n\t\r\n \t \r\nNew York\tB-location\r\n\r\n\r\n")
    assert rows == [
        (2, {"tokens": ["@user", "#"], "tags": ["O", "O"]}),
        (6, {"tokens": ["New York"], "tags": ["B-location"]}),
    ]


def test_a_token_may_be_anything_but_the_separator(read):
    # White space that str.split would take for a separator, and nothing at all.
    assert read("\u3000 O\n\u00a0 O\n")[0].cells["tokens"] == ["\u3000", "\u00a0"]
    assert read("a\tO\n\tO\nb c\tO\n")[0].cells["tokens"] == ["a", "", "b c"]


@pytest.mark.parametrize("content", ["a   X O \n b \tX \t O\r\n", "a\tX\tO\r\n b \t X \tO "])
def test_white_space_around_columns_does_not_count(read, content):
    assert read(content, "1", "2", "3") == [
        (1, {"1": ["a", "b"], "2": ["X", "X"], "3": ["O", "O"]})
    ]


def test_comments_are_lines_that_cannot_be_rows(read):
    rows = read("# id = 1 of 2\na X O\n# NUM O\n# text\n\n# doc\n\nb X O\n")
    assert [row.line for row in rows] == [2, 8]
    # Before a sentence, and its end is no tag.
    rows = read("# id 7 domain=en\nthe _ _ O\n\n# id 8 domain=en\na _ _ B-X\n", "tokens", "4")
    assert [row.cells["tokens"] for row in rows] == [["the"], ["a"]]
    # As many columns as a row, and a tag: "#" is a token.
    assert read("# a comment here\na O\n# O\n#\tO\n")[0].cells["tokens"] == ["a", "#", "#"]
    assert read("# O\na O\n")[0].cells["tokens"] == ["#", "a"]
    assert read("# comment\na\tO\n# comment\n#\tO\n")[0].cells["tokens"] == ["a", "#"]


REFUSED = {
    # name: (content, columns, what the message must say: place, problem, fix)
    "no tag": ("a O\n\nb O\nc\n", (), (":4: a token without a tag. Write its tag after it",)),
    "empty tag": ("a\tO\nb\t\n", (), (":2: a token without a tag",)),
    "no tags at all": ("a\nb\n\n", (), (":1: a token without a tag",)),
    "more columns": ("\na X O\nb O\n", (), (":3: has 2 columns, line 2 has 3. Give all lines",)),
    "fewer tokens": ("a O\n\nb\n", ("tokens",), (":3: has 1 columns, line 1 has 2",)),
    "number beyond": ("a O\n", ("3",), ("no column '3'", "Columns: 'tokens', 'tags', '1', '2'.")),
    "text": ("a O\n", ("text",), ("no column 'text'. Columns: 'tokens'",)),
    "comments alone": ("# a\n\n# b\n", (), (": is empty. Expected a token and its tag a line",)),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(read, tmp_path, case):
    content, columns, said = REFUSED[case]
    with pytest.raises(DataError) as caught:
        read(content, *columns)
    assert str(caught.value).startswith(str(tmp_path / "a.conll") + ":")
    for part in said:
        assert part in str(caught.value)


def test_tokens_alone(read):
    assert read("a\nb\n\nc", "tokens") == [(1, {"tokens": ["a", "b"]}), (4, {"tokens": ["c"]})]
    assert read("a O\nb\n", "tokens", bad=BadRows("skip")) == []


def test_sentences_with_a_bad_line_can_be_left_out(read):
    bad = BadRows("skip")
    rows = read("a O\nb\nc X O\n\nd O\n\ne O O\n\nf O\n", bad=bad)
    assert [row.line for row in rows] == [5, 9]
    assert bad.skipped == {
        "a token without a tag": [2],
        "another number of columns than the first line": [7],
    }
