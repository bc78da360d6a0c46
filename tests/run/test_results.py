"""model/ after a crash: always the model that the checkpoint of the resume speaks of."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from flaxbert.run import control
from flaxbert.run.results import drop_previous, restore_model
from flaxbert.storage.local import LocalDisk
from flaxbert.storage.workdir import Workdir
from tests.commands import call, metrics_without_times, train_flags


class _Stop(Exception):
    pass


def _model(folder, text):
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_text(text)
    return folder


def _best(text):
    import hashlib

    digest = hashlib.sha256(text.encode()).hexdigest()
    return control.Progress(step=5, best={"step": 5, "value": 0.5, "weights": digest})


def test_the_model_of_the_checkpoint_comes_back(tmp_path):
    workdir = Workdir(tmp_path)
    _model(workdir.model, "named by the checkpoint")
    staged = _model(tmp_path / "new", "abandoned")
    workdir.store.replace_directory(staged, workdir.model, committed=True)
    progress = _best("named by the checkpoint")
    assert restore_model(workdir, progress) == progress.best is not None
    assert (workdir.model / "model.safetensors").read_text() == "named by the checkpoint"


def test_a_model_that_somebody_changed_is_not_called_best(tmp_path, capsys):
    workdir = Workdir(tmp_path)
    _model(workdir.model, "changed by hand")
    progress = _best("named by the checkpoint")
    assert restore_model(workdir, progress) is None
    assert "is no longer the best model" in capsys.readouterr().err


@pytest.mark.parametrize("failures", [1, 1000])
def test_a_model_before_that_cannot_be_deleted_is_told(tmp_path, capsys, monkeypatch, failures):
    workdir = Workdir(tmp_path)
    _model(workdir.model, "of a checkpoint")
    workdir.store.replace_directory(
        _model(tmp_path / "new", "better"), workdir.model, committed=True
    )
    really_unlink, left = os.unlink, iter(range(failures))

    def unlink(path, *arguments, **options):
        if next(left, None) is not None:
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        really_unlink(path, *arguments, **options)

    monkeypatch.setattr("os.unlink", unlink)
    drop_previous(workdir)
    said = capsys.readouterr().err
    assert workdir.model.is_dir()
    if failures == 1:
        assert not said and not list(tmp_path.glob("*.tmp"))
    else:
        assert "could not be deleted: [Errno 5]" in said


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before", "after"])
def test_dying_around_an_export(moment, tiny_bert, reviews, tmp_path, capsys, monkeypatch):
    """Evaluations every 4 updates, checkpoints every 3: the export at 8 is not in a checkpoint."""

    def flags(name):
        return train_flags(
            tiny_bert,
            reviews["train"],
            tmp_path / name,
            data__validation=reviews["dev"],
            train__eval_every=4,
            train__steps=12,
            checkpoint__every=3,
        )

    monkeypatch.setattr(control, "is_better", lambda *_: True)
    assert call("train", *flags("whole"), capsys=capsys).code == 0

    real = LocalDisk.replace_directory
    count: list[int] = []

    def dying(store, new, target, *, committed):
        count.append(1)
        if len(count) == 2 and moment == "before":
            raise _Stop("died here")
        real(store, new, target, committed=committed)
        if len(count) == 2:
            raise _Stop("died here")

    monkeypatch.setattr(LocalDisk, "replace_directory", dying)
    assert call("train", *flags("killed"), capsys=capsys).code == 70
    monkeypatch.setattr(LocalDisk, "replace_directory", real)
    done = call("train", *flags("killed"), capsys=capsys)
    assert done.code == 0, done.err
    assert "after update 6" in done.err
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert metrics_without_times(killed) == metrics_without_times(whole)
    weights = "model/model.safetensors"
    assert (killed / weights).read_bytes() == (whole / weights).read_bytes()
    assert not list(killed.glob("*.tmp"))


def test_evaluate_never_touches_the_runs_own_results(finished, reviews, tmp_path, capsys):
    workdir = shutil.copytree(finished[0], tmp_path / "work")
    before = {path.name: path.read_bytes() for path in workdir.glob("*_results.json")}
    all_csv = tmp_path / "all.csv"
    all_csv.write_bytes(reviews["test"].read_bytes())
    for extra in (["--split=train"], [f"--data={all_csv}"]):
        done = call("evaluate", f"--workdir={workdir}", *extra, capsys=capsys)
        assert done.code == 0, done.err
        assert "accuracy" in done.out
    assert {path.name: path.read_bytes() for path in workdir.glob("*_results.json")} == before


def test_evaluate_refuses_other_data_than_the_runs(finished, reviews, tmp_path, capsys):
    workdir = shutil.copytree(finished[0], tmp_path / "work")
    dev = Path(shutil.copy(reviews["dev"], tmp_path))
    config = (workdir / "config.json").read_text()
    (workdir / "config.json").write_text(config.replace(str(reviews["dev"]), str(dev)))
    with dev.open("a") as file:
        file.write("one more,positive\n")
    done = call("evaluate", f"--workdir={workdir}", capsys=capsys)
    assert done.code == 3
    assert "the data differ" in done.err
