"""A run's checkpoint as a model, and what an Orbax folder declares."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from flaxbert import FlaxBertForSequenceClassification
from flaxbert.errors import ModelFileError
from flaxbert.heads import abstract_params
from flaxbert.storage.checkpoint import Checkpoints
from flaxbert.weights import table
from flaxbert.weights.folder import write_model
from tests import folders
from tests.folders import CONFIG, assert_same_bits


def _load(directory, **options):
    return FlaxBertForSequenceClassification.from_pretrained(directory, **options)


def _tree(tensors=None):
    tensors = folders.hard_tensors() if tensors is None else tensors
    return table.assemble(CONFIG, tensors, "test").params


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A workdir with one checkpoint, its state as a run has it."""
    workdir = tmp_path_factory.mktemp("run")
    (workdir / "source").mkdir()
    (workdir / "source" / "config.json").write_text(json.dumps(CONFIG.to_dict()))
    (workdir / "source" / "vocab.txt").write_text("[PAD]\n")
    (workdir / "config.json").write_text('{"train": {}, "optim": {}, "checkpoint": {}}')
    checkpoints = Checkpoints(workdir / "checkpoints", 2)
    (workdir / "checkpoints").mkdir()
    params = _tree()
    adam = {name: _tree(folders.random_tensors()) for name in ("mu", "nu")}
    checkpoints.save(3, {"params": params, "optimizer": adam, "step": jnp.int32(3)}, {"step": 3})
    checkpoints.close()
    return workdir


def test_parameters_that_were_not_trained_are_read_too(run, tmp_path):
    workdir = shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints")
    frozen = _tree()
    trained = {"classifier": frozen.pop("classifier")}
    checkpoints = Checkpoints(workdir / "checkpoints", 2)
    checkpoints.newest_valid()
    checkpoints.save(3, {"params": trained, "frozen": frozen, "step": jnp.int32(3)}, {"step": 3})
    checkpoints.close()
    model = _load(workdir / "checkpoints" / "3")
    assert (model.fresh, model.notes) == ((), ())
    assert_same_bits(table.to_torch(CONFIG, model.params), folders.hard_tensors())
    damaged = workdir / "checkpoints" / "frozen" / "state" / "_METADATA"
    damaged.write_text("{}")
    with pytest.raises(ModelFileError, match="frozen"):
        _load(workdir / "checkpoints" / "3")


def test_a_run_s_checkpoint_is_a_model(run, monkeypatch):
    directory = run / "checkpoints" / "3"
    model = _load(directory)
    assert (model.fresh, model.notes, model.config) == ((), (), CONFIG)
    assert_same_bits(table.to_torch(CONFIG, model.params), folders.hard_tensors())
    assert [path.name for path in model.tokenizer_files()] == ["vocab.txt"]
    monkeypatch.chdir(directory)
    assert _load(".").config == CONFIG


def test_a_damaged_checkpoint_is_refused(run, tmp_path):
    workdir = shutil.copytree(run, tmp_path / "run")
    directory = workdir / "checkpoints" / "3"
    data = max((directory / "state").rglob("*"), key=lambda path: path.stat().st_size)
    with data.open("r+b") as file:
        file.seek(data.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(ModelFileError, match=r"checkpoints/3: the checkpoint is damaged: .*saved"):
        _load(directory)
    os.unlink(directory / "manifest.json")
    with pytest.raises(ModelFileError, match=r"manifest\.json is missing"):
        _load(directory)


def test_a_run_without_a_model_names_its_newest_checkpoint(run):
    with pytest.raises(ModelFileError, match=r"no model/ yet.*checkpoints/3\."):
        _load(run)


def test_a_checkpoint_away_from_its_run_has_no_config(run, tmp_path):
    shutil.copytree(run / "checkpoints" / "3", tmp_path / "checkpoints" / "3")
    with pytest.raises(ModelFileError, match=r"source: is missing"):
        _load(tmp_path / "checkpoints" / "3")


def test_missing_parts_and_other_heads_are_fresh(tmp_path):
    params = _tree(folders.random_tensors())
    del params["bert"]["pooler"]
    write_model(tmp_path, CONFIG, params, [], format="orbax")
    model = _load(tmp_path, num_labels=2)
    assert len(model.fresh) == 4
    assert model.params["classifier"]["kernel"].shape == (8, 2)


def test_huge_arrays_of_a_huge_config_are_not_allocated(tmp_path):
    """Zeros compress to nothing: a small folder can declare a large model."""
    config = dataclasses.replace(CONFIG, hidden_size=256, intermediate_size=20_000)
    params = abstract_params(config)
    zeros = {path: np.zeros(leaf.shape, np.float32) for path, leaf in table.flatten(params).items()}
    write_model(tmp_path, config, table.unflatten(zeros), [], format="orbax")
    held = sum(path.stat().st_size for path in (tmp_path / "params").rglob("*"))
    assert held < 2**20
    with pytest.raises(ModelFileError, match="bytes of parameters, its files have"):
        _load(tmp_path)
