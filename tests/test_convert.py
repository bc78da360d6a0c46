"""python -m flaxbert.convert: any folder in, a clean one out; refusals with their exit codes."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from flaxbert import convert
from flaxbert.model.bert_config import BertConfig
from flaxbert.weights import formats
from tests import folders
from tests.folders import CONFIG, HALVES, VARIANTS, assert_same_bits, write_folder
from tests.golden.values import golden

ROOT = Path(__file__).parents[1]


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the command in this process; returns its exit code and what it said."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def call(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["convert", *map(str, arguments)])
        try:
            convert.command()
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
    for part in ("left out cls.*", "without", "classifier.weight", "alibi"):
        assert part in said


def test_a_workdir_gives_its_best_model(run, tmp_path):
    workdir, tensors = tmp_path / "run", folders.random_tensors()
    write_folder(workdir / "model", tensors)
    (workdir / "config.json").write_text('{"seed": 1}')
    assert run(f"--from={workdir}", f"--to={tmp_path / 'out'}")[0] == 0
    _assert_clean(tmp_path / "out", tensors)


# Name for --format -> the file or folder that it writes.
WEIGHTS = {name: form.files[0][0].partition("/")[0] for name, form in formats.writers().items()}


@pytest.mark.parametrize("first", WEIGHTS)
@pytest.mark.parametrize("second", WEIGHTS)
def test_formats_go_round_with_the_same_bits(run, tmp_path, first, second):
    tensors = folders.hard_tensors()
    folder = write_folder(tmp_path / "in", tensors)
    (folder / "vocab.txt").write_text("[PAD]\n")
    for number, form in enumerate((first, second, "pytorch")):
        target = tmp_path / str(number)
        code, said = run(f"--from={folder}", f"--to={target}", f"--format={form}")
        assert code == 0, said
        names = {path.name for path in target.iterdir()}
        assert names == {"config.json", "vocab.txt", WEIGHTS[form]}
        assert len(said.splitlines()) == 1  # nothing to warn of
        folder = target
    _assert_clean(folder, tensors)


GOLDEN = ROOT / "tests" / "golden" / "formats"


@pytest.mark.parametrize("name", ["flax", "flax-base"])
def test_what_is_written_for_flax_is_what_transformers_wrote(run, tmp_path, name):
    """Byte for byte, by way of PyTorch's format: the file of transformers 4.57.6 comes back."""
    between, target = tmp_path / "pytorch", tmp_path / "flax"
    assert run(f"--from={GOLDEN / name}", f"--to={between}")[0] == 0
    assert run(f"--from={between}", f"--to={target}", "--format=flax")[0] == 0
    written = (target / "flax_model.msgpack").read_bytes()
    assert written == (GOLDEN / name / "flax_model.msgpack").read_bytes()
    ours, theirs = (
        json.loads((folder / "config.json").read_text()) for folder in (target, GOLDEN / name)
    )
    assert ours["architectures"] == [theirs["architectures"][0].removeprefix("Flax")]


ABSENT = {
    "no head": ["classifier."],
    "no pooler": ["bert.pooler."],
    "neither": ["classifier.", "bert.pooler."],
}


@pytest.mark.parametrize("form", WEIGHTS)
@pytest.mark.parametrize("absent", ABSENT)
def test_what_the_source_does_not_have_is_not_made_up(run, tmp_path, form, absent):
    prefixes = tuple(ABSENT[absent])
    tensors = {
        name: array
        for name, array in folders.hard_tensors().items()
        if not name.startswith(prefixes)
    }
    source, target = write_folder(tmp_path / "in", tensors), tmp_path / "out"
    code, said = run(f"--from={source}", f"--to={target}", f"--format={form}")
    assert code == 0
    assert "without" in said and "as the source: train it before it predicts" in said
    again = tmp_path / "again"
    assert run(f"--from={target}", f"--to={again}")[0] == 0
    written = load_file(again / "model.safetensors")
    head = absent == "no pooler"
    if not head:
        written = {f"bert.{name}": array for name, array in written.items()}
    assert_same_bits(written, tensors)
    values = json.loads((target / "config.json").read_text())
    assert values["architectures"] == ["BertForSequenceClassification" if head else "BertModel"]


def test_a_model_without_a_head_does_not_count_as_trained(run, tmp_path):
    from flaxbert import Classifier
    from flaxbert.errors import ModelFileError

    code, _ = run(f"--from={GOLDEN / 'flax-base'}", f"--to={tmp_path / 'out'}")
    assert code == 0
    with pytest.raises(ModelFileError, match="has no trained classifier"):
        Classifier.from_pretrained(tmp_path / "out")


@pytest.mark.parametrize("form", ["pytorch", "flax"])
def test_transformers_loads_a_model_without_a_head(run, tmp_path, form):
    torch = pytest.importorskip("torch", reason="PyTorch is pinned for Python 3.11")
    import transformers

    target = tmp_path / "out"
    assert run(f"--from={GOLDEN / 'flax-base'}", f"--to={target}", f"--format={form}")[0] == 0
    if form == "flax":  # back: PyTorch reads the other format only
        assert run(f"--from={target}", f"--to={tmp_path / 'back'}")[0] == 0
        target = tmp_path / "back"
    model, info = transformers.AutoModel.from_pretrained(target, output_loading_info=True)
    assert type(model).__name__ == "BertModel"
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    state = {f"bert.{name}": value.numpy() for name, value in model.state_dict().items()}
    assert_same_bits(state, {name: golden(name, array.shape) for name, array in state.items()})
    assert torch.get_default_dtype() == torch.float32


