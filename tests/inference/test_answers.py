"""Files of predictions."""

from __future__ import annotations

import pytest

from flaxbert.data.bad_rows import BadRows
from flaxbert.data.checks import Labels
from flaxbert.data.formats import conll
from flaxbert.errors import ConfigError
from flaxbert.heads import head_named
from flaxbert.inference.answers import writer_for


def test_tagged_words_are_read_as_they_were_written(tmp_path):
    """Also by this project's own reader; what cannot stand in a column is changed."""
    path, make = tmp_path / "tags.CONLL", writer_for("tags.CONLL")
    with path.open("w", encoding="utf-8") as file:
        writer = make(file, Labels("token", ("B-X", "O")))
        writer.write([{"words": ["New York", "\ta\u2028b", ""], "tags": ["B-X", "O", "O"]}])
        nothing = head_named("token").no_answer(("B-X", "O"))
        writer.write([nothing, {"words": ["#"], "tags": ["O"]}, {"words": [], "tags": []}])
    assert path.read_text() == "New York\tB-X\na b\tO\n_\tO\n\n_\tO\n\n#\tO\n\n_\tO\n\n"
    rows = conll.read(path, ["tokens", "tags"], BadRows("error"))
    assert [row[1] for row in rows] == [
        {"tokens": ["New York", "a b", "_"], "tags": ["B-X", "O", "O"]},
        {"tokens": ["_"], "tags": ["O"]},
        {"tokens": ["#"], "tags": ["O"]},
        {"tokens": ["_"], "tags": ["O"]},
    ]


def test_columns_of_words_need_a_model_that_tags_them(tmp_path):
    with (
        (tmp_path / "x.conll").open("w") as file,
        pytest.raises(ConfigError, match=r"\.conll is for models that tag words"),
    ):
        writer_for("x.conll")(file, Labels("single_label", ("a", "b")))
