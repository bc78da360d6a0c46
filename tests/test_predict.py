"""The predict and evaluate commands on folders: formats in and out, order, columns."""

from __future__ import annotations

import csv
import io
import json
import time
import types

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.commands import call, start
from tests.inputs import write_trained

TEXTS = ["a fine film", "", "bad, bad, bad", "the same\u2028line", "émotion 😀", "a fine film"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return write_trained(tmp_path_factory.mktemp("trained") / "model")


def _write(path, texts):
    if path.suffix == ".txt":
        path.write_text("".join(text + "\n" for text in texts), encoding="utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            rows.writerow(["text", "n"])
            rows.writerows([text, i] for i, text in enumerate(texts))
    return path


@pytest.fixture(scope="module")
def expected(trained):
    from flaxbert import Classifier

    one_by_one = Classifier.from_pretrained(trained)
    return [one_by_one([text])[0] for text in TEXTS]


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv", ".tsv"])
def test_one_line_per_input_in_order(suffix, trained, expected, tmp_path, capsys):
    source = _write(tmp_path / f"in{suffix}", TEXTS)
    output = tmp_path / "out.jsonl"
    done = call(
        "predict", f"--model={trained}", f"--input={source}", f"--output={output}", capsys=capsys
    )
    assert done.code == 0, done.err
    assert f"6 predictions in {output}; 1 of them of an empty text" in done.err
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert [r["label"] for r in records] == [r["label"] for r in expected]
    for record, alone in zip(records, expected, strict=True):
        assert list(record["probabilities"]) == ["bad", "fair", "good"]
        # SingleProcess or packed with others: float32 sums in another order.
        assert record["score"] == pytest.approx(alone["score"], abs=1e-6)
        assert record["score"] == max(record["probabilities"].values())
    assert records[0]["score"] == pytest.approx(records[5]["score"], abs=1e-6)
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".tmp")] == []


def test_standard_input_and_csv_output(trained, expected, tmp_path, capsys, monkeypatch):
    data = "".join(text + "\r\n" for text in TEXTS).encode()
    monkeypatch.setattr("sys.stdin", types.SimpleNamespace(buffer=io.BytesIO(data)))
    output = tmp_path / "out.csv"
    done = call("predict", f"--model={trained}", "--input=-", f"--output={output}", capsys=capsys)
    assert done.code == 0, done.err
    rows = list(csv.DictReader(io.StringIO(output.read_text())))
    assert [row["label"] for row in rows] == [record["label"] for record in expected]
    assert set(rows[0]) == {
        "label", "score", "probability_bad", "probability_fair", "probability_good",
    }  # fmt: skip


def test_no_input_no_predictions(trained, tmp_path, capsys):
    source = tmp_path / "in.txt"
    source.write_text("")
    output = tmp_path / "out.jsonl"
    done = call(
        "predict", f"--model={trained}", f"--input={source}", f"--output={output}", capsys=capsys
    )
    assert done.code == 0, done.err
    assert output.read_text() == ""


def test_columns_by_name(trained, tmp_path, capsys):
    source = tmp_path / "in.csv"
    source.write_text("a,b\nfirst,second\n")
    flags = [f"--model={trained}", f"--input={source}", f"--output={tmp_path / 'o.jsonl'}"]
    done = call("predict", *flags, capsys=capsys)
    assert done.code == 3 and "no column 'text'" in done.err
    done = call("predict", *flags, "--text=a", "--text_pair=b", capsys=capsys)
    assert done.code == 0, done.err
    pair = json.loads((tmp_path / "o.jsonl").read_text())
    call("predict", *flags, "--text=a", capsys=capsys)
    assert json.loads((tmp_path / "o.jsonl").read_text()) != pair


def test_no_input_still_gives_the_header_of_csv(trained, tmp_path, capsys):
    source, output = tmp_path / "in.txt", tmp_path / "out.csv"
    source.write_text("")
    done = call(
        "predict", f"--model={trained}", f"--input={source}", f"--output={output}", capsys=capsys
    )
    assert done.code == 0, done.err
    assert output.read_text() == "label,score,probability_bad,probability_fair,probability_good\n"