def _write_checkpoint(workdir: Path, step: int, tensors) -> None:
    from flaxbert.storage.checkpoint import Checkpoints
    from flaxbert.weights.table import assemble

    (workdir / "source").mkdir(parents=True)
    (workdir / "source" / "config.json").write_text(json.dumps(CONFIG.to_dict()))
    (workdir / "source" / "vocab.txt").write_text("[PAD]\n")
    (workdir / "checkpoints").mkdir()
    checkpoints = Checkpoints(workdir / "checkpoints", 2)
    checkpoints.save(step, {"params": assemble(CONFIG, tensors, "").params}, {"step": step})
    checkpoints.close()


def test_a_checkpoint_of_a_run(run, tmp_path):
    tensors, workdir = folders.hard_tensors(), tmp_path / "run"
    _write_checkpoint(workdir, 7, tensors)
    source = workdir / "checkpoints" / "7"
    assert run(f"--from={source}", f"--to={tmp_path / 'out'}")[0] == 0
    _assert_clean(tmp_path / "out", tensors)
    assert (tmp_path / "out" / "vocab.txt").read_text() == "[PAD]\n"
    (source / "state" / "_METADATA").write_text("{}")
    code, said = run(f"--from={source}", f"--to={tmp_path / 'other'}")
    assert code == 4 and "the checkpoint is damaged: state/_METADATA has" in said


def test_the_commands_of_the_documentation_work(run, tmp_path, monkeypatch):
    for name, source in {
        "uncased_L-12_H-768_A-12": "tf1",
        "old-pytorch-model": "pytorch-legacy",
        "old-flax-model": "flax",
        "runs/mine/model": "flax",
    }.items():
        shutil.copytree(GOLDEN / source, tmp_path / name)
    _write_checkpoint(tmp_path / "runs" / "mine", 40, folders.random_tensors())
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "formats.md").read_text()
    commands = [
        line.split()[3:]
        for line in text.splitlines()
        if line.startswith("python -m flaxbert.convert ") and "PATH" not in line
    ]
    assert len(commands) == 6
    for arguments in commands:
        code, said = run(*arguments)
        assert code == 0, said
    import orbax.checkpoint as ocp

    (restore,) = re.findall(r"`orbax\.checkpoint\.(StandardCheckpointer.*)`", text)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Orbax advises to say where the arrays should lie
        tree = eval(f"ocp.{restore}", {"ocp": ocp, "os": os})  # our own documentation
    np.testing.assert_array_equal(
        tree["classifier"]["bias"], golden("classifier.bias", (3,)), strict=True
    )


class _Canary:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def _hostile(folder: Path, canary: Path) -> dict[str, bytes]:
    """Weight files of which each would do harm: run code, fill the memory, recurse for ever."""
    pickled = pickle.dumps(_Canary(canary))
    return {
        "pytorch_model.bin": pickled,
        "flax_model.msgpack": b"\x81\xa1a" * 100_000,
        "bert_model.ckpt.index": b"\xff" * 40 + bytes.fromhex("57fb808b247547db"),
        "model.safetensors": (2**62).to_bytes(8, "little") + b"{}",
        "pytorch_model.bin.index.json": b'{"weight_map": {"a": "../x"}}',
        "flax_model.msgpack.index.json": b"[" * 100_000,
        "tf_model.h5": b"\x89HDF",
        "params/_METADATA": b"[" * 100_000,
        "params/manifest.json": b"[" * 100_000,
    }


@pytest.mark.parametrize("name", _hostile(Path(), Path()))
def test_hostile_weights_are_4_and_run_nothing(run, tmp_path, name):
    folder, canary = tmp_path / "in", tmp_path / "canary"
    (folder / name).parent.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG.to_dict()))
    (folder / name).write_bytes(_hostile(folder, canary)[name])
    if name.endswith("manifest.json"):
        (folder / "params" / "_METADATA").write_text("{}")
    code, said = run(f"--from={folder}", f"--to={tmp_path / 'out'}")
    assert code == 4
    assert said.count("\n") == 1 and said.startswith(f"flaxbert: error: {folder}")
    assert not canary.exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["[" * 100_000, '{"num_hidden_layers": 1000000000}'])
def test_a_hostile_config_is_4(run, tmp_path, text):
    folder = write_folder(tmp_path / "in", folders.random_tensors())
    (folder / "config.json").write_text(text)
    code, said = run(f"--from={folder}", f"--to={tmp_path / 'out'}")
    assert code == 4 and str(folder / "config.json") in said


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
        (["--from=in", "--to=out", "--fro=x"], "fro"),
        (["--from=in", "--to=out", "--format=tf"], "pytorch|flax|orbax"),
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
