"""Bad input through the command line: each kind has its message and its exit code.

Errors come before anything compiles, so the refused cases need no weights: a folder of config.json
and a small vocabulary is enough.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flaxbert.model.bert_config import BertConfig
from tests.commands import call, train_flags

TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", "the", "##s", "."]
GOOD = "text,label\ngood film,pos\nbad film,neg\nthe film,pos\nfilms,neg\n"
DEV = "text,label\nthe good,pos\nthe bad,neg\n"
CONFIG = BertConfig(
    vocab_size=len(TOKENS),
    hidden_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=32,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Writes a model folder that has everything but weights."""
    path = tmp_path_factory.mktemp("model")
    (path / "config.json").write_text(json.dumps(CONFIG.to_dict()))
    (path / "vocab.txt").write_text("\n".join(TOKENS) + "\n")
    return path


@dataclasses.dataclass(frozen=True)
class Bad:
    """A training file that is refused, and what the message says."""

    content: str | bytes
    says: tuple[str, ...]
    name: str = "train.csv"
    fields: dict[str, object] = dataclasses.field(default_factory=dict)
    dev: str | bytes | None = None  # a validation file beside it
    code: int = 3


def jsonl(*rows: dict) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def labelled(*labels: object) -> str:
    return jsonl(*({"text": f"film {i}", "label": label} for i, label in enumerate(labels)))


def parquet(**columns) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue().to_pybytes()


