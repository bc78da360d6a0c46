"""Exit codes and messages: what a user's mistake looks like. Never a traceback."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest

from flaxbert.shell import cli
from tests.commands import ROOT, call, start, train_flags


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], ["--config is missing", "configs/quickstart.py"]),
        (["--config=configs/quickstrat.py"], ["no file", "Did you mean configs/quickstart.py?"]),
        (["--config=configs/text.py", "--config.optim.learning_rat=1"], ["learning_rate"]),
        (["--config=configs/text.py", "--config.optim.learning_rate=fast"], ["learning_rate"]),
        (["--config=configs/text.py", "--config.train.batch_size=0.5"], ["batch_size"]),
        (["--config=configs/text.py", "--config.train.batch_size=0"], ["at least 1", "got 0"]),
        (["--config=configs/text.py", "--config.optim.schedule=linaer"], ["Did you mean 'linear'"]),
        (["--config=configs/text.py", "--config.data.task=rotten_tomatos"], ["rotten_tomatoes"]),
        (["--config=configs/text.py", "--config.optim.learning_rate=nan"], ["learning_rate"]),
        (["--config=configs/text.py", "--workdr=x"], ["workdr"]),
        (["--config=configs/text.py", "stray"], ["unexpected argument 'stray'"]),
        (["--config=configs/text.py"], ["config.data.train is empty"]),
        (["--config=configs/quickstart.py:x"], ["takes no argument"]),
        (["--config=configs/text.py", "--config.train.patience=2"], ["needs validation data"]),
        (["--config=configs/text.py", "--config.mesh.data=0"], ["config.mesh"]),
        (["--config=configs/quickstart.py", "--workdir=s3://bucket/x"], ["gs://"]),
    ],
)
def test_usage_errors_exit_2(flags, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = call("train", *flags, capsys=capsys)
    assert done.code == 2, done.err
    for word in words:
        assert word in done.err
    assert "Traceback" not in done.err


def test_a_broken_config_file_names_its_line(tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_text("def get_config():\n    return 1 / 0\n")
    done = call("train", f"--config={path}", capsys=capsys)
    assert done.code == 2
    assert "mine.py:2" in done.err and "division by zero" in done.err
    path.write_text("def get_config(:\n")
    done = call("train", f"--config={path}", capsys=capsys)
    assert done.code == 2
    assert "mine.py" in done.err


@pytest.mark.parametrize(
    ("fields", "code", "words"),
    [
        ({"data__train": "missing.csv"}, 3, ["no such file"]),
        ({"data__text": "txt"}, 3, ["no column 'txt'", "Did you mean 'text'?"]),
        ({"model__path": "./no-model"}, 4, ["no such folder"]),
        ({"data__max_length": 4000}, 2, ["128 positions"]),
        ({"data__row_length": 8}, 2, ["longest sequence"]),
        ({"mesh__data": 3}, 2, ["must be one of 1, 2, 4, 8"]),
        (
            {"train__best_metric": "acuracy", "data__validation_fraction": 0.2},
            2,
            ["Did you mean 'accuracy'?"],
        ),
        ({"train__eval_every": 5}, 2, ["config.train.eval_every needs validation data"]),
        ({"data__text": ""}, 2, ["config.data.text is empty"]),
        ({"loss__class_weights": "(1.0,)"}, 2, ["expected 2 numbers"]),
        ({"data__validation_fraction": 0.0001}, 3, ["too few"]),
    ],
)
def test_errors_of_the_parts(fields, code, words, tiny_bert, reviews, tmp_path, capsys):
    flags = train_flags(tiny_bert, reviews["train"], tmp_path / "work", **fields)
    done = call("train", *flags, capsys=capsys)
    assert done.code == code, done.err
    for word in words:
        assert word in done.err
    assert "Traceback" not in done.err
    # Nothing was started: the same workdir is free for the corrected command.
    assert not (tmp_path / "work" / "config.json").exists()


def test_a_folder_with_other_files_is_refused(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("x")
    done = call("train", "--config=configs/quickstart.py", f"--workdir={tmp_path}", capsys=capsys)
    assert done.code == 2
    assert "not empty" in done.err and "thesis.tex" in done.err


@pytest.mark.parametrize(
    ("command", "flags", "word"),
    [
        ("evaluate", [], "either --workdir=DIR or --model=DIR"),
        ("evaluate", ["--model=x"], "needs --data=FILE"),
        ("evaluate", ["--workdir=nowhere"], "no config.json of a run"),
        ("predict", [], "either --model=DIR or --workdir=RUN"),
        ("predict", ["--model=x"], "either --input=FILE"),
        ("predict", ["--model=x", "--input=-"], "--output is missing"),
        ("predict", ["--model=x", "--split=test"], "needs --workdir=RUN"),
        ("predict", ["--workdir=x", "--input=-", "--split=test"], "either --input=FILE"),
        ("predict", ["--model=x", "--input=-", "--output=no/where.csv"], "no directory no"),
        ("predict", ["--model=x", "--input=-", "--output=x.txt"], "ending in .jsonl, .csv, .conll"),
        ("convert", ["--from=x"], "--to is missing"),
    ],
)
def test_other_commands_say_what_is_missing(command, flags, word, capsys):
    done = call(command, *flags, capsys=capsys)
    assert done.code == 2
    assert word in done.err and "Traceback" not in done.err


def test_predict_needs_a_trained_classifier(minilm, tmp_path, capsys):
    (tmp_path / "in.txt").write_text("a line\n")
    done = call(
        "predict",
        f"--model={minilm}",
        f"--input={tmp_path / 'in.txt'}",
        f"--output={tmp_path / 'out.jsonl'}",
        capsys=capsys,
    )
    assert done.code == 4
    assert "no trained classifier" in done.err


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("FileNotFoundError('labels.txt')", "mine.py:2: labels.txt"),
        ("RuntimeError('no labels: see the wiki') from KeyError('a')", "no labels: see the wiki"),
    ],
)
def test_what_a_config_raises_is_told(error, said, tmp_path, capsys):
    (tmp_path / "mine.py").write_text(f"def get_config():\n    raise {error}\n")
    done = call("train", f"--config={tmp_path / 'mine.py'}", capsys=capsys)
    assert done.code == 2 and said in done.err and "Traceback" not in done.err


def test_the_home_folder_in_paths(tiny_bert, tmp_path, capsys, monkeypatch):
    """A shell does not expand ~ behind "="."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "mine.py").write_text(
        "from flaxbert.config import default_config\n\ndef get_config():\n"
        "    config = default_config()\n    config.data.train = '~/a.csv'\n    return config\n"
    )
    config = ["--config=~/mine.py", f"--config.model.path={tiny_bert}"]
    for flags, missing in (
        (["--workdir=~/run"], tmp_path / "a.csv"),
        (["--workdir=~/run", "--config.data.train=~/b.csv"], tmp_path / "b.csv"),
        (["--workdir=~/run", "--config.data.validation=~/c.csv"], tmp_path / "a.csv"),
    ):
        done = call("train", *config, *flags, capsys=capsys)
        assert done.code == 3 and f"{missing}: there is no such file" in done.err
        assert list((tmp_path / "here").iterdir()) == []
    for command, flags, path in (
        ("train", [*config, "--workdir=~/run", "--config.model.path=~/bert"], "bert"),
        ("predict", ["--model=~/bert", "--input=~/in.txt", "--output=-"], "in.txt"),
        ("evaluate", ["--model=~/bert", "--data=~/in.csv"], "bert"),
        ("convert", ["--from=~/bert", "--to=~/out"], "bert"),
        ("predict", ["--workdir=~/run", "--split=test", "--output=~/none/x.jsonl"], "none"),
    ):
        done = call(command, *flags, capsys=capsys)
        assert done.code in (2, 3, 4) and str(tmp_path / path) in done.err, done.err


