"""Random data files: read, checked, split and reported on; some through the real command line.

    python -m tests.soak.fuzz_data --files=100000 --commands=200 --output=FILE.json

Files are valid rows in every format, then damaged: bytes flipped, cut, doubled, odd texts, numbers
and labels, nested JSON. In process each one must be accepted or refused by a DataError or
ConfigError; as a command it must end with exit code 0 or 3 and without a traceback. Each file
depends on the seed and its number alone, so that a failure can be made again.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import gzip
import io
import json
import math
import os
import platform
import random
import re
import sys
import tempfile
import time
import traceback
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from flaxbert.config import Config, Data
from tests.soak.record import machine, scratch, versions

FORMATS = ("csv", "tsv", "jsonl", "parquet", "csv.gz", "tsv.gz", "jsonl.gz")

WORDS = [
    "film",
    "good",
    "bad",
    "the",
    "a",
    "not",
    "Straße",
    "你好",
    "😀",
    "👩‍👩‍👧",
    "\u202eabc",
    "\u200b",
]
ODD_TEXTS = [
    "", " ", "\t", "NA", "null", "nan", "None", '"', '""', ",", "a\nb", "a\r\nb", "\r", "\u2028",
    "\ufeff", "\x0b", "\x1f", "\x7f", "[CLS]", "[SEP] x", "x" * 3000, "é" * 600, "e\u0301", "'",
    "\\", "\\n", "{}", "[1]", "1", "0.5", "\ud83d", "\udc00x", "\x00", "ﬁ", "İ", "=1+1",
]  # fmt: skip
ODD_LABELS: list[Any] = [
    None, "", " ", "-1", -1, "0", 0, "1", 1, 1.0, "1.0", 0.5, "0.5", True, False, "true", "pos",
    "pos ", "Pos", "neg", "a|b", "|", "a||b", [], ["a"], ["a", "b"], ["a", "a"], [1, 0], [None],
    [[1]], {}, {"a": 1}, "1e999", 1e300, 1e30, -0.0, "-0", "+1", "1_000", "0x1", "١", "inf", "NaN",
    10**30, 10**400, "x" * 500, "\ud83d", "LABEL_0", "a\tb", "1.5.2", "1e-400", float("nan"),
    float("inf"), "007", "\u2028", "ｐｏｓ",
]  # fmt: skip
STYLES: dict[str, list[Any]] = {
    "names": ["neg", "pos"],
    "many names": [f"class {i}" for i in range(12)],
    "ids": ["0", "1", "2"],
    "integers": [0, 1],
    "stars": [1, 2, 3, 4, 5],
    "numbers": [0.5, 1.25, -3.0, 2.0],
    "lists": [["a"], ["b"], ["a", "b"], []],
    "joined": ["a", "a|b", "b|c", ""],
    "booleans": [True, False],
    "odd": ODD_LABELS,
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One training file, perhaps a validation file, and the options they are read with."""

    kind: str
    data: Data


def make_case(seed: int, number: int, folder: Path, *, gentle: bool = False) -> Case:
    """Writes the files of case `number`; gentle ones are damaged rarely, so that they train."""
    chance = random.Random(f"{seed}-{number}")
    kind = chance.choice(FORMATS)
    style = chance.choice([name for name in STYLES if name != "odd"])
    damage = chance.random() < (0.3 if gentle else 0.5)
    oddness = chance.choice([0.0, 0.0, 0.01, 0.1]) if not gentle or damage else 0.0
    paths = {}
    for name in ("train", "validation"):
        if name == "validation" and chance.random() < 0.6:
            continue
        paths[name] = folder / f"{name}.{kind}"
        rows = _rows(chance, style, oddness, chance.randrange(0 if not gentle else 8, 25))
        if paths.get("train") and name == "validation" and chance.random() < 0.05:
            paths[name] = paths["train"]
            continue
        content = _write(chance, kind.removesuffix(".gz"), rows)
        if damage and (kind != "parquet" or chance.random() < 0.5):
            content = _damaged(chance, content)
            if kind != "parquet" and chance.random() < 0.8:  # else most are refused for a byte
                content = content.decode("utf-8", "ignore").encode()
        if kind.endswith(".gz"):
            content = gzip.compress(content, 1, mtime=0)
            if damage and chance.random() < 0.3:
                content = _damaged(chance, content)
        paths[name].write_bytes(content)
    options: dict[str, Any] = {
        "on_bad_row": chance.choice(["error", "skip"]),
        "on_empty": chance.choice(["keep", "keep", "skip", "error"]),
        "on_leak": chance.choice(["warn"] * 4 + ["error"]),
        "on_single_class": chance.choice(["error", "warn"]),
        "text_pair": chance.choice(["", "", "pair"]),
        "label_separator": "|" if style == "joined" else chance.choice([""] * 7 + ["|"]),
        "problem": chance.choice(["auto"] * 9 + ["single_label", "multi_label", "regression"]),
    }
    if "validation" not in paths:
        options["validation_fraction"] = chance.choice([0.0, 0.1, 0.3, 0.9])
    return Case(kind, Data(**{name: str(path) for name, path in paths.items()}, **options))