BAD = {
    # texts
    "None as text": Bad(
        jsonl({"text": "film", "label": "a"}, {"text": None, "label": "b"}),
        ("train.jsonl:2: the text is missing", "remove the row"),
        "train.jsonl",
    ),
    "NaN as text": Bad(
        '{"text": NaN, "label": "a"}\n', ("train.jsonl:1:", "NaN is not JSON"), "train.jsonl"
    ),
    "NaN of pandas": Bad(
        parquet(text=pa.array([1.0, float("nan")]), label=["a", "b"]),
        ("train.parquet:2: the text is missing",),
        "train.parquet",
    ),
    "number as text": Bad(
        jsonl({"text": 1, "label": "a"}),
        ("train.jsonl:1: the text is not a string",),
        "train.jsonl",
    ),
    "empty text refused": Bad(
        GOOD + " ,pos\n",
        ("train.csv:6: the text is empty", "on_empty to keep or skip"),
        fields={"data__on_empty": "error"},
    ),
    "missing second text": Bad(
        jsonl({"text": "a", "b": "c", "label": 0}, {"text": "a", "label": 1}),
        ("train.jsonl:2: the second text is missing",),
        "train.jsonl",
        {"data__text_pair": "b"},
    ),
    "half a surrogate pair": Bad(
        '{"text": "a\\ud83d", "label": "a"}\n',
        ("train.jsonl:1: the text has half of a surrogate pair",),
        "train.jsonl",
    ),
    # bytes
    "not UTF-8": Bad(
        GOOD.encode() + b"caf\xe9,pos\n",
        ("train.csv:6: byte 64 (0xe9) is not UTF-8", "iconv -f WINDOWS-1252 -t UTF-8"),
    ),
    "UTF-16": Bad(GOOD.encode("utf-16"), ("train.csv: is UTF-16", "iconv -f UTF-16 -t UTF-8")),
    "NUL": Bad(GOOD + "a\0b,pos\n", ("train.csv:6: contains a NUL character",)),
    "ragged": Bad(GOOD + "a,b,pos\n", ("train.csv:6: has 3 cells, the header has 2", "Quote")),
    "open quote": Bad(GOOD + '"a,pos\n', ("train.csv:6: is not valid CSV", "Close")),
    "no JSON": Bad('{"text": \n', ("train.jsonl:1: is not valid JSON",), "train.jsonl"),
    "a key twice": Bad(
        '{"text": "a", "label": 1, "text": "b"}\n', ("'text' is twice",), "train.jsonl"
    ),
    "cut gzip": Bad(
        gzip.compress(GOOD.encode())[:-9], ("the gzip file ends too early",), "train.csv.gz"
    ),
    "no gzip": Bad(GOOD, ("is not a valid gzip file",), "train.csv.gz"),
    "damaged Parquet": Bad(b"PAR1", ("cannot be read as Parquet",), "train.parquet"),
    "dates in Parquet": Bad(
        parquet(text=["a"], label=pa.array([1], pa.timestamp("ms"))),
        ("train.parquet:1: the label is neither a string nor a whole number",),
        "train.parquet",
    ),
    "unknown kind": Bad(
        GOOD, ("unknown kind of file '.xlsx'", "Expected .bio, .conll, .csv"), "train.xlsx"
    ),
    # columns
    "duplicate header": Bad("text,label,text\na,b,c\n", ("train.csv:1: column 'text' is twice",)),
    "wrong column": Bad(
        GOOD,
        ("train.csv:1: there is no column 'sentence'", "Columns: 'text', 'label'"),
        fields={"data__text": "sentence"},
    ),
    "wrong label column": Bad(
        GOOD, ("no column 'labels'. Did you mean 'label'?",), fields={"data__label": "labels"}
    ),
    "wrong key": Bad(
        labelled("a", "b"),
        ("no object has the key 'label_'. Did you mean 'label'?",),
        "train.jsonl",
        {"data__label": "label_"},
    ),
    # labels
    "missing label": Bad(GOOD + "film,\n", ("train.csv:6: the label is missing",)),
    "blank label": Bad(GOOD + "film, \n", ("train.csv:6: the label is missing",)),
    "hidden label": Bad(
        labelled(0, 1, -1), (":3: the label is -1", "hidden labels"), "train.jsonl"
    ),
    "hidden label in validation": Bad(
        GOOD, ("dev.csv:2: the label is -1",), dev="text,label\na,-1\n"
    ),
    "mixed labels": Bad(
        labelled("0", 1, 0.0, True),
        ("several kinds: string at", ":1, number at", ":2, true/false at", ":4. Use one kind."),
        "train.jsonl",
    ),
    "label == num_labels": Bad(
        "text,label\na,0\nb,1\n",
        ("dev.csv:3: the label is not among", "(got '2')", "Expected one of '0', '1'."),
        dev="text,label\na,0\nb,2\n",
    ),
    "unseen label in validation": Bad(
        GOOD,
        ("dev.csv:2: the label is not among those of the training data", "(got 'so-so')"),
        dev="text,label\na,so-so\n",
    ),
    "one class": Bad(
        "text,label\na,pos\nb,pos\n",
        ("train.csv: every row has the label 'pos'", "data.on_single_class=warn"),
    ),
    "no number": Bad(
        GOOD, ("(got 'pos')", "for regression"), fields={"data__problem": "regression"}
    ),
    "too large a number": Bad(
        "text,label\na,1e30\nb,0.5\n", ("train.csv:2: the label is so large", "Scale")
    ),
    # splits
    "empty file": Bad("", ("train.csv: is empty", "header line with text, label")),
    "no rows": Bad("text,label\n", ("train.csv: has no rows",)),
    "no validation rows": Bad(GOOD, ("dev.csv: has no rows",), dev="text,label\n"),
    "every row bad": Bad(
        "text,label\na\nb\n",
        ("no row can be used", "lines 2, 3"),
        fields={"data__on_bad_row": "skip"},
    ),
    "leak refused": Bad(
        GOOD,
        ("1 of 2 texts also occur in training", "dev.csv:3 = ", "train.csv:3", "on_leak=warn"),
        fields={"data__on_leak": "error"},
        dev="text,label\nthe good,pos\nBad  film,neg\n",
    ),
    "too few to hold out": Bad(GOOD, ("too few",), fields={"data__validation_fraction": 0.01}),
    # shapes
    "max_length above the model": Bad(
        GOOD, ("the model has 32 positions",), fields={"data__max_length": 33}, code=2
    ),
    "mesh that does not divide": Bad(
        GOOD,
        ("must be one of 1, 2, 4, 8",),
        fields={"mesh__data": 3, "data__max_length": 0},
        code=2,
    ),
    "unknown policy": Bad(
        GOOD,
        ("config.data.on_bad_row: expected one of error, skip",),
        fields={"data__on_bad_row": "ignore"},
        code=2,
    ),
}


def run(folder: Path, train: Path, tmp_path: Path, capsys, **fields):
    flags = train_flags(folder, train, tmp_path / "work", **{"data__max_length": 16, **fields})
    return call("train", *flags, capsys=capsys)


@pytest.mark.parametrize("case", BAD)
def test_refused(case, folder, tmp_path, capsys):
    bad = BAD[case]
    files = {bad.name: bad.content, **({"dev.csv": bad.dev} if bad.dev is not None else {})}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    fields = dict(bad.fields)
    if bad.dev is not None:
        fields["data__validation"] = tmp_path / "dev.csv"
    done = run(folder, tmp_path / bad.name, tmp_path, capsys, **fields)
    assert done.code == bad.code, done.err
    assert done.err.startswith("flaxbert: error: ")
    for part in bad.says:
        assert part in done.err
    assert done.err.count("\n") == 1 and "compiled" not in done.err
    assert not (tmp_path / "work" / "config.json").exists()


