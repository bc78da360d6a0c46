"""The predict and evaluate commands on folders: formats in and out, order, columns."""

from __future__ import annotations

import csv
import io
import json
import types

import pytest

from flaxbert.model.config import BertConfig
from flaxbert.model.heads import init_params
from flaxbert.weights.folder import write_model
from tests.commands import call

TEXTS = ["a fine film", "", "bad, bad, bad", "the same\u2028line", "émotion 😀", "a fine film"]


@pytest.fixture(scope="module")
def trained(minilm, tmp_path_factory):
    """A tiny classifier with three named labels (random weights: names and order are the point)."""
    from flaxbert.data.tokenize import files_in

    config = BertConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=64,
        initializer_range=0.5,
        id2label=("bad", "fair", "good"),
        problem_type="single_label_classification",
    )
    folder = tmp_path_factory.mktemp("trained") / "model"
    write_model(folder, config, init_params(config, 0), files_in(minilm))
    return folder


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
    from flaxbert.inference import Classifier

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
    assert "6 predictions" in done.err and "1 of them empty" in done.err
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert [r["label"] for r in records] == [r["label"] for r in expected]
    for record, alone in zip(records, expected, strict=True):
        assert list(record["probabilities"]) == ["bad", "fair", "good"]
        # Alone or packed with others: float32 sums in another order.
        assert record["score"] == pytest.approx(alone["score"], abs=1e-6)
        assert record["score"] == max(record["probabilities"].values())
    assert records[0] == records[5]


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


@pytest.mark.parametrize("labels", [["good", "bad", "good"], ["2", "0", "2"]])
def test_evaluate_a_folder_on_a_file(labels, trained, tmp_path, capsys):
    """Labels may be names or ids of the model; a class may be absent from the file."""
    source = tmp_path / "gold.csv"
    rows = zip(["a fine film", "dull", "great"], labels, strict=True)
    source.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows))
    done = call("evaluate", f"--model={trained}", f"--data={source}", capsys=capsys)
    assert done.code == 0, done.err
    results = json.loads(done.out)
    assert results["eval_samples"] == 3
    assert 0 <= results["eval_accuracy"] <= 1


def test_evaluate_refuses_unknown_labels(trained, tmp_path, capsys):
    source = tmp_path / "gold.csv"
    source.write_text("text,label\nx,good\ny,superb\n")
    done = call("evaluate", f"--model={trained}", f"--data={source}", capsys=capsys)
    assert done.code == 3
    assert "gold.csv:3" in done.err and "'superb'" in done.err