def _rows(chance: random.Random, style: str, oddness: float, count: int) -> list[dict[str, Any]]:
    def text() -> str:
        if chance.random() < oddness:
            return chance.choice(ODD_TEXTS)
        if chance.random() < oddness:
            return "".join(chr(chance.randrange(1, 0xD800)) for _ in range(chance.randrange(30)))
        return " ".join(chance.choices(WORDS, k=chance.randrange(1, 12)))

    def label() -> Any:
        return chance.choice(ODD_LABELS if chance.random() < oddness else STYLES[style])

    return [{"text": text(), "pair": text(), "label": label()} for _ in range(count)]


def _write(chance: random.Random, kind: str, rows: list[dict[str, Any]]) -> bytes:
    if kind == "parquet":
        return _parquet(chance, rows)
    if kind == "jsonl":
        lines = []
        for row in rows:
            drop = chance.random() < 0.01
            values = {name: value for name, value in row.items() if not (drop and name != "pair")}
            lines.append(json.dumps(values, ensure_ascii=chance.random() < 0.5, default=str))
        return ("\n".join(lines) + "\n").encode("utf-8", "surrogatepass")
    out = io.StringIO(newline="")
    names = chance.sample(["text", "pair", "label"], 3)
    if kind == "csv":
        quoting = chance.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
        writer = csv.writer(
            out, quoting=quoting, lineterminator=chance.choice(["\n", "\r\n", "\r"])
        )
        writer.writerow(names)
        writer.writerows([["" if row[n] is None else row[n] for n in names] for row in rows])
    else:
        out.write("\t".join(names) + "\n")
        for row in rows:
            cells = [str("" if row[name] is None else row[name]) for name in names]
            out.write("\t".join(cells) + "\n")
    mark = "\ufeff" if chance.random() < 0.1 else ""
    encoding = chance.choice(["utf-8"] * 40 + ["utf-16", "latin-1"])
    errors = "surrogatepass" if encoding.startswith("utf") else "replace"
    return (mark + out.getvalue()).encode(encoding, errors)


