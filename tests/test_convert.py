"""python -m flaxbert.convert: any folder in, a clean one out; refusals with their exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from flaxbert import cli, convert
from flaxbert.model.config import BertConfig
from tests import folders
from tests.folders import CONFIG, HALVES, VARIANTS, assert_same_bits, write_folder

ROOT = Path(__file__).parents[1]


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the command in this process; returns its exit code and what it said."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def call(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["convert", *map(str, arguments)])
        try:
            cli.run(convert.main, convert.define_flags, convert.__doc__)
        except SystemExit as end:
            code = end.code or 0
        else:
            code = 0
        output = capsys.readouterr()
        assert "Traceback" not in output.err
        assert not output.out  # standard output is for results
        return int(code), output.err

    yield call
    for number, handler in handlers.items():
        signal.signal(number, handler)


def _assert_clean(directory: Path, tensors) -> None:
    assert_same_bits(load_file(directory / "model.safetensors"), tensors)
    config, unknown = BertConfig.from_dict(json.loads((directory / "config.json").read_text()))
    assert (config, unknown) == (CONFIG, [])


@pytest.mark.parametrize("variant", VARIANTS)
def test_from_every_variant_to_a_clean_folder(run, tmp_path, variant):
    tensors = folders.hard_tensors()
    source, target = VARIANTS[variant](tmp_path / "in", tensors), tmp_path / "out"
    code, said = run(f"--from={source}", f"--to={target}")
    assert code == 0
    assert f"{target}: written, labels no, perhaps, yes" in said
    _assert_clean(target, tensors)
    assert {path.name for path in target.iterdir()} == {"config.json", "model.safetensors"}


@pytest.mark.parametrize("half", HALVES)
def test_from_half_precision_to_float32(run, tmp_path, half):
    narrow = folders.as_dtype(folders.hard_tensors(), HALVES[half])
    source, target = write_folder(tmp_path / "in", narrow), tmp_path / "out"
    assert run(f"--from={source}", f"--to={target}")[0] == 0
    _assert_clean(target, {name: array.astype(np.float32) for name, array in narrow.items()})


def test_what_was_changed_is_said(run, tmp_path):
    tensors = folders.with_pretraining_heads(folders.random_tensors())
    for name in ("classifier.weight", "classifier.bias"):
        del tensors[name]
    source = write_folder(tmp_path / "in", tensors, CONFIG.to_dict() | {"alibi": 1})
    code, said = run(f"--from={source}", f"--to={tmp_path / 'out'}")
    assert code == 0
    for part in ("pre-training heads", "without", "classifier.weight", "alibi"):
        assert part in said


def test_a_workdir_gives_its_best_model(run, tmp_path):
    workdir, tensors = tmp_path / "run", folders.random_tensors()
    write_folder(workdir / "model", tensors)
    (workdir / "config.json").write_text('{"seed": 1}')
    assert run(f"--from={workdir}", f"--to={tmp_path / 'out'}")[0] == 0
    _assert_clean(tmp_path / "out", tensors)


def test_tokenizer_files_come_along(run, tmp_path):
    source = write_folder(tmp_path / "in", folders.random_tensors())
    (source / "vocab.txt").write_text("[PAD]\n")
    (source / "pytorch_model.bin").write_text("not read, not copied")
    assert run(f"--from={source}", f"--to={tmp_path / 'out'}")[0] == 0
    assert (tmp_path / "out" / "vocab.txt").read_text() == "[PAD]\n"
    assert not (tmp_path / "out" / "pytorch_model.bin").exists()


def test_an_empty_target_is_used(run, tmp_path):
    source, target = write_folder(tmp_path / "in", folders.random_tensors()), tmp_path / "out"
    target.mkdir()
    assert run(f"--from={source}", f"--to={target}")[0] == 0
    assert (target / "model.safetensors").is_file()


@pytest.mark.parametrize("content", ["a file in it", "a file of that name"])
def test_a_target_that_is_not_empty_is_refused_and_untouched(run, tmp_path, content):
    source, target = write_folder(tmp_path / "in", folders.random_tensors()), tmp_path / "out"
    if content == "a file in it":
        target.mkdir()
        (target / "precious").write_text("kept")
    else:
        target.write_text("kept")
    code, said = run(f"--from={source}", f"--to={target}")
    assert code == 2
    assert "--to" in said and "not an empty folder" in said
    kept = target if target.is_file() else target / "precious"
    assert kept.read_text() == "kept"
    assert target.is_file() or os.listdir(target) == ["precious"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--to=out"], "--from is missing"),
        (["--from=in"], "--to is missing"),
        ([], "--from is missing"),
        (["--from=in", "--to=out", "stray"], "unexpected argument 'stray'"),
        (["--from=in", "--to=out", "--form=x"], "form"),
    ],
)
def test_wrong_usage_is_2(run, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    code, message = run(*arguments)
    assert code == 2
    assert said in message
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("name", ["absent/a/b", "./absent", "/absent", "someone/not-cached"])
def test_a_missing_source_is_4(run, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    code, said = run(f"--from={name}", "--to=out")
    assert code == 4
    assert repr(name) in said
    assert not os.listdir(tmp_path)  # no half-made target


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda path: (path / "config.json").unlink(), "no config.json"),
        (lambda path: (path / "config.json").write_text("{"), "not valid JSON"),
        (
            lambda path: (path / "config.json").write_text('{"model_type": "gpt2"}'),
            "model_type='gpt2' is not supported",
        ),
        (lambda path: (path / "model.safetensors").unlink(), "no weights that can be read"),
        (lambda path: os.truncate(path / "model.safetensors", 99), "cannot be read"),
        (lambda path: write_folder(path, {"x": np.zeros(1, np.float32)}), "x is not a parameter"),
    ],
    ids=["no config", "broken config", "another model", "no weights", "cut off", "other weights"],
)
def test_a_source_that_cannot_be_used_is_4(run, tmp_path, break_it, said):
    source, target = write_folder(tmp_path / "in", folders.random_tensors()), tmp_path / "out"
    break_it(source)
    code, message = run(f"--from={source}", f"--to={target}")
    assert code == 4
    assert said in message
    assert not target.exists()


def test_the_real_command(tmp_path):
    source, target = (
        VARIANTS["gamma and beta, no prefix"](tmp_path / "in", folders.random_tensors()),
        tmp_path / "out",
    )
    command = [sys.executable, "-m", "flaxbert.convert", f"--from={source}", f"--to={target}"]
    for expected in (0, 2):  # the second time the target is not empty
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )
        assert done.returncode == expected, done.stderr
        assert "Traceback" not in done.stderr
    _assert_clean(target, folders.random_tensors())