@pytest.mark.parametrize(
    ("command", "flags", "code", "said"),
    [
        ("train", ["--config.model.path=https://huggingface.co/own/bert/tree/main"], 4,
         "Write its name as the model, own/bert."),
        ("train", ["--config.data.train=https://example.org/a.csv"], 3,
         "https://example.org/a.csv: web addresses are not read. Download it first"),
        ("train", ["--config.data.dataset=s3://bucket/data"], 3, "Copy it to this machine"),
        ("predict", ["--model=hf://own/bert", "--input=A", "--output=-"], 4, "model, own/bert."),
        ("convert", ["--from=huggingface.co/own/bert", "--to=B"], 4, "model, own/bert."),
        ("evaluate", ["--model=own/bert", "--data=x.csv", "--output=http://x/y"], 2,
         "name a local directory"),
    ],
)  # fmt: skip
def test_addresses_are_refused_with_what_to_write(
    command, flags, code, said, tiny_bert, tmp_path, capsys
):
    (tmp_path / "a.csv").write_text("text,label\na,b\nc,d\n")
    flags = [flag.replace("=A", f"={tmp_path / 'a.csv'}") for flag in flags]
    if command == "train":
        start = ["--config=configs/text.py", f"--config.model.path={tiny_bert}"]
        train = [] if "dataset" in flags[0] else [f"--config.data.train={tmp_path / 'a.csv'}"]
        flags = [*start, *train, f"--workdir={tmp_path / 'run'}", *flags]
    done = call(command, *flags, capsys=capsys)
    assert done.code == code and said in done.err, done.err
    assert not (tmp_path / "run" / "config.json").exists()