def _parquet(chance: random.Random, rows: list[dict[str, Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {}
    for name in ("text", "pair", "label"):
        values = [row[name] for row in rows]
        try:
            columns[name] = pa.array(values)
            pq.write_table(pa.table(columns), io.BytesIO())  # not every type can be written
        except (pa.ArrowException, OverflowError, UnicodeEncodeError, ValueError, TypeError):
            values = [str(value).encode("utf-8", "replace").decode() for value in values]
            columns[name] = pa.array(values)
        if chance.random() < 0.2 and pa.types.is_string(columns[name].type):
            columns[name] = columns[name].dictionary_encode()
    table = pa.table(columns)
    if chance.random() < 0.3:
        names = chance.choice([["neg", "pos"], ["a"], "x", [1], None, ["n ", "p"] * 3])
        feature = chance.choice(
            [{"names": names, "_type": "ClassLabel"}, [{"names": names}], {"feature": names}, 3]
        )
        info = chance.choice([{"info": {"features": {"label": feature}}}, {}, [], "x"])
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    out = io.BytesIO()
    compression = chance.choice(["snappy", "none", "zstd", "gzip"])
    pq.write_table(table, out, row_group_size=chance.choice([1, 7, 1000]), compression=compression)
    return out.getvalue()


def _damaged(chance: random.Random, content: bytes) -> bytes:
    """Returns the content after one to four random changes."""
    data = bytearray(content)
    pieces = [
        b"\0", b"\xff", b"\xc3", b'"', b'""', b"\n", b"\r", b"\r\n", b",", b"\t", b"{", b"}", b"[",
        b"\\ud83d", b"\\u0000", b"NaN", b"1e999", b"null", b"true", b'"text":', b"\xef\xbb\xbf",
        b"\xe2\x80\xa8", b"-1", b"[[[[", b"{}\n", b"text,label\n", b"9" * 5000, b"[" * 3000,
    ]  # fmt: skip
    for _ in range(chance.randrange(1, 5)):
        place = chance.randrange(len(data) + 1)
        end = min(len(data), place + chance.randrange(1, 40))
        change = chance.randrange(7)
        if change == 0 and place < len(data):
            data[place] ^= 1 << chance.randrange(8)
        elif change == 1:
            del data[place:]
        elif change == 2:
            data[place:place] = data[place:end] * chance.randrange(1, 4)
        elif change == 3:
            data[place:place] = chance.choice(pieces)
        elif change == 4:
            data[place:end] = chance.randbytes(chance.randrange(12))
        elif change == 5:
            del data[place:end]
        else:
            data[place:place] = chance.choice(ODD_TEXTS).encode("utf-8", "surrogatepass")
    return bytes(data)


def try_case(case: Case, tokenizer: Any) -> str:
    """Reads the case as `prepare` and `predict` would; returns why it was refused, "" if it was
    not, and raises what is neither."""
    from flaxbert.data import checks, splits
    from flaxbert.data.sources import files
    from flaxbert.errors import ConfigError, DataError
    from flaxbert.heads import head_named

    data = case.data
    try:
        for chunk in files.read_chunks(data.train, {"text": "text", "text_pair": data.text_pair}):
            checks.usable_texts(chunk, Data())
    except DataError:
        pass
    try:
        config = Config(data=data)
        head = head_named("single_label")
        read = splits.read_training(config, head)
        train, held = read.train, read.validation
        labels = head.learn_labels(train, config, checks.Known((), read.names))
        head = head_named(labels.problem)
        if data.validation_fraction:
            train, held_out = splits.hold_out(config, head, train, labels)
            held = {"": held_out}
        made = [
            head.split(name, rows, labels, tokenizer, 32, config)
            for name, rows in (("training", train), *(("validation", r) for r in held.values()))
        ]
        validation = dict(zip(("validation",), made[1:], strict=False))
        report = splits.report_on(data, labels, made[0], validation)
    except (DataError, ConfigError) as error:
        return reason_of(str(error))
    json.dumps(report.values, allow_nan=False)
    for split in made:
        assert len(split.examples) == len(split.targets) == len(split.rows) > 0
        assert len(split.examples.labels) == len(split.rows)
    return ""


def reason_of(message: str) -> str:
    """Returns the part of a message that does not depend on the file."""
    without_place = re.sub(r"^\S*?( \([a-z ]+\))?(:[0-9]+)?: |=\S*|/\S*", "", message)
    return re.split(r"[0-9'\"(:;.\[]", without_place)[0].strip()[:60]


def fuzz_files(
    count: int, seed: int, tokenizer: Any, until: float = math.inf
) -> tuple[dict[str, Counter], Counter, list[str]]:
    """Returns per format how many cases were accepted and refused; the reasons; the failures.

    Ends before `count` when the monotonic clock passes `until`.
    """
    outcomes: dict[str, Counter] = {kind: Counter() for kind in FORMATS}
    reasons: Counter = Counter()
    failures = []
    with tempfile.TemporaryDirectory() as temporary:
        for number in range(count):
            if time.monotonic() > until:
                break
            case = make_case(seed, number, Path(temporary))
            try:
                reason = try_case(case, tokenizer)
                outcomes[case.kind]["refused" if reason else "accepted"] += 1
                reasons[reason] += bool(reason)
            except Exception:
                failures.append(f"file {number}, {case}:\n{traceback.format_exc()}")
            if number % 10_000 == 9_999:
                print(f"{number + 1} files, {len(failures)} failures", file=sys.stderr)
    return outcomes, +reasons, failures


def fuzz_commands(
    count: int, seed: int, model: Path, until: float = math.inf
) -> tuple[Counter, list[str]]:
    """Trains one update on random files by real processes; returns exit codes and failures."""
    from tests.commands import start, train_flags

    codes: Counter = Counter()
    failures = []
    with tempfile.TemporaryDirectory() as temporary:
        cache = {
            "JAX_COMPILATION_CACHE_DIR": str(Path(temporary) / "cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            "JAX_PLATFORMS": "cpu",
        }
        for number in range(count):
            if time.monotonic() > until:
                break
            folder = Path(temporary) / str(number)
            folder.mkdir()
            case = make_case(seed, 10**9 + number, folder, gentle=number % 2 == 0)
            # One shape for all, so that the compile cache serves most runs.
            fields = {
                **{f"data__{name}": value for name, value in vars(case.data).items()},
                "data__max_length": 32,
                "data__row_length": 32,
                "data__packing": "pad",
                "train__batch_size": 4,
                "train__steps": 1,
            }
            flags = train_flags(model, Path(fields.pop("data__train")), folder / "work", **fields)
            process = start("train", *flags, env={**os.environ, **cache})
            out, err = process.communicate(timeout=600)
            codes[str(process.returncode)] += 1
            if process.returncode not in (0, 3) or "Traceback" in out + err:
                failures.append(f"command {number}, exit {process.returncode}, {case}:\n{err}")
    return codes, failures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--commands", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop early after these")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()

    from flaxbert.data.tokenize import Tokenizer
    from tests.inputs import write_tiny_bert

    begun = time.monotonic()
    until = begun + arguments.seconds
    with scratch() as folder:
        model = write_tiny_bert(folder / "model")
        tokenizer = Tokenizer(model, vocab_size=30522, pad_token_id=0)
        with ThreadPoolExecutor() as pool:  # the commands are processes of their own
            commands = pool.submit(fuzz_commands, arguments.commands, arguments.seed, model, until)
            outcomes, reasons, failures = fuzz_files(
                arguments.files, arguments.seed, tokenizer, until
            )
            in_process = time.monotonic() - begun
            codes, wrong = commands.result()
    for failure in (*failures, *wrong):
        print(failure, file=sys.stderr)
    totals = sum(outcomes.values(), Counter())
    record = {
        "what": "random data files: accepted or refused with a message, never a traceback",
        "command": f"python -m tests.soak.fuzz_data --files={arguments.files} "
        f"--commands={arguments.commands} --seed={arguments.seed} --seconds={arguments.seconds}",
        "files": totals.total() + len(failures),
        "accepted": totals["accepted"],
        "refused": totals["refused"],
        "failures": len(failures),
        "by_format": {kind: dict(sorted(counts.items())) for kind, counts in outcomes.items()},
        "reasons": dict(reasons.most_common()),
        "commands": codes.total(),
        "exit_codes": dict(sorted(codes.items())),
        "commands_failed": len(wrong),
        "seed": arguments.seed,
        "seconds_files": round(in_process),
        "seconds": round(time.monotonic() - begun),
        "python": platform.python_version(),
        "versions": versions(("jax", "numpy", "pyarrow", "tokenizers", "transformers")),
        "machine": machine(),
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(record, indent=2) + "\n")
    print(f"{len(failures)} of {record['files']} files and {len(wrong)} of {record['commands']} "
          f"commands failed, {record['seconds']} s")  # fmt: skip
    sys.exit(bool(failures or wrong))


if __name__ == "__main__":
    main()
