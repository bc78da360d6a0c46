"""Whole runs on own files: what they write, what they refuse, and that they resume."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from tests.commands import call, final_state, metrics_without_times, train_flags
from tests.reference import NO_TORCH


@pytest.fixture(scope="module")
def again(finished, tmp_path_factory):
    """A copy of the finished run, with its flags: for commands that write to a workdir."""
    workdir, flags = finished
    copy = shutil.copytree(workdir, tmp_path_factory.mktemp("again") / "work")
    return copy, [f"--workdir={copy}" if flag.startswith("--workdir") else flag for flag in flags]


def test_files_of_a_finished_run(finished):
    workdir, _ = finished
    names = {path.name for path in workdir.iterdir()}
    assert {
        "config.json",
        "checkpoints",
        "model",
        "train_results.json",
        "eval_results.json",
        "all_results.json",
        "metrics.jsonl",
    } <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert not [name for name in names if name.endswith(".tmp")]
    assert {"config.json", "model.safetensors", "tokenizer.json", "vocab.txt", "README.md"} <= {
        path.name for path in (workdir / "model").iterdir()
    }
    settings = json.loads((workdir / "model" / "tokenizer_config.json").read_text())
    tokenizer = json.loads((workdir / "model" / "tokenizer.json").read_text())
    config = json.loads((workdir / "config.json").read_text())
    assert settings["model_max_length"] == config["data"]["max_length"]
    assert (tokenizer["truncation"], tokenizer["padding"]) == (None, None)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):  # what a resume reads
        source = workdir / "source" / name
        assert source.read_bytes() == (workdir / "model" / name).read_bytes()
    # keep=2 of the two epochs' checkpoints
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["12", "6"]


def test_results_have_the_trainers_names(finished):
    workdir, _ = finished
    results = json.loads((workdir / "all_results.json").read_text())
    assert {
        "epoch",
        "train_loss",
        "train_runtime",
        "train_samples",
        "train_samples_per_second",
        "train_samples_per_second_overall",
        "train_steps_per_second",
        "eval_loss",
        "eval_accuracy",
        "eval_f1",
        "eval_samples",
        "eval_runtime",
        "eval_samples_per_second",
    } <= results.keys()
    assert results["epoch"] == 2.0
    assert results["train_samples"] == 96
    assert results["eval_samples"] == 40
    assert results["train_samples_per_second"] > 0


def test_metrics_lines(finished):
    workdir, _ = finished
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert all(set(line) == {"step", "epoch", "split", "name", "value", "time"} for line in lines)
    train = {line["step"] for line in lines if line["split"] == "train"}
    assert train == {2, 4, 6, 8, 10, 12}
    validation = {line["step"] for line in lines if line["split"] == "validation"}
    assert validation == {6, 12}
    names = {line["name"] for line in lines if line["split"] == "train"}
    assert {"loss", "learning_rate", "samples_per_second", "tokens_per_second"} <= names
    assert "padding_share" in names


def test_tensorboard_reads_the_event_files(finished):
    workdir, _ = finished
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="TensorBoard itself is the reader to check against",
    )
    events = accumulator.EventAccumulator(str(workdir))
    events.Reload()
    assert [event.step for event in events.Scalars("validation/accuracy")] == [6, 12]


def test_the_best_model_is_the_exported_one(again, capsys):
    workdir, _ = again
    stored = json.loads((workdir / "eval_results.json").read_text())
    done = call("evaluate", f"--workdir={workdir}", capsys=capsys)
    assert done.code == 0, done.err
    again = json.loads(done.out)
    for name in ("eval_loss", "eval_accuracy", "eval_f1", "eval_matthews_correlation"):
        assert again[name] == pytest.approx(stored[name], abs=1e-6)
    best = max(line[4] for line in metrics_without_times(workdir) if line[3] == "accuracy")
    assert stored["eval_accuracy"] == best


def test_pytorch_loads_the_model(finished, capsys, reviews, tmp_path):
    workdir, _ = finished
    counterpart = "test_the_pipeline_of_transformers_gives_our_scores[...-golden]"
    pytest.importorskip("torch", reason=NO_TORCH + counterpart)
    from transformers import pipeline

    from flaxbert.data.sources.files import read_rows

    texts = list(read_rows(reviews["test"], {"text": "text"}).texts)
    output = tmp_path / "out.jsonl"
    done = call(
        "predict",
        f"--model={workdir / 'model'}",
        f"--input={reviews['test']}",
        f"--output={output}",
        capsys=capsys,
    )
    assert done.code == 0, done.err
    ours = [json.loads(line) for line in output.read_text().splitlines()]
    theirs = pipeline("text-classification", model=str(workdir / "model"))(texts)
    assert [row["label"] for row in ours] == [row["label"] for row in theirs]
    for our, their in zip(ours, theirs, strict=True):
        # Two float32 programs: probabilities agree to a few units of 1e-7.
        assert our["score"] == pytest.approx(their["score"], abs=2e-6)
        assert sum(our["probabilities"].values()) == pytest.approx(1)


def test_a_finished_run_exits_0_at_once(again, capsys):
    _, flags = again
    done = call("train", *flags, capsys=capsys)
    assert done.code == 0
    assert "finished" in done.err


def test_another_config_is_refused_by_name(again, capsys):
    _, flags = again
    done = call("train", *flags, "--config.optim.learning_rate=0.5", capsys=capsys)
    assert done.code == 2
    assert "config.optim.learning_rate: 0.001 -> 0.5" in done.err
    assert "Traceback" not in done.err


def test_a_longer_run_is_another_run(again, capsys):
    _, flags = again
    done = call("train", *flags, "--config.train.steps=20", capsys=capsys)
    assert done.code == 2
    assert "config.train.steps: 12 -> 20" in done.err


class _Stop(Exception):
    pass


def test_resume_after_a_crash_is_bit_identical(
    finished, tiny_bert, reviews, tmp_path, capsys, monkeypatch
):
    """The run dies (in process) in the middle of update 9; the same command ends as if it had not.

    tests/slow/test_resume.py does this with SIGKILL on real processes, at random moments.
    """
    from flaxbert.data import batches

    whole, flags = finished
    workdir = tmp_path / "work"
    flags = [f"--workdir={workdir}" if flag.startswith("--workdir") else flag for flag in flags]
    real = batches.train_batch

    def dying(*args, step, **kwargs):
        if step == 9:
            raise _Stop("died here")
        return real(*args, step=step, **kwargs)

    monkeypatch.setattr(batches, "train_batch", dying)
    assert call("train", *flags, capsys=capsys).code == 70
    monkeypatch.setattr(batches, "train_batch", real)
    done = call("train", *flags, "--config.log.every=2", capsys=capsys)
    assert done.code == 0, done.err
    assert "resuming" in done.err and "after update 6" in done.err
    assert metrics_without_times(workdir) == metrics_without_times(whole)
    expected, actual = final_state(whole), final_state(workdir)
    assert expected.keys() == actual.keys()
    for name, array in expected.items():
        assert np.array_equal(array, actual[name]), name
    weights = "model/model.safetensors"
    assert (whole / weights).read_bytes() == (workdir / weights).read_bytes()


def test_resume_needs_no_pretrained_weights(finished, tiny_bert, reviews, tmp_path, capsys,
                                            monkeypatch):  # fmt: skip
    model = tmp_path / "model"
    shutil.copytree(tiny_bert, model)
    workdir = tmp_path / "work"
    fields = {"train__steps": 12, "train__accumulate": 2, "checkpoint__every": 2}
    flags = train_flags(model, reviews["train"], workdir, **fields)
    from flaxbert.data import batches

    real = batches.train_batch

    def dying(*args, step, **kwargs):
        if step == 4:
            raise _Stop("died here")
        return real(*args, step=step, **kwargs)

    monkeypatch.setattr(batches, "train_batch", dying)
    assert call("train", *flags, capsys=capsys).code == 70
    monkeypatch.setattr(batches, "train_batch", real)
    shutil.rmtree(model)
    done = call("train", *flags, capsys=capsys)
    assert done.code == 0, done.err
    assert "no validation data" in done.err


@pytest.mark.slow
def test_changed_data_are_refused(tiny_bert, reviews, tmp_path, capsys, monkeypatch):
    train = tmp_path / "train.csv"
    train.write_bytes(reviews["train"].read_bytes())
    workdir = tmp_path / "work"
    weights = tmp_path / "weights.json"
    weights.write_text("[2, 0.5]")
    fields = {"checkpoint__every": 2, "loss__class_weights": weights}
    flags = train_flags(tiny_bert, train, workdir, **fields)

    def stop(*args, **kwargs):
        raise _Stop("died here")

    monkeypatch.setattr("flaxbert.run.results.write_results", stop)
    assert call("train", *flags, capsys=capsys).code == 70
    moved = tmp_path / "moved.csv"
    moved.write_bytes(train.read_bytes() + b"one more,positive\n")
    flags = train_flags(tiny_bert, moved, workdir, **fields)
    done = call("train", *flags, capsys=capsys)
    assert done.code == 3
    assert "training data differ" in done.err
    # The same data at another path are the same data, also for `evaluate` and a finished run.
    moved.write_bytes(train.read_bytes())
    train.unlink()
    weights.write_text("[2, 0.75]")
    done = call("train", *flags, capsys=capsys)
    assert done.code == 3 and "the weights differ" in done.err
    weights.unlink()  # the run has recorded them
    monkeypatch.undo()
    done = call("train", *flags, capsys=capsys)
    assert done.code == 0, done.err
    assert "resuming" in done.err
    done = call("evaluate", f"--workdir={workdir}", "--split=train", capsys=capsys)
    assert done.code == 0, done.err
    assert json.loads((workdir / "source" / "facts.json").read_text())["class_weights"] == [2, 0.5]
    moved.rename(train)
    flags = train_flags(tiny_bert, train, workdir, **fields)
    assert call("train", *flags, capsys=capsys).code == 0
    before = (workdir / "config.json").read_bytes()
    train.unlink()
    other = train_flags(tiny_bert, reviews["dev"], workdir, **fields)
    assert call("train", *other, capsys=capsys).code == 3
    other = train_flags(
        tiny_bert, reviews["train"], workdir, **fields, data__validation=reviews["dev"]
    )
    assert call("train", *other, capsys=capsys).code == 2
    assert (workdir / "config.json").read_bytes() == before


@pytest.mark.slow
def test_early_stopping(tiny_bert, reviews, tmp_path, capsys):
    """Decay off and a rate near 0: the second evaluation cannot improve on the first."""
    flags = train_flags(
        tiny_bert,
        reviews["train"],
        tmp_path / "work",
        data__validation=reviews["dev"],
        train__steps=40,
        train__eval_every=2,
        train__patience=2,
        optim__learning_rate=1e-12,
    )
    done = call("train", *flags, capsys=capsys)
    assert done.code == 0, done.err
    assert "stopping early" in done.err
    results = json.loads((tmp_path / "work" / "all_results.json").read_text())
    assert results["train_steps"] == 6
    assert call("train", *flags, capsys=capsys).code == 0


def test_nonfinite_loss_exits_5_and_is_never_checkpointed(
    tiny_bert, reviews, tmp_path, capsys, monkeypatch
):
    from flaxbert.data import batches

    real = batches.train_batch

    def broken(*args, step, **kwargs):
        batch = real(*args, step=step, **kwargs)
        if step >= 3:
            batch["weights"][batch["weights"] > 0] = np.nan
        return batch

    monkeypatch.setattr(batches, "train_batch", broken)
    # Accumulated, of 12 updates: the program of the finished run.
    fields = {"train__steps": 12, "train__accumulate": 2, "checkpoint__every": 3}
    flags = train_flags(tiny_bert, reviews["train"], tmp_path / "work", **fields)
    done = call("train", *flags, capsys=capsys)
    assert done.code == 5, done.err
    assert "not finite in 3 updates in a row" in done.err
    kept = [path.name for path in (tmp_path / "work" / "checkpoints").iterdir()]
    assert kept == ["3"]
    assert all(np.isfinite(array).all() for array in final_state(tmp_path / "work").values())
    assert "(from update 4 on;" in done.err and "newest checkpoint is 3." in done.err


def test_skipped_updates_are_told_and_counted(tiny_bert, reviews, tmp_path, capsys, monkeypatch):
    from flaxbert.data import batches

    real = batches.train_batch

    def broken(*args, step, **kwargs):
        batch = real(*args, step=step, **kwargs)
        if step in (2, 3, 5):  # updates 3, 4 and 6
            batch["weights"][batch["weights"] > 0] = np.nan
        return batch

    monkeypatch.setattr(batches, "train_batch", broken)
    fields = {"train__steps": 12, "train__accumulate": 2, "checkpoint__every": 3}
    flags = train_flags(tiny_bert, reviews["train"], tmp_path / "work", **fields)
    done = call("train", *flags, capsys=capsys)
    assert done.code == 0, done.err
    for line in (
        "update 3: loss nan, gradient norm nan: skipped, 1 in a row, 1 in all",
        "update 4: loss nan, gradient norm nan: skipped, 2 in a row, 2 in all",
        "update 6: loss nan, gradient norm nan: skipped, 1 in a row, 3 in all",
    ):
        assert done.err.count(line) == 1
    skipped = [line for line in metrics_without_times(tmp_path / "work") if "skipped" in line[3]]
    assert [(line[0], *line[3:]) for line in skipped if line[0] == 4] == [
        (4, "skipped_loss", None),
        (4, "skipped_gradient_norm", None),
        (4, "skipped_in_a_row", 2),
        (4, "skipped_updates", 2),
    ]
    assert {line[0] for line in skipped} == {3, 4, 6}
    results = json.loads((tmp_path / "work" / "train_results.json").read_text())
    assert results["train_nonfinite_updates"] == 3
    # What a grace period must cover: told after the first checkpoint and at the end.
    assert done.err.count("a grace period of") == 2
    update, save = (results[f"train_longest_{what}_runtime"] for what in ("update", "save"))
    assert 0 < update < 60 and 0 < save < 60 and results["train_saving_runtime"] > 0


def test_a_model_with_a_nan_is_refused_by_the_parameters_name(tiny_bert, reviews, tmp_path, capsys):
    from safetensors.numpy import load_file, save_file

    shutil.copytree(tiny_bert, tmp_path / "model")
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    name = "bert.encoder.layer.1.output.dense.bias"
    tensors[name][:2] = np.inf, np.nan
    save_file(tensors, tmp_path / "model" / "model.safetensors")
    flags = train_flags(tmp_path / "model", reviews["train"], tmp_path / "work")
    done = call("train", *flags, capsys=capsys)
    assert done.code == 4, done.err
    assert f"{name} has 2 of 32 numbers that are not finite" in done.err
    assert "Traceback" not in done.err and not (tmp_path / "work" / "config.json").exists()


def test_an_evaluation_with_nan_never_becomes_the_best():
    """NaN logits have a finite accuracy: their loss tells."""
    from flaxbert.loop.cadence import Cadence
    from flaxbert.loop.progress import Progress
    from flaxbert.run.control import judge

    class Told(list):
        scalars = staticmethod(lambda *values: None)
        text = list.append

    cadence = Cadence(10, 5, 1, 1, 1, 0, 3, "accuracy")
    speeds = {"samples": 4, "samples_per_second": 1.0}
    progress, told = Progress(step=1), Told()
    for loss, accuracy, better in (
        (float("nan"), 0.9, False),
        (0.5, float("nan"), False),
        (float("inf"), 1.0, False),
        (0.5, 0.1, True),
    ):
        results = {"loss": loss, "accuracy": accuracy, **speeds}
        assert judge(results, progress, cadence, told) is better  # type: ignore[arg-type]
    assert sum("cannot become the best" in line for line in told) == 3


@pytest.mark.slow
def test_pairs_and_regression(tiny_bert, tmp_path, capsys):
    train = tmp_path / "train.jsonl"
    rows = [
        {"a": f"the film number {i}", "b": f"a movie {i % 5}", "score": i / 10} for i in range(30)
    ]
    train.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = train_flags(
        tiny_bert,
        train,
        tmp_path / "work",
        data__text="a",
        data__text_pair="b",
        data__label="score",
        data__validation_fraction=0.2,
    )
    done = call("train", *flags, capsys=capsys)
    assert done.code == 0, done.err
    assert "target: regression" in done.err
    results = json.loads((tmp_path / "work" / "eval_results.json").read_text())
    assert {"eval_pearson", "eval_spearmanr", "eval_mse"} <= results.keys()
    assert results["eval_samples"] == 6
    # Prediction finds the run's columns by itself.
    output = tmp_path / "out.csv"
    done = call(
        "predict",
        f"--model={tmp_path / 'work' / 'model'}",
        f"--input={train}",
        f"--output={output}",
        capsys=capsys,
    )
    assert done.code == 0, done.err
    lines = output.read_text().splitlines()
    assert lines[0] == "value" and len(lines) == 31


@pytest.mark.slow
def test_several_labels_in_a_cell(tiny_bert, tmp_path, capsys):
    train = tmp_path / "train.tsv"
    kinds = ["comedy", "drama", "comedy|drama", "war"]
    train.write_text(
        "text\tlabel\n" + "".join(f"film {i} said \"no\tway\n".replace("\tway", " way")[:-1]
                                  + f"\t{kinds[i % 4]}\n" for i in range(32))
    )  # fmt: skip
    flags = train_flags(
        tiny_bert,
        train,
        tmp_path / "work",
        data__label_separator="|",
        data__validation_fraction=0.25,
    )
    done = call("train", *flags, capsys=capsys)
    assert done.code == 0, done.err
    assert "target: multi_label, labels comedy, drama, war" in done.err
    model = json.loads((tmp_path / "work" / "model" / "config.json").read_text())
    assert model["problem_type"] == "multi_label_classification"
    assert model["id2label"] == {"0": "comedy", "1": "drama", "2": "war"}
    results = json.loads((tmp_path / "work" / "eval_results.json").read_text())
    assert {"eval_f1", "eval_f1_macro", "eval_accuracy"} <= results.keys()


def test_litter_of_a_killed_start_is_no_file_of_the_run(tmp_path):
    from flaxbert.run.identity import _source_digests
    from flaxbert.storage.workdir import Workdir

    source = tmp_path / "source"
    source.mkdir()
    for name in ("config.json", "facts.json", "facts.json.tmp"):
        (source / name).write_text("{}")
    assert list(_source_digests(Workdir(tmp_path))) == ["config.json"]
