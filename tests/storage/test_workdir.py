"""The workdir: whose folder it is, and that a file or folder is the old one or the new one."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from flaxbert.config import Config, to_dict
from flaxbert.errors import ConfigError, ModelFileError
from flaxbert.storage import local as module
from flaxbert.storage.local import LocalDisk, repair_directory
from flaxbert.storage.workdir import (
    existing_workdir,
    open_workdir,
    read_json,
    write_atomically,
    write_json,
)
from flaxbert.track.jsonl import cut_back

DISK = LocalDisk()


class _PowerCut(BaseException):
    """Stands for the end of the process: nothing may catch it."""


def _snapshot(directory: Path) -> dict[str, str]:
    return {
        path.relative_to(directory).as_posix(): path.read_text()
        for path in directory.rglob("*")
        if path.is_file()
    }


# Opening


def test_a_new_directory_is_created(tmp_path):
    workdir = open_workdir(tmp_path / "a" / "b")
    assert workdir.root.is_dir()
    assert not workdir.started


@pytest.mark.parametrize("kind", [str, Path])
def test_both_kinds_of_path(tmp_path, kind):
    assert open_workdir(kind(tmp_path)).root == tmp_path


def test_the_folder_of_a_run_is_opened_again(tmp_path):
    write_json(open_workdir(tmp_path).config, to_dict(Config()))
    (tmp_path / "checkpoints").mkdir()
    assert open_workdir(tmp_path).started
    assert existing_workdir(tmp_path).started


def test_a_model_folder_is_no_run(tmp_path):
    """It has a config.json too; the message must not speak of its fields."""
    write_json(tmp_path / "config.json", {"model_type": "bert"})
    for open_it in (open_workdir, existing_workdir):
        with pytest.raises(ConfigError, match=r"holds no config.json of a run"):
            open_it(tmp_path)


def test_nothing_is_written_through_a_link(tmp_path):
    """Folders may be links, to another disk. A link in the place of a file gives way to the file,
    and what it points to stays: an archive of another person's run may hold such links."""
    outside, root = tmp_path / "outside", tmp_path / "run"
    outside.mkdir()
    root.mkdir()
    (outside / "precious").write_text("precious")
    for name in ("config.json", "config.json.tmp", "metrics.jsonl", "model", "model.new.tmp"):
        (root / name).symlink_to(outside / "precious" if "." in name else outside)
    (root / "new.jsonl").symlink_to(outside / "none")
    write_json(root / "config.json", {})
    cut_back(root / "metrics.jsonl", 0)
    cut_back(root / "new.jsonl", 0)
    staged = DISK.stage(root / "model")
    staged.mkdir()
    DISK.replace_directory(staged, root / "model", committed=False)
    assert not [path for path in root.iterdir() if path.is_symlink()]
    assert [path.read_text() for path in outside.iterdir()] == ["precious"]
    (root / ".lock").symlink_to(outside / "precious")
    with pytest.raises(ConfigError, match="is no plain file"), DISK.locked(root / ".lock"):
        pass


def test_links_to_nothing(tmp_path):
    """As a scratch disk that was emptied leaves them."""
    (tmp_path / "model").symlink_to(tmp_path / "none")
    staged = DISK.stage(tmp_path / "model")
    staged.mkdir()
    DISK.replace_directory(staged, tmp_path / "model", committed=True)
    assert (tmp_path / "model").is_dir() and not (tmp_path / "model").is_symlink()
    (tmp_path / "checkpoints").symlink_to(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="The folder that a link names does not exist"):
        DISK.make_directory(tmp_path / "checkpoints")


def test_a_workdir_may_be_and_hold_links(tmp_path):
    (tmp_path / "disk" / "checkpoints").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    write_json(tmp_path / "disk" / "config.json", to_dict(Config()))
    shutil.move(tmp_path / "disk" / "checkpoints", tmp_path / "scratch")
    (tmp_path / "disk" / "checkpoints").symlink_to(tmp_path / "scratch")
    assert open_workdir(tmp_path / "link").started
    DISK.begin(tmp_path / "link" / "checkpoints" / "1")
    assert (tmp_path / "scratch" / "1.tmp").is_dir()


@pytest.mark.parametrize("litter", [[".lock"], ["config.json.tmp"], [".lock", "model.new.tmp"]])
def test_our_own_litter_counts_as_empty(tmp_path, litter):
    for name in litter:
        (tmp_path / name).touch()
    assert not open_workdir(tmp_path).started