def test_many_parts_are_one_file_in_order(trained, tmp_path, capsys, monkeypatch):
    """More rows than are in memory at once: the parts come out as the whole would."""
    texts = [f"film number {i} " + "good " * (i % 7) for i in range(50)]
    source = _write(tmp_path / "in.jsonl", texts)
    outputs = []
    for size in (8192, 16):
        monkeypatch.setattr("flaxbert.predict._SIZE", size)
        outputs.append(tmp_path / f"{size}.jsonl")
        flags = [f"--model={trained}", f"--input={source}", f"--output={outputs[-1]}"]
        done = call("predict", *flags, capsys=capsys)
        assert done.code == 0, done.err
    whole, parts = ([json.loads(line) for line in o.read_text().splitlines()] for o in outputs)
    assert len(whole) == len(parts) == 50
    for one, other in zip(whole, parts, strict=True):
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-6)


def test_standard_output_gets_lines_and_nothing_else(trained, tmp_path, capsys):
    source = _write(tmp_path / "in.txt", TEXTS)
    done = call("predict", f"--model={trained}", f"--input={source}", "--output=-", capsys=capsys)
    assert done.code == 0, done.err
    assert [set(json.loads(line)) for line in done.out.splitlines()] == [
        {"label", "score", "probabilities"}
    ] * 6
    assert "6 predictions in standard output" in done.err


@pytest.mark.parametrize("kind", ["multi_label", "regression"])
def test_other_kinds_of_answers(kind, tmp_path, capsys):
    names = ("x",) if kind == "regression" else ("bad", "good")
    model = write_trained(tmp_path / "model", names, kind)
    source = _write(tmp_path / "in.txt", TEXTS)
    for suffix in ("jsonl", "csv"):
        flags = [f"--model={model}", f"--input={source}", f"--output={tmp_path / f'o.{suffix}'}"]
        assert call("predict", *flags, capsys=capsys).code == 0
    records = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    table = list(csv.DictReader(io.StringIO((tmp_path / "o.csv").read_text())))
    assert len(records) == len(table) == 6
    for record, row in zip(records, table, strict=True):
        if kind == "regression":
            assert list(record) == ["value"]
            assert float(row["value"]) == pytest.approx(record["value"], abs=1e-6)
            continue
        assert json.loads(row["labels"]) == record["labels"]
        assert record["labels"] == [n for n, p in record["probabilities"].items() if p > 0.5]


@pytest.mark.parametrize("suffix", ["txt", "csv"])
def test_unknown_tokens_are_told_once_over_all_rows(trained, tmp_path, capsys, monkeypatch, suffix):
    monkeypatch.setattr("flaxbert.predict._SIZE", 2)
    strange = "\U00012000 \U00012001 \U00012002"  # cuneiform: one [UNK] each
    for texts, told in ((["film film", "film", strange], True), (["film"] * 20 + [strange], False)):
        source = _write(tmp_path / f"in.{suffix}", texts)
        flags = [f"--model={trained}", f"--input={source}", f"--output={tmp_path / 'o.jsonl'}"]
        done = call("predict", *flags, capsys=capsys)
        assert done.code == 0, done.err
        assert done.err.count("of the tokens are unknown to the vocabulary") == told
        assert ("WARNING: 50 % of the tokens are unknown" in done.err) == told


def test_long_texts_are_told_and_treated_as_asked(trained, tmp_path, capsys):
    source = _write(tmp_path / "in.txt", ["short", "word " * 100])
    answers = {}
    for long, told in (("truncate", "(cut)"), ("head_tail", "the middle)"), ("window", "windows)")):
        output = tmp_path / f"{long}.jsonl"
        flags = [f"--model={trained}", f"--input={source}", f"--output={output}"]
        done = call("predict", *flags, f"--long={long}", "--max_length=32", capsys=capsys)
        assert done.code == 0, done.err
        assert "1 of texts over 32 tokens" in done.err and told in done.err
        answers[long] = output.read_text().splitlines()[1]
    assert answers["window"] != answers["truncate"]