def _directory(path: Path) -> None:
    path.mkdir()


def _loop(path: Path) -> None:
    path.symlink_to(path)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: None, "there is no such file"),
        (_directory, "is a directory. Name a file."),
        (_loop, "cannot be read: Too many levels of symbolic links"),
        (os.mkfifo, "is a pipe or a device"),
        (lambda path: path.symlink_to("/dev/zero"), "is a pipe or a device"),
        (lambda path: path.symlink_to("gone.csv"), "there is no such file"),
    ],
)
def test_what_is_no_file(make, says, folder, tmp_path, capsys):
    make(tmp_path / "train.csv")
    done = run(folder, tmp_path / "train.csv", tmp_path, capsys)
    assert done.code == 3 and f"{tmp_path / 'train.csv'}: {says}" in done.err


@pytest.mark.parametrize("link", ["same", "symbolic", "hard"])
def test_one_file_twice(link, folder, tmp_path, capsys):
    train, dev = tmp_path / "train.csv", tmp_path / "dev.csv"
    train.write_text(GOOD)
    if link == "symbolic":
        dev.symlink_to(train)
    elif link == "hard":
        dev.hardlink_to(train)
    else:
        dev = tmp_path / "." / "train.csv"
    done = run(folder, train, tmp_path, capsys, data__validation=dev)
    assert done.code == 3
    assert f"config.data.train={train} and config.data.validation={dev} are one file" in done.err


def _with(path: Path, **changes: object) -> None:
    values = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(values | changes))


