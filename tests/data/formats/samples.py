"""A way to write rows in each format, for the tests that all formats share."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


@dataclasses.dataclass(frozen=True)
class Sample:
    """How a file with the texts as rows is written, and what should come back."""

    write: Callable[[Sequence[str]], bytes]
    first: int  # line of the first row
    step: int = 1  # lines of a row of two words
    column: str = "text"
    cell: Callable[[str], Any] = str

    def lines(self, count: int) -> list[int]:
        return [self.first + self.step * i for i in range(count)]


def _csv(texts: Sequence[str]) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.writer(out, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerows([["id", "text"], *enumerate(texts)])
    return out.getvalue().encode()


def _tsv(texts: Sequence[str]) -> bytes:
    return "".join(f"{id}\t{text}\n" for id, text in [("id", "text"), *enumerate(texts)]).encode()


def _jsonl(texts: Sequence[str]) -> bytes:
    rows = [{"id": i, "text": text} for i, text in enumerate(texts)]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _parquet(texts: Sequence[str]) -> bytes:
    out = io.BytesIO()
    table = pa.table({"id": range(len(texts)), "text": list(texts)})
    pq.write_table(table, out, row_group_size=1024)
    return out.getvalue()


def _arrow(texts: Sequence[str]) -> bytes:
    """As the `datasets` library writes it: a stream of batches."""
    out = io.BytesIO()
    table = pa.table({"id": range(len(texts)), "text": list(texts)})
    with pa.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table, max_chunksize=1024)
    return out.getvalue()


def _txt(texts: Sequence[str]) -> bytes:
    return "".join(f"{text}\n" for text in texts).encode()


def _conll(texts: Sequence[str]) -> bytes:
    sentences = ("".join(f"{word}\tO\n" for word in text.split(" ")) for text in texts)
    return "".join(f"{sentence}\n" for sentence in sentences).encode()


SAMPLES = {
    ".csv": Sample(_csv, first=2),
    ".tsv": Sample(_tsv, first=2),
    ".jsonl": Sample(_jsonl, first=1),
    ".parquet": Sample(_parquet, first=1),
    ".arrow": Sample(_arrow, first=1),
    ".txt": Sample(_txt, first=1),
    ".conll": Sample(_conll, first=1, step=3, column="tokens", cell=lambda text: text.split(" ")),
}

# Other names of the same.
ALIASES = {".iob": ".conll", ".bio": ".conll", ".feather": ".arrow"}