@pytest.mark.parametrize("name", ["notes.txt", ".git", "config.json.bak", "checkpoints", "model"])
def test_somebody_else_s_files_are_refused(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(ConfigError, match="not empty") as caught:
        open_workdir(tmp_path)
    assert caught.value.exit_code == 2
    assert name in str(caught.value)
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_file_is_refused(tmp_path, below):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is a file"):
        open_workdir(tmp_path / "file" / below)


@pytest.mark.parametrize("url", ["gs:/bucket/run", "s3://bucket/run", "file:///run"])
def test_a_url_is_refused_and_no_such_folder_appears(tmp_path, monkeypatch, url):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="expected"):
        open_workdir(url)
    assert not os.listdir(tmp_path)


def test_a_directory_that_cannot_be_made(tmp_path, monkeypatch):
    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", denied)
    with pytest.raises(ConfigError, match="Permission denied"):
        open_workdir(tmp_path / "new")


def test_existing_workdir_needs_a_run(tmp_path):
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ConfigError, match=r"no config\.json"):
            existing_workdir(path)
    assert not (tmp_path / "absent").exists()


def test_results_have_the_names_of_the_trainer(tmp_path):
    workdir = open_workdir(tmp_path)
    names = {split: workdir.results(split).name for split in ("train", "validation", "test")}
    assert names == {
        "train": "train_results.json",
        "validation": "eval_results.json",
        "test": "test_results.json",
    }


def test_every_name_is_inside_and_different(tmp_path):
    workdir = open_workdir(tmp_path)
    names = ("config", "lock", "checkpoints", "model", "source", "metrics", "all_results")
    paths = {getattr(workdir, name) for name in names}
    assert len(paths) == len(names)
    assert {path.parent for path in paths} == {tmp_path}


# Files


def test_a_written_file_is_whole_and_alone(tmp_path):
    path = tmp_path / "file"
    for data in (b"one", b"two" * 1000, b""):
        write_atomically(path, data)
        assert path.read_bytes() == data
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("owner", ["os.fsync", "Path.replace"])
@pytest.mark.parametrize("before", [None, b"old"])
def test_a_write_that_is_cut_off_leaves_the_old_file(tmp_path, monkeypatch, owner, before):
    path = tmp_path / "file"
    if before is not None:
        path.write_bytes(before)

    def cut(*_):
        raise _PowerCut

    target = os if owner == "os.fsync" else Path
    monkeypatch.setattr(target, owner.split(".")[1], cut)
    with pytest.raises(_PowerCut):
        write_atomically(path, b"new")
    monkeypatch.undo()
    assert (path.read_bytes() if path.exists() else None) == before
    # What is left counts as litter, and the next write goes through.
    assert all(name == "file" or name.endswith(".tmp") for name in os.listdir(tmp_path))
    write_atomically(path, b"newer")
    assert path.read_bytes() == b"newer"


def test_data_are_synced_before_the_rename_and_the_folder_after(tmp_path, monkeypatch):
    order = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append("sync"), fsync(fd))[1])
    monkeypatch.setattr(Path, "replace", lambda a, b: (order.append("rename"), replace(a, b))[1])
    write_atomically(tmp_path / "file", b"x")
    assert order == ["sync", "rename", "sync"]


def test_json_is_sorted_indented_and_ends_with_a_newline(tmp_path):
    write_json(tmp_path / "x.json", {"b": 1, "a": [True, None, "é"]})
    text = (tmp_path / "x.json").read_text()
    assert text.index('"a"') < text.index('"b"')
    assert text.startswith('{\n    "a"') and text.endswith("}\n")
    assert read_json(tmp_path / "x.json") == {"b": 1, "a": [True, None, "é"]}


def test_what_json_cannot_say_becomes_null(tmp_path):
    nan, inf = float("nan"), float("inf")
    values = {"loss": nan, "deep": [{"x": (inf, -inf, 1.5)}], "numpy": np.float64("nan"), "n": 3}
    write_json(tmp_path / "x.json", values)

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    text = (tmp_path / "x.json").read_text()
    assert json.loads(text, parse_constant=refuse) == {
        "loss": None,
        "deep": [{"x": [None, None, 1.5]}],
        "numpy": None,
        "n": 3,
    }


def test_floats_come_back_exactly(tmp_path):
    values = [0.1, 1e-300, 1 / 3, 5e-324, -0.0, 2.0**60]
    write_json(tmp_path / "x.json", values)
    assert [value.hex() for value in read_json(tmp_path / "x.json")] == [v.hex() for v in values]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "not valid JSON"),
        (b"", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (None, "No such file"),
    ],
)
def test_json_that_cannot_be_read(tmp_path, content, said):
    path = tmp_path / "x.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelFileError, match=said) as caught:
        read_json(path)
    assert str(path) in str(caught.value)


