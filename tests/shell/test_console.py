"""What a terminal would obey is written out; everything else stays as it is."""

from __future__ import annotations

import errno
import io
import json
import os
import sys

import pytest

from flaxbert.errors import DataError
from flaxbert.shell import cli
from flaxbert.shell.console import complain, printable, printable_json, say


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("\x9b31m", "\\x9b31m"),
        ("a\rb\x08\x7f", "a\\rb\\x08\\x7f"),
        ("\u202egpj.exe\u2066", "\\u202egpj.exe\\u2066"),
        ("\u2028\u2029", "\\u2028\\u2029"),
        ("\ud800", "\\ud800"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("Straße 你好 👩‍👩‍👧 שלום a\u00a0b", "Straße 你好 👩‍👩‍👧 שלום a\u00a0b"),
    ],
)
def test_printable(text, expected):
    assert printable(text) == expected


def test_json_stays_the_same_json():
    value = {"label\x9b\u202e": ["\ud800", "ü\u2028", "\x7f"]}
    text = printable_json(json.dumps(value, ensure_ascii=False))
    assert json.loads(text) == value
    assert text.encode() and "\x9b" not in text and "ü" in text


def test_every_line_for_the_user_goes_through_it(capsys, monkeypatch):
    say("a\x1b[31mb")
    assert capsys.readouterr().err == "a\\x1b[31mb\n"
    for error in (DataError("x\x1b[31m"), OSError(2, "no\x1b", "f\x1b"), RuntimeError("y\x1b]0;")):

        def fail(values, stop, error=error):
            raise error

        monkeypatch.setattr("sys.argv", ["x"])
        with pytest.raises(SystemExit):
            cli.run(fail, lambda values: None, "x")
        said = capsys.readouterr().err
        assert "\x1b" not in said and "\\x1b" in said


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("ascii", r"\u597d \U0001f44d \xe9"),
        ("latin-1", "\\u597d \\U0001f44d é"),
        ("utf-8", "好 👍 é"),
    ],
)
def test_what_a_terminal_cannot_show_is_escaped(encoding, shown, monkeypatch):
    for errors in ("strict", "backslashreplace"):
        stream = io.TextIOWrapper(io.BytesIO(), encoding, errors=errors)
        monkeypatch.setattr(sys, "stderr", stream)
        say("好 👍 é")
        assert stream.buffer.getvalue().decode(encoding) == f"{shown}\n"


def test_a_terminal_that_is_gone_ends_no_run(monkeypatch):
    class Gone:
        def write(self, text):
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    monkeypatch.setattr(sys, "stderr", Gone())
    say("update 1")
    complain("flaxbert: error: ...")