def test_a_bad_line_leaves_no_file(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("flaxbert.predict._SIZE", 2)
    source = tmp_path / "in.jsonl"
    source.write_text('{"text": "a"}\n' * 4 + '{"text": 5}\n')
    output = tmp_path / "out.jsonl"
    output.write_text("from before\n")
    done = call(
        "predict", f"--model={trained}", f"--input={source}", f"--output={output}", capsys=capsys
    )
    assert done.code == 3 and "in.jsonl:5" in done.err
    assert output.read_text() == "from before\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


UNUSABLE = {
    # a file with three rows, of which only the first and the last can be answered
    "null.jsonl": '{"text": "a fine film"}\n{"text": null}\n{"text": "dull"}\n',
    "number.jsonl": '{"text": "a fine film"}\n{"text": 5}\n{"text": "dull"}\n',
    "broken.jsonl": '{"text": "a fine film"}\n{"text": \n{"text": "dull"}\n',
    "ragged.csv": "n,text\n1,a fine film\n2\n3,dull\n",
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_rows_without_a_text(name, trained, tmp_path, capsys, monkeypatch):
    """They stop the command, or get an empty answer in their place, whatever part they are in."""
    source = tmp_path / name
    source.write_text(UNUSABLE[name])
    line = 3 if name.endswith(".csv") else 2
    flags = [f"--model={trained}", f"--input={source}"]
    done = call("predict", *flags, "--output=-", capsys=capsys)
    assert (done.code, done.out) == (3, "")
    assert f"{name}:{line}: " in done.err
    assert "Or set --on_bad_row=skip for an empty answer in its place." in done.err
    flags.append("--on_bad_row=skip")
    for size in (8192, 1):
        monkeypatch.setattr("flaxbert.predict._SIZE", size)
        done = call("predict", *flags, "--output=-", capsys=capsys)
        assert done.code == 0, done.err
        first, empty, last = map(json.loads, done.out.splitlines())
        assert first["label"] and last["label"]
        assert empty == {"label": None, "score": None, "probabilities": None}
        assert "3 predictions in standard output; 1 of them empty: " in done.err
        assert f"(line {line})" in done.err
        done = call("predict", *flags, f"--output={tmp_path / 'o.csv'}", capsys=capsys)
        assert done.code == 0, done.err
        assert (tmp_path / "o.csv").read_text().splitlines()[2] == ",,,,"


def test_a_row_of_bytes_that_are_no_text(trained, tmp_path, capsys):
    source = tmp_path / "in.parquet"
    pq.write_table(pa.table({"text": [b"a film", b"\xff\xfe", b"dull"]}), source)
    flags = [f"--model={trained}", f"--input={source}", "--output=-"]
    done = call("predict", *flags, capsys=capsys)
    assert (done.code, done.out) == (3, "")
    assert "in.parquet:2: the cell is binary" in done.err and "--on_bad_row=skip" in done.err
    done = call("predict", *flags, "--on_bad_row=skip", capsys=capsys)
    assert done.code == 0, done.err
    first, empty, last = map(json.loads, done.out.splitlines())
    assert first["label"] and last["label"] and empty["label"] is None


def test_a_policy_for_rows_is_for_files(trained, capsys):
    flags = [f"--workdir={trained}", "--split=test", "--on_bad_row=skip"]
    done = call("predict", *flags, capsys=capsys)
    assert done.code == 2 and "--on_bad_row is for --input" in done.err


def test_probabilities_of_the_best_labels(trained, expected, tmp_path, capsys):
    source = _write(tmp_path / "in.txt", TEXTS)
    for suffix in ("jsonl", "csv"):
        flags = [f"--model={trained}", f"--input={source}", f"--output={tmp_path / f'o.{suffix}'}"]
        assert call("predict", *flags, "--top_k=2", capsys=capsys).code == 0
    records = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    table = list(csv.DictReader(io.StringIO((tmp_path / "o.csv").read_text())))
    for record, row, whole in zip(records, table, expected, strict=True):
        best = sorted(whole["probabilities"].items(), key=lambda item: -item[1])[:2]
        assert list(record["probabilities"]) == [name for name, _ in best]
        assert record["probabilities"] == pytest.approx(dict(best), abs=1e-6)
        assert list(row) == ["label", "score", "probabilities"]
        assert json.loads(row["probabilities"]) == record["probabilities"]
    done = call("predict", *flags, "--top_k=-2", capsys=capsys)
    assert done.code == 2 and "top_k: expected" in done.err


def test_many_labels_have_the_best_probabilities_only(tmp_path):
    """Unless all are asked for; of few labels all are the default."""
    from flaxbert import Classifier

    model = write_trained(tmp_path / "model", [f"label {i:03}" for i in range(201)])
    for options, count in (({}, 10), ({"top_k": 0}, 201), ({"top_k": 3}, 3)):
        answer = Classifier.from_pretrained(model, **options)("a fine film")
        values = list(answer["probabilities"].values())
        assert len(values) == count and answer["score"] == max(values)
    numbers = write_trained(tmp_path / "number", ["x"], "regression")
    with pytest.raises(ValueError, match="top_k=3 has no effect"):
        Classifier.from_pretrained(numbers, top_k=3)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_standard_output_is_utf8_for_any_terminal(encoding, tmp_path, capsys, monkeypatch):
    model = write_trained(tmp_path / "model", ["好/👍", "é"])
    source = _write(tmp_path / "文.txt", ["a fine film"])
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding) for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(f"sys.{name}", stream)
    done = call("predict", f"--model={model}", f"--input={source}", "--output=-")
    out, err = (stream.buffer.getvalue() for stream in streams.values())
    assert done.code == 0, err
    assert set(json.loads(out.decode("utf-8"))["probabilities"]) == {"好/👍", "é"}
    assert b"1 predictions in standard output" in err


def test_the_input_is_not_overwritten(trained, tmp_path, capsys):
    source = _write(tmp_path / "in.csv", TEXTS)
    done = call(
        "predict", f"--model={trained}", f"--input={source}", f"--output={source}", capsys=capsys
    )
    assert done.code == 2 and "is the input itself" in done.err


def test_progress_is_told_now_and_then(capsys):
    from flaxbert.shell.progress_bar import progress_bar

    with progress_bar(20) as bar:
        for _ in range(20):
            bar.update(1)
    told = capsys.readouterr().err
    assert "20/20" in told and told.count("\r") == 2  # its beginning and its end


def test_a_signal_leaves_no_file(trained, tmp_path):
    """It comes while the file is being written beside its name."""
    source, folder = tmp_path / "in.txt", tmp_path / "out"
    source.write_text("a fine film\n" * 100_000)
    folder.mkdir()
    process = start(
        "predict", f"--model={trained}", f"--input={source}", f"--output={folder / 'out.jsonl'}"
    )
    deadline = time.monotonic() + 120
    while not list(folder.glob("out.jsonl.*.tmp")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.terminate()
    _, told = process.communicate(timeout=60)
    assert process.returncode == 75, told
    assert "Run the same command again" in told and "Traceback" not in told
    assert list(folder.iterdir()) == []


def test_a_reader_who_leaves_ends_the_command_quietly(trained, tmp_path):
    """As `| head -1` does."""
    source = tmp_path / "in.txt"
    source.write_text("a fine film\n" * 20_000)
    process = start("predict", f"--model={trained}", f"--input={source}", "--output=-")
    assert process.stdout is not None and process.stderr is not None
    assert json.loads(process.stdout.readline())["label"]
    process.stdout.close()
    told = process.stderr.read()
    assert process.wait(60) == 75
    assert "standard output has gone" in told and "Traceback" not in told
    process.stderr.close()


def test_lines_have_no_columns(trained, tmp_path, capsys):
    """A model of pairs must not answer half of one."""
    (tmp_path / "in.txt").write_text("a fine film\n")
    flags = [f"--model={trained}", f"--input={tmp_path / 'in.txt'}", "--output=-"]
    for flag in ("--text=a", "--text_pair=b"):
        done = call("predict", *flags, flag, capsys=capsys)
        assert done.code == 2 and "has one text a line" in done.err


def test_a_run_s_checkpoint_knows_its_run(tmp_path):
    from flaxbert.inference.predictor import run_config_of

    (tmp_path / "run" / "checkpoints" / "20" / "state").mkdir(parents=True)
    (tmp_path / "run" / "model").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps({"data": {"max_length": 77}}))
    for name in ("model", "checkpoints/20"):
        config = run_config_of(tmp_path / "run" / name)
        assert config is not None and config.data.max_length == 77
    assert run_config_of(tmp_path / "run" / "someone-s-model") is None  # no folder: a hub id
