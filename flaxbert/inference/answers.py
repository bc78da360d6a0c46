"""Predictions as files: JSON lines, CSV, CoNLL, and the numbered lines of transformers' run_glue.

Files are written whole or not at all. Standard output gets each part as it is ready.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from flaxbert.data.checks import Labels
from flaxbert.errors import ConfigError, InterruptedRun
from flaxbert.heads import head_named
from flaxbert.shell.console import printable_json
from flaxbert.storage.store import is_url, url_refusal

Answer = dict[str, Any]

_BREAKS = re.compile(r"[\t\n\v\f\r\x1c-\x1e\x85\u2028\u2029]")  # where a reader may split lines


class JsonLines:
    """One JSON object per line."""

    def __init__(self, file: TextIO, labels: Labels, top_k: int = 0) -> None:
        self._file = file

    def write(self, answers: Sequence[Answer]) -> None:
        lines = (printable_json(json.dumps(a, ensure_ascii=False)) + "\n" for a in answers)
        self._file.writelines(lines)
        self._file.flush()


class Csv:
    """The head's columns: one per label for probabilities of all, lists as JSON; probabilities of
    the `top_k` best are one column, as JSON."""

    def __init__(self, file: TextIO, labels: Labels, top_k: int = 0) -> None:
        self._head, self._names, self._top_k = head_named(labels.problem), labels.names, top_k
        self._writer = csv.writer(file, lineterminator="\n")
        self._writer.writerow(self._head.csv_header(self._names, top_k))

    def write(self, answers: Sequence[Answer]) -> None:
        head, names, top_k = self._head, self._names, self._top_k
        self._writer.writerows(head.csv_row(answer, names, top_k) for answer in answers)


class Conll:
    """word<TAB>tag, a blank line after each row: for models that tag words.

    A tab or a line break in a word becomes a space, and an empty word "_". So does a row without
    words, such as one that was skipped: a reader takes two blank lines for one, and would lose it.
    """

    def __init__(self, file: TextIO, labels: Labels, top_k: int = 0) -> None:
        if "tags" not in head_named(labels.problem).csv_columns(labels.names):
            raise ConfigError(
                "--output: .conll is for models that tag words, and this one does not. Name a file "
                "that ends in .jsonl or .csv."
            )
        self._file = file

    def write(self, answers: Sequence[Answer]) -> None:
        for answer in answers:
            for word, tag in zip(answer["words"] or [""], answer["tags"] or ["O"], strict=True):
                self._file.write(f"{_BREAKS.sub(' ', word).strip() or '_'}\t{tag}\n")
            self._file.write("\n")


class Numbered:
    """index<TAB>prediction with a header, as transformers' run_glue writes it."""

    def __init__(self, file: TextIO, labels: Labels) -> None:
        self._file, self._count = file, 0
        self._head, self._names = head_named(labels.problem), labels.names
        file.write("index\tprediction\n")

    def write(self, answers: Sequence[Answer]) -> None:
        for answer in answers:
            self._file.write(f"{self._count}\t{self._head.summary(answer, self._names)}\n")
            self._count += 1


_WRITERS = {".jsonl": JsonLines, ".csv": Csv, ".conll": Conll}


def check_output(path: str, source: str = "") -> None:
    """Checks that a file can be written at `path`, and that it is not the input.

    Raises:
      ConfigError: an ending that no writer has, no such directory, or the input itself.
    """
    if is_url(path) or url_refusal(path):
        raise ConfigError(f"--output: {path}: name a local file, then copy it.")
    output = Path(path)
    try:
        if b"\0" in os.fsencode(path):
            raise ValueError("a NUL")
    except ValueError as error:
        raise ConfigError(f"--output: {path!a} is no name of a file.") from error
    if output.suffix.lower() not in _WRITERS:
        raise ConfigError(
            f"--output: expected a name ending in {', '.join(_WRITERS)}, or - for JSON lines on "
            f"standard output; got {path!r}."
        )
    if output.is_dir() or not output.parent.is_dir():
        what = "is a directory" if output.is_dir() else f"there is no directory {output.parent}"
        raise ConfigError(f"--output: {path}: {what}. Name a file in an existing directory.")
    if source and output.exists() and os.path.exists(source) and output.samefile(source):
        raise ConfigError(f"--output: {path} is the input itself. Name another file.")


def writer_for(path: str) -> type[JsonLines] | type[Csv] | type[Conll]:
    return _WRITERS[Path(path).suffix.lower()]


@contextlib.contextmanager
def standard_output() -> Iterator[TextIO]:
    """Standard output in UTF-8, as files are, whatever the terminal's encoding.

    A reader who has gone (`| head`) ends the command without a traceback.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")
    try:
        yield sys.stdout
        sys.stdout.flush()
    except BrokenPipeError as error:
        # Python flushes once more at exit: that must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise InterruptedRun("the reader of standard output has gone") from error
