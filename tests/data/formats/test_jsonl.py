"""JSON Lines: types, missing keys, what is no object."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxbert.data.bad_rows import BadRows
from flaxbert.data.formats import Row, read_rows
from flaxbert.errors import DataError

# The same examples in every run, so that a failure is a failure everywhere.
PROPERTY = settings(max_examples=100, deadline=None, derandomize=True)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


@pytest.fixture
def read(tmp_path: Path):
    def write_and_read(content: str, *columns: str, bad: BadRows | None = None) -> list[Row]:
        path = tmp_path / "a.jsonl"
        path.write_bytes(content.encode())
        return list(read_rows(path, columns or ("text", "label"), bad or BadRows()))

    return write_and_read


def test_types_are_kept_and_missing_keys_are_none(read):
    rows = read('{"text": "a", "label": 1}\n\n{"label": ["x", 2], "text": null}\r\n{"text": "c"}')
    assert rows == [
        (1, {"text": "a", "label": 1}),
        (3, {"text": None, "label": ["x", 2]}),
        (4, {"text": "c", "label": None}),
    ]


def test_lists_and_objects_are_cells(read):
    tagged = {"tokens": ["New", "York"], "ner_tags": ["B-LOC", "I-LOC"], "ids": [1, 2]}
    asked = {"answers": {"text": ["York"], "answer_start": [4]}}
    rows = read("".join(json.dumps(row) + "\n" for row in (tagged, asked)), *tagged, *asked)
    assert rows[0].cells == tagged | {"answers": None}
    assert rows[1].cells == dict.fromkeys(tagged) | asked


@PROPERTY
@given(cells=st.lists(st.tuples(TEXTS, TEXTS), min_size=1))
def test_what_a_writer_writes_comes_back(tmp_path_factory, cells):
    path = tmp_path_factory.getbasetemp() / "written.jsonl"
    with path.open("w", encoding="utf-8", newline="") as file:
        for text, label in cells:
            file.write(json.dumps({"text": text, "label": label}, ensure_ascii=False) + "\n")
    rows = read_rows(path, ["text", "label"], BadRows())
    assert [(row.cells["text"], row.cells["label"]) for row in rows] == cells


REFUSED = {
    # name: (content, what the message must say: place, problem, fix)
    "empty": ("\n \n", ("a.jsonl:", "is empty", "one JSON object a line")),
    "key twice": (
        '{"text": "a", "label": 1}\n{"text": "b", "label": 1, "text": "c"}',
        (":2:", "the key 'text' is twice", "Keep one"),
    ),
    "key twice inside": ('{"text": "a", "x": [{"y": 1, "y": 1}]}', (":1:", "'y'")),
    "malformed": (
        '{"text": "a", "label": 1}\n\n{"text": "b", "label": }\n',
        (":3:", "not valid JSON", "Expected one object a line"),
    ),
    "two objects": ('{"text": "a"} {"text": "b"}', (":1:", "Extra data", "one object")),
    "half an object": ('{"text": "a",\n"label": 1}', (":1:", "not valid JSON")),
    "list": ('\n["a", 1]\n', (":2:", "got list", '{"text": ...}')),
    "bare string": ('"a"\n', (":1:", "got str", '{"text": ...}')),
    "null": ("null\n", (":1:", "got NoneType", '{"text": ...}')),
    "NaN": ('{"text": "a", "label": NaN}\n', (":1:", "NaN is not JSON")),
    "Infinity": ('{"text": "a", "label": -Infinity}', (":1:", "-Infinity is not")),
    "deep": ('{"text": ' + "[" * 100_000, (":1:", "not valid JSON", "recursion")),
    "huge integer": ('{"label": ' + "1" * 5000 + "}", (":1:", "not valid JSON")),
    "missing key": (
        '{"txt": "a", "label": 1}\n' * 20_000,
        ("no object has the key 'text'", "Did you mean 'txt'?", "Keys: 'txt', 'label'"),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(read, tmp_path, case):
    content, said = REFUSED[case]
    with pytest.raises(DataError) as caught:
        read(content)
    message = str(caught.value)
    assert message.startswith(str(tmp_path / "a.jsonl") + ":") and len(message) < 1000
    for part in said:
        assert part in message


def test_what_is_no_object_can_be_left_out(read):
    bad = BadRows("skip")
    content = '{"text": "a"}\n{"text"\n[1]\n{"text": "b", "text": "c"}\n{"text": "d"}\n'
    assert read(content, "text", bad=bad) == [(1, {"text": "a"}), (5, {"text": "d"})]
    assert bad.skipped == {
        "not valid JSON": [2],
        "not a JSON object": [3],
        "a key twice in one object": [4],
    }


@pytest.mark.parametrize("bad", [8191, 8192, 8193])
def test_a_bad_line_where_looking_ahead_ends(read, bad):
    lines = ["not json" if n == bad else f'{{"text": "{n}"}}' for n in range(1, 9001)]
    rows = read("\n".join(lines), "text", bad=BadRows("skip"))
    assert [row.line for row in rows] == [n for n in range(1, 9001) if n != bad]
    assert len(read("\n".join(lines[:8192]), "text", bad=BadRows("skip"))) == 8192 - (bad <= 8192)