# Directories


def _directory(path: Path, text: str) -> Path:
    (path / "sub").mkdir(parents=True)
    (path / "file").write_text(text)
    (path / "sub" / "file").write_text(text)
    return path


OLD = {"file": "old", "sub/file": "old"}
NEW = {"file": "new", "sub/file": "new"}


@pytest.mark.parametrize("existed", [False, True])
def test_a_directory_is_switched_whole(tmp_path, existed):
    target = tmp_path / "model"
    if existed:
        _directory(target, "old")
        (target / "only in the old one").touch()
    DISK.replace_directory(_directory(tmp_path / "model.new.tmp", "new"), target, committed=True)
    assert _snapshot(target) == NEW
    kept = ["model.previous.tmp"] if existed else []
    assert sorted(os.listdir(tmp_path)) == ["model", *kept]
    DISK.forget_previous(target)
    assert os.listdir(tmp_path) == ["model"]


def test_what_a_checkpoint_speaks_of_survives_any_number_of_switches(tmp_path):
    target = _directory(tmp_path / "model", "old")
    for text, committed in (("first", True), ("second", False), ("third", False)):
        DISK.replace_directory(_directory(tmp_path / "new", text), target, committed=committed)
        assert (target / "file").read_text() == text
    assert not DISK.choose_directory(
        target, lambda folder: (folder / "file").read_text() == "first"
    )
    assert (target / "file").read_text() == "third"
    assert DISK.choose_directory(target, lambda folder: (folder / "file").read_text() == "old")
    assert _snapshot(target) == OLD
    assert os.listdir(tmp_path) == ["model"]


def _cut_off_at(monkeypatch, call: int) -> None:
    """The process ends before the given call of a rename, a sync or a removal."""
    count = iter(range(100))

    def cutting(function):
        def wrapped(*args, **options):
            if next(count) == call:
                raise _PowerCut
            return function(*args, **options)

        return wrapped

    monkeypatch.setattr(Path, "rename", cutting(Path.rename))
    monkeypatch.setattr(shutil, "rmtree", cutting(shutil.rmtree))
    monkeypatch.setattr(module, "sync_directory", cutting(module.sync_directory))


@pytest.mark.parametrize("committed", [True, False])
def test_repair_gives_the_old_or_the_new_one_at_every_cut_off_point(
    tmp_path, monkeypatch, committed
):
    outcomes = []
    for call in range(20):
        root = tmp_path / str(call)
        target, new = _directory(root / "model", "old"), _directory(root / "model.new.tmp", "new")
        with monkeypatch.context() as patched:
            _cut_off_at(patched, call)
            try:
                DISK.replace_directory(new, target, committed=committed)
            except _PowerCut:
                finished = False
            else:
                finished = True
        repair_directory(target)
        repair_directory(target)  # repairing twice changes nothing
        assert _snapshot(target) in (OLD, NEW), call
        assert not list(root.glob("*.old.tmp")), call
        outcomes.append(_snapshot(target))
        if committed:
            assert DISK.choose_directory(target, lambda folder: _snapshot(folder) == OLD), call
        if finished:
            break
    assert finished and outcomes[-1] == NEW
    # Before the last rename the old one, from there on the new one, and there is such a point.
    switch = outcomes.index(NEW)
    assert switch > 1 and outcomes == [OLD] * switch + [NEW] * (len(outcomes) - switch)


def test_the_next_switch_after_a_cut_off_never_drops_the_only_copy(tmp_path, monkeypatch):
    for first in range(8):
        for second in range(8):
            root = tmp_path / f"{first}-{second}"
            target, new = _directory(root / "model", "old"), root / "model.new.tmp"
            for call in (first, second):
                shutil.rmtree(new, ignore_errors=True)
                _directory(new, "new")
                with monkeypatch.context() as patched, contextlib.suppress(_PowerCut):
                    _cut_off_at(patched, call)
                    DISK.replace_directory(new, target, committed=True)
            repair_directory(target)
            assert _snapshot(target) in (OLD, NEW), (first, second)


def test_repair_without_anything_to_repair(tmp_path):
    repair_directory(tmp_path / "absent")
    assert not os.listdir(tmp_path)
    _directory(tmp_path / "model", "old")
    repair_directory(tmp_path / "model")
    assert _snapshot(tmp_path / "model") == OLD
