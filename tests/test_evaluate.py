"""The evaluate command on folders and runs: results, reports, prediction files, refusals."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.commands import call, metrics_without_times
from tests.inputs import write_trained

TEXTS = ["a fine film", "dull", "great", "dull again", "so long " * 60]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return write_trained(tmp_path_factory.mktemp("trained") / "model")


@pytest.fixture(scope="module")
def own_tests(reviews, tmp_path_factory):
    return Path(shutil.copy(reviews["test"], tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="module")
def run(finished, own_tests, tmp_path_factory):
    """A copy of the finished run, with a test file of its own."""
    copy = shutil.copytree(finished[0], tmp_path_factory.mktemp("run") / "work")
    config = json.loads((copy / "config.json").read_text())
    config["data"]["test"] = str(own_tests)
    (copy / "config.json").write_text(json.dumps(config))
    return copy


def _gold(path, labels, texts=TEXTS):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *zip(texts, labels, strict=False)])
    return path


@pytest.mark.parametrize("labels", [["good", "bad", "good"], ["2", "0", "2"]])
def test_a_folder_on_a_file(labels, trained, tmp_path, capsys):
    """Labels may be names or ids of the model; a class may be absent from the file."""
    source = _gold(tmp_path / "gold.csv", labels)
    done = call("evaluate", f"--model={trained}", f"--data={source}", capsys=capsys)
    assert done.code == 0, done.err
    results = json.loads(done.out)
    assert results["eval_samples"] == 3
    assert 0 <= results["eval_accuracy"] <= 1
    assert [path.name for path in tmp_path.iterdir()] == ["gold.csv"]


def test_output_has_results_report_and_predictions(trained, tmp_path, capsys):
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    labels = ["good", "bad", "good", "bad", "fair"]
    source, output = _gold(tmp_path / "gold.csv", labels), tmp_path / "new" / "results"
    done = call(
        "evaluate", f"--model={trained}", f"--data={source}", f"--output={output}", capsys=capsys
    )
    assert done.code == 0, done.err
    assert sorted(path.name for path in output.iterdir()) == [
        "eval_report.json", "eval_results.json", "predict_results_gold.txt",
    ]  # fmt: skip
    text = (output / "eval_results.json").read_text()
    results = json.loads(text)
    assert text == done.out and text == json.dumps(results, indent=4, sort_keys=True) + "\n"
    assert all(isinstance(value, (int, float)) for value in results.values())
    assert {
        "eval_loss", "eval_accuracy", "eval_f1", "eval_matthews_correlation", "eval_runtime",
        "eval_samples", "eval_samples_per_second", "eval_samples_skipped", "eval_steps_per_second",
    } == set(results)  # fmt: skip

    lines = (output / "predict_results_gold.txt").read_text().splitlines()
    assert lines[0] == "index\tprediction"
    predicted = [line.split("\t")[1] for line in lines[1:]]
    assert [line.split("\t")[0] for line in lines[1:]] == list("01234")
    report = json.loads((output / "eval_report.json").read_text())
    names = ["bad", "fair", "good"]
    matrix = confusion_matrix(labels, predicted, labels=names)
    assert report["confusion_matrix"] == {"labels": names, "counts": matrix.tolist()}
    columns = precision_recall_fscore_support(labels, predicted, labels=names, zero_division=0)
    for name, *scores in zip(names, *columns, strict=True):
        expected = zip(("precision", "recall", "f1", "support"), map(float, scores), strict=True)
        assert report["labels"][name] == pytest.approx(dict(expected))
    assert "actual \\ predicted" in done.err and "(macro)" in done.err


def test_rows_that_were_skipped_are_counted_in_the_results(run, tmp_path, capsys):
    """Scores of a part of the rows must say so wherever they are kept."""
    copy = shutil.copytree(run, tmp_path / "run")
    config = json.loads((copy / "config.json").read_text())
    config["data"]["on_bad_row"] = "skip"
    (copy / "config.json").write_text(json.dumps(config))
    labels = ["positive", "", "nonsense", "negative", "positive"]
    source, output = _gold(tmp_path / "gold.csv", labels), tmp_path / "out"
    flags = [f"--workdir={copy}", f"--data={source}", f"--output={output}"]
    done = call("evaluate", *flags, capsys=capsys)
    assert done.code == 0, done.err
    for text in (done.out, (output / "eval_results.json").read_text()):
        results = json.loads(text)
        assert (results["eval_samples"], results["eval_samples_skipped"]) == (3, 2)


def test_long_texts_in_windows(trained, tmp_path, capsys):
    source = _gold(tmp_path / "gold.csv", ["good"] * 5)
    losses = {}
    for long in ("truncate", "window"):
        flags = [f"--model={trained}", f"--data={source}", f"--long={long}", "--max_length=32"]
        done = call("evaluate", *flags, capsys=capsys)
        assert done.code == 0, done.err
        assert "1 texts over 32 tokens" in done.err
        losses[long] = json.loads(done.out)["eval_loss"]
    assert losses["truncate"] != losses["window"]


def test_scores_are_of_the_numbers_that_are_predicted(tmp_path, capsys):
    """A cross-encoder, whose output goes through a sigmoid: the errors are those of its answers."""
    folder = write_trained(
        tmp_path / "model", names=["LABEL_0"], problem="token"
    )  # no problem_type
    source, output = _gold(tmp_path / "gold.csv", [0.2, 0.5, 1, 0, 0.75]), tmp_path / "out.jsonl"
    done = call("evaluate", f"--model={folder}", f"--data={source}", capsys=capsys)
    assert done.code == 0 and "go through a sigmoid" in done.err
    results = json.loads(done.out)
    done = call(
        "predict", f"--model={folder}", f"--input={source}", f"--output={output}", capsys=capsys
    )
    assert done.code == 0 and "go through a sigmoid" in done.err
    values = [json.loads(line)["value"] for line in output.read_text().splitlines()]
    error = float(np.mean((np.array(values) - [0.2, 0.5, 1, 0, 0.75]) ** 2))
    assert results["eval_mse"] == pytest.approx(error, rel=1e-5)
    assert results["eval_loss"] == pytest.approx(error, rel=1e-5)


def test_several_numbers_are_predicted_but_not_evaluated(tmp_path, capsys):
    folder = write_trained(tmp_path / "model", names=["joy", "fear"], problem="regression")
    source, output = _gold(tmp_path / "gold.csv", [1.5, 2.5]), tmp_path / "out.csv"
    done = call("evaluate", f"--model={folder}", f"--data={source}", capsys=capsys)
    assert done.code == 4 and "2 outputs and the problem type regression" in done.err
    done = call(
        "predict", f"--model={folder}", f"--input={source}", f"--output={output}", capsys=capsys
    )
    assert done.code == 0, done.err
    header, *rows = csv.reader(output.read_text().splitlines())
    assert header == ["value_joy", "value_fear"]
    assert [len(list(map(float, row))) for row in rows] == [2, 2]


def test_unknown_tokens_and_odd_tokenizer_files_are_told(trained, tmp_path, capsys):
    model = shutil.copytree(trained, tmp_path / "model")
    (model / "vocab.txt").write_text("[PAD]\n")
    source = _gold(tmp_path / "gold.csv", ["good"], ["\U00012000 \U00012001 film"])
    for command in (
        ["evaluate", f"--data={source}"],
        ["predict", f"--input={source}", f"--output={tmp_path / 'out.jsonl'}"],
    ):
        done = call(*command, f"--model={model}", capsys=capsys)
        assert done.code == 0, done.err
        assert "67 % of the tokens are unknown to the vocabulary; is this the right" in done.err
        assert (
            "vocab.txt does not agree with tokenizer.json, which is used: '[unused0]'" in done.err
        )


def test_pairs_without_token_types_are_told(trained, tmp_path, capsys):
    model = shutil.copytree(trained, tmp_path / "model")
    settings = json.loads((model / "tokenizer_config.json").read_text())
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    settings.pop("model_input_names", None)
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    source = tmp_path / "gold.csv"
    source.write_text("text,other,label\na film,dull,bad\n")
    told = "both texts of a pair get token type 0, as transformers 5 does"
    for command in (
        ["evaluate", f"--data={source}", f"--model={model}"],
        ["predict", f"--input={source}", f"--output={tmp_path / 'o.csv'}", f"--model={model}"],
    ):
        for pair in ([], ["--text_pair=other"]):
            done = call(*command, *pair, capsys=capsys)
            assert done.code == 0, done.err
            assert (told in done.err) == bool(pair)


def test_unknown_labels_are_refused(trained, tmp_path, capsys):
    source = _gold(tmp_path / "gold.csv", ["good", "superb"])
    done = call("evaluate", f"--model={trained}", f"--data={source}", capsys=capsys)
    assert done.code == 3
    assert "gold.csv:3" in done.err and "'superb'" in done.err


def test_hidden_labels_are_refused(trained, tmp_path, capsys):
    source = _gold(tmp_path / "gold.csv", ["-1", "-1"])
    done = call("evaluate", f"--model={trained}", f"--data={source}", capsys=capsys)
    assert done.code == 3 and "-1" in done.err


def test_output_must_be_a_directory(trained, tmp_path, capsys):
    source = _gold(tmp_path / "gold.csv", ["good"])
    done = call(
        "evaluate", f"--model={trained}", f"--data={source}", f"--output={source}", capsys=capsys
    )
    assert done.code == 2 and "name a directory" in done.err


def test_splits_of_a_run_leave_results_and_predictions(run, capsys):
    for split, name in (("validation", "eval"), ("test", "test")):
        done = call("evaluate", f"--workdir={run}", f"--split={split}", capsys=capsys)
        assert done.code == 0, done.err
        stored = json.loads((run / f"{name}_results.json").read_text())
        assert stored == json.loads(done.out)
        assert f"{name}_combined_score" in stored  # two classes
        report = json.loads((run / f"{name}_report.json").read_text())
        assert set(report["labels"]) == {"negative", "positive"}
        counts = np.array(report["confusion_matrix"]["counts"])
        assert counts.sum() == stored[f"{name}_samples"]
        assert counts.trace() / counts.sum() == stored[f"{name}_accuracy"]
    merged = json.loads((run / "all_results.json").read_text())
    assert {"train_loss", "eval_accuracy", "test_accuracy", "test_f1"} <= set(merged)
    assert "step" not in merged and merged["epoch"] == 2.0
    validation = json.loads((run / "eval_results.json").read_text())
    # When the best was reached: of two evaluations that are as good the first.
    reached = {6: 1.0, 12: 2.0}
    values = [line[4] for line in metrics_without_times(run) if line[3] == "accuracy"]
    best = (6, 12)[int(values[1] > values[0])]
    assert (validation["epoch"], validation["step"]) == (reached[best], best)


def test_an_unfinished_run_stays_unfinished(run, capsys):
    """all_results.json says that a run is finished: evaluate must not make one."""
    kept = (run / "all_results.json").read_bytes()
    (run / "all_results.json").unlink()
    try:
        assert call("evaluate", f"--workdir={run}", capsys=capsys).code == 0
        assert not (run / "all_results.json").exists()
    finally:
        (run / "all_results.json").write_bytes(kept)


def test_predict_a_split_of_a_run(run, own_tests, capsys, tmp_path):
    """Test rows without labels too; the names are those that the exported model has."""
    output = tmp_path / "out.jsonl"
    done = call("predict", f"--workdir={run}", "--split=test", f"--output={output}", capsys=capsys)
    assert done.code == 0, done.err
    lines = (run / "predict_results_text.txt").read_text().splitlines()
    labels = [json.loads(line)["label"] for line in output.read_text().splitlines()]
    assert lines == ["index\tprediction", *(f"{i}\t{label}" for i, label in enumerate(labels))]
    assert len(labels) == 24
    assert call("predict", f"--workdir={run}", "--split=train", capsys=capsys).code == 0
    assert (run / "predict_results_text-train.txt").is_file()
    before = own_tests.read_text()
    try:
        rows = [row["text"] for row in csv.DictReader(before.splitlines(keepends=True))]
        _write_texts(own_tests, rows)
        done = call("predict", f"--workdir={run}", "--split=test", capsys=capsys)
        assert done.code == 0, done.err
        assert (run / "predict_results_text.txt").read_text().splitlines() == lines
    finally:
        own_tests.write_text(before)


def _write_texts(path, texts):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["text"], *([text] for text in texts)])