def test_help_names_the_flags(capsys):
    for command in ("train", "evaluate", "predict", "convert"):
        done = call(command, "--help", capsys=capsys)
        assert done.code == 0
        assert f"python -m flaxbert.{command}" in done.out and "--" in done.out


def test_defects_keep_their_traceback(capsys, monkeypatch):
    def broken(values, stop):
        raise KeyError("a defect")

    monkeypatch.setattr(sys, "argv", ["x"])
    with pytest.raises(SystemExit) as stop:
        cli.run(broken, lambda values: None, "")
    assert stop.value.code == 70
    assert "Traceback" in capsys.readouterr().err


def test_shipped_configs_are_found_from_anywhere(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = call("train", "--config=configs/text.py", capsys=capsys)
    assert "config.data.train is empty" in done.err  # the file was found and read


def test_default_workdir():
    assert cli.config_name(["--config=configs/glue.py:sst2"]) == "glue-sst2"
    assert cli.config_name(["--config", "configs/quickstart.py"]) == "quickstart"


def test_real_process_from_another_folder(tmp_path, tiny_bert, reviews):
    """The installed command as users start it: exit code and message of a real process."""
    process = start("train", "--config=configs/text.py", "--config.seeed=1", cwd=tmp_path)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "seed" in err and "Traceback" not in err


@pytest.mark.slow
def test_sigterm_while_training_saves_and_exits_75(tmp_path, tiny_bert, reviews):
    workdir = tmp_path / "work"
    flags = train_flags(
        tiny_bert, reviews["train"], workdir, train__steps=20000, checkpoint__every=20000
    )
    process = start("train", *flags)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("update "):
            process.send_signal(signal.SIGTERM)
            break
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert "Run the same command again" in err
    saved = [int(path.name) for path in (workdir / "checkpoints").iterdir()]
    run = json.loads((workdir / "checkpoints" / str(saved[0]) / "run.json").read_text())
    assert run["step"] == saved[0] > 0


def test_lazy_package_import():
    """Importing the package and parsing flags must not wait for JAX or transformers."""
    code = (
        "import sys, flaxbert, flaxbert.shell.cli, flaxbert.train;"
        "print([m for m in ('jax', 'transformers', 'orbax') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.strip() == "[]"