FOLDERS = {
    # name: (what to change in the folder, what the message says)
    "more tokens than embeddings": (
        lambda path: _with(path, vocab_size=10),
        "the tokenizer has 11 tokens, the model 10 embeddings",
    ),
    "no vocabulary": (
        lambda path: (path / "vocab.txt").unlink(),
        "has neither tokenizer.json nor vocab.txt",
    ),
    "byte order mark": (
        lambda path: (path / "vocab.txt").write_text("\ufeff" + "\n".join(TOKENS), "utf-8"),
        "vocab.txt: starts with a byte order mark",
    ),
    "no [SEP]": (
        lambda path: (path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\nfilm\n"),
        "the tokenizer has no sep token",
    ),
    "no JSON": (
        lambda path: (path / "tokenizer.json").write_text("{"),
        "the tokenizer files cannot be read: JSONDecodeError",
    ),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_model_folders_that_are_refused(case, folder, tmp_path, capsys):
    change, says = FOLDERS[case]
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "vocab.txt"):
        (model / name).write_bytes((folder / name).read_bytes())
    change(model)
    (tmp_path / "train.csv").write_text(GOOD)
    done = run(model, tmp_path / "train.csv", tmp_path, capsys)
    assert done.code == 4, done.err
    assert says in done.err and "Traceback" not in done.err


@pytest.fixture
def another_head(tiny_bert, tmp_path) -> Path:
    """Writes a checkpoint of two labels whose head has five rows, and whose uncased vocabulary is
    said to be cased."""
    from safetensors.numpy import load_file

    from flaxbert.weights.formats.safetensors_file import write_safetensors

    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "vocab.txt"):
        (model / name).write_bytes((tiny_bert / name).read_bytes())
    (model / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    tensors = load_file(tiny_bert / "model.safetensors")
    tensors["classifier.weight"] = np.zeros((5, 32), np.float32)
    tensors["classifier.bias"] = np.zeros(5, np.float32)
    write_safetensors(model / "model.safetensors", tensors)
    _with(model, num_labels=2, id2label={"0": "no", "1": "yes"}, label2id={"no": 0, "yes": 1})
    return model


def test_a_prediction_with_another_number_of_labels(another_head, tmp_path, capsys):
    """Training gives such a checkpoint a fresh head; prediction cannot."""
    (tmp_path / "in.txt").write_text("a film\n")
    done = call(
        "predict",
        f"--model={another_head}",
        f"--input={tmp_path / 'in.txt'}",
        f"--output={tmp_path / 'out.jsonl'}",
        capsys=capsys,
    )
    assert done.code == 4, done.err
    assert "classifier" in done.err and "Traceback" not in done.err
    assert not (tmp_path / "out.jsonl").exists()


HARD_TEXTS = [
    *("NA", "null", "nan", "None", "", " ", "א\u202eevil\u202c", "👩‍👩‍👧‍👦 🇩🇪", "zero\u200bwidth"),
    *("\ufeffmark", "word " * 200_000, "line one\nline two", 'say ""', "[CLS] [SEP]"),
]


@pytest.mark.slow
def test_what_is_odd_but_trains(another_head, tmp_path, capsys):
    """One run on all that is allowed: marks, literal "NA", empty, long and bidirectional texts,
    rows to skip, duplicates, leaks, near-equal labels, one row more than whole batches."""
    import csv
    import io

    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow(["text", "label"])
    rows = [(text, ["pos", "neg "][i % 2]) for i, text in enumerate(HARD_TEXTS)]
    more = [("twice", "pos"), ("twice", "neg"), ("rare", "Pos"), ("\tno label", "")]
    writer.writerows([*rows, *more])
    (tmp_path / "train.csv").write_bytes(b"\xef\xbb\xbf" + out.getvalue().encode() + b"one cell\n")
    (tmp_path / "dev.csv").write_text("text,label\nTwice,pos\nnew,neg\nother, pos \nna,neg\n")
    done = run(
        another_head,
        tmp_path / "train.csv",
        tmp_path,
        capsys,
        data__validation=tmp_path / "dev.csv",
        data__on_bad_row="skip",
        train__batch_size=4,
        train__steps=1,
        data__row_length=16,
    )
    assert done.code == 0, done.err
    for part in (
        "the checkpoint's head has another number of labels than 3",
        "freshly initialised, to be trained: classifier.bias, classifier.weight",
        "tokenizer: WARNING: no word of the vocabulary has a capital letter",
        "training: 17 rows; Pos 1 (5.9 %), neg 8 (47.1 %), pos 8 (47.1 %)",
        "longest 200002; ",
        "training: WARNING: 1 row skipped: another number of cells than the header (line 21)",
        "training: WARNING: 1 row skipped: the label is missing (line 20)",
        "training: WARNING: 2 rows with an empty text (lines 6, 7)",
        "training: WARNING: 1 row with the text of an earlier row, 1 of them with another label: ",
        "validation: WARNING: no row has the label 'Pos'",
        "labels: WARNING: 'Pos', 'pos' look alike (case, spacing",
        "validation: WARNING: 2 of 4 texts also occur in training, 0 of them exactly",
        "target: single_label, labels Pos, neg, pos",
    ):
        assert part in done.err, part
    report = json.loads((tmp_path / "work" / "data_report.json").read_text())
    assert report["training"]["skipped"] == {
        "another number of cells than the header": 1,
        "the label is missing": 1,
    }
    assert report["validation_in_training"]["rows"] == 2
    # The run's own data are read under its own policy again.
    done = call("evaluate", f"--workdir={tmp_path / 'work'}", "--split=train", capsys=capsys)
    assert done.code == 0, done.err
    assert json.loads(done.out)["train_samples"] == 17


NO_WEIGHTS = 4  # the data were accepted: what is missing next is model.safetensors
POLICIES = {
    # field: (the other value, training file, validation file, exit codes by default and with it)
    "on_bad_row": ("skip", GOOD + "film\n", DEV, (3, NO_WEIGHTS)),
    "on_empty": ("skip", "text,label\n,pos\n ,neg\n", DEV, (NO_WEIGHTS, 3)),
    "on_leak": ("error", GOOD, "text,label\nbad film,neg\n", (NO_WEIGHTS, 3)),
    "on_single_class": (
        "warn",
        "text,label\na,yes\nb,yes\n",
        "text,label\nc,yes\n",
        (3, NO_WEIGHTS),
    ),
}


@pytest.mark.parametrize("field", POLICIES)
def test_policies(field, folder, tmp_path, capsys):
    value, train, dev, codes = POLICIES[field]
    if field == "on_single_class":  # allowed where the checkpoint knows another class
        folder = shutil.copytree(folder, tmp_path / "model")
        _with(folder, id2label={"0": "no", "1": "yes"}, label2id={"no": 0, "yes": 1})
    (tmp_path / "train.csv").write_text(train)
    (tmp_path / "dev.csv").write_text(dev)
    for code, fields in zip(codes, ({}, {f"data__{field}": value}), strict=True):
        done = run(
            folder,
            tmp_path / "train.csv",
            tmp_path,
            capsys,
            data__validation=tmp_path / "dev.csv",
            **fields,
        )
        assert done.code == code, done.err
