"""What every head must do, over all that the registry has: a new file gets these tests for nothing.

Parity with PyTorch's class in float64, the same update however it is laid out, bit-equal round
trips, and the whole way through the commands: train, interrupt, resume, evaluate, predict, reload.
"""

from __future__ import annotations

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxbert.data.batches import plan_training, train_batch
from flaxbert.errors import InterruptedRun
from flaxbert.heads import abstract_params, all_heads, bind, head_named, head_of, init_params
from flaxbert.inference.predictors import predictor_for
from flaxbert.model.bert_model import INPUTS
from flaxbert.run.training import Training
from flaxbert.weights.folder import read_config, read_model, write_model
from flaxbert.weights.table import entries, flatten, to_torch
from tests.commands import call, final_state, metrics_without_times, train_flags
from tests.heads.samples import NAMES, config_of, examples_of, write_data
from tests.loop.cases import UPDATES
from tests.loop.harness import ALL_AT_ONCE, BERT, means, run
from tests.reference import NO_TORCH, params_for, random_arrays

HEADS = sorted(all_heads())
heads = pytest.mark.parametrize("name", HEADS)


def test_every_head_has_samples():
    assert sorted(NAMES) == HEADS


# --- PyTorch ------------------------------------------------------------------------------------

# One worker has the program of tests/optim/test_adamw.py, which is of the first one.
with_adamw = {"single_label": pytest.mark.xdist_group("20 updates")}


@functools.cache
def _their_updates(name: str):
    pytest.importorskip("torch", reason=NO_TORCH + "golden files for the sequence heads")
    from tests.torch_reference import head_updates

    config = config_of(name)
    return head_updates(config, random_arrays(config), examples_of(name), UPDATES, 16)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=with_adamw.get(name, ())) for name in HEADS]
)
def test_20_updates_in_float64(name, x64):
    """Losses, the first gradient, and every parameter after warm-up, clipping and decay."""
    config, data = config_of(name), examples_of(name)
    losses, first_gradient, end = _their_updates(name)
    start = random_arrays(config)
    params = jax.tree.map(lambda leaf: leaf.astype("float64"), params_for(config, start))
    gradient = _first_gradient(name, params)
    norm = np.sqrt(sum(np.sum(np.square(g)) for g in first_gradient.values()))
    history, state = run(
        data, config=config, params=params, dtype="float64", optim=UPDATES, problem=name
    )
    assert np.abs(means(history) / losses - 1).max() <= 1e-11
    ours = flatten(jax.device_get(state["params"]))
    assert {entry.name for entry in entries(config)} == end.keys()
    for entry in entries(config):
        mine, first = (
            a.T if entry.transposed else a for a in (ours[entry.path], gradient[entry.path])
        )
        assert np.abs(first - first_gradient[entry.name]).max() <= 1e-12 * norm, entry.name
        difference = np.abs(mine - end[entry.name]).max()
        assert difference <= 1e-5 * UPDATES.learning_rate, (entry.name, difference)
        assert np.abs(mine - start[entry.name]).max() > 0, f"{entry.name} never moved"


def _first_gradient(name: str, params):
    """The gradient of the first update's mean loss, from packed rows."""
    config, data, head = config_of(name), examples_of(name), head_named(name)
    plan = plan_training(data, batch_size=16, seed=1, steps=20, packing="pack")
    batch = {
        key: array[0]
        for key, array in train_batch(data, plan, batch_size=16, seed=1, step=0).items()
    }

    def loss(params):
        logits = bind(config, params, "float64")(*(batch[key] for key in INPUTS))
        weights = batch["weights"].astype(logits.dtype)
        total, normalizer = head.loss_sums(logits, jnp.asarray(batch["labels"]), weights)
        return total / normalizer

    return flatten(jax.device_get(jax.jit(jax.grad(loss))(params)))


@heads
def test_round_trip_through_pytorch_is_bit_equal(name, tmp_path):
    pytest.importorskip("torch", reason=NO_TORCH + "tests/weights/test_folder.py by golden folders")
    import transformers

    config = config_of(name)
    params = jax.device_get(init_params(config, 3))
    write_model(tmp_path / "ours", config, params, [])
    theirs = getattr(transformers, head_named(name).architecture).from_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    back, _ = read_config(tmp_path / "theirs")
    assert head_of(back).name == name and back.id2label == config.id2label
    loaded = read_model(tmp_path / "theirs", back, 0, [])
    assert loaded.fresh == ()
    for path, array in flatten(params).items():
        assert np.array_equal(array, flatten(loaded.params)[path]), path
    assert to_torch(config, params).keys() == dict(theirs.named_parameters()).keys()


# --- one update, however it is laid out ---------------------------------------------------------

# The encoder's layers are compared in tests/loop/test_equivalence.py: one will do.
SHALLOW = dataclasses.replace(BERT, num_hidden_layers=1)


@heads
def test_padded_accumulated_and_sharded_it_is_the_same_update(name, x64):
    """All at once, with dropout, for the price of two programs."""
    config = config_of(name, SHALLOW)
    settings = {"config": config, "dtype": "float64", "problem": name, "updates": 6}
    plain, _ = run(examples_of(name), **settings)
    other, _ = run(examples_of(name), **settings, **ALL_AT_ONCE)
    assert np.abs(means(other) / means(plain) - 1).max() <= 1e-12


# --- the whole way ------------------------------------------------------------------------------


@heads
def test_the_whole_way(name, tiny_bert, tmp_path, capsys, monkeypatch):
    """Train, interrupt, resume to the same bits; evaluate, predict, reload."""
    fields = write_data(name, tmp_path) | {"checkpoint__every": 2, "train__steps": 4}
    flags = {w: train_flags(tiny_bert, "", tmp_path / w, **fields) for w in ("whole", "killed")}
    done = call("train", *flags["whole"], capsys=capsys)
    assert done.code == 0, done.err
    real = Training.batch

    def interrupted(training, step):
        if step == 3:
            raise InterruptedRun("enough")
        return real(training, step)

    monkeypatch.setattr(Training, "batch", interrupted)
    assert call("train", *flags["killed"], capsys=capsys).code == 75
    monkeypatch.setattr(Training, "batch", real)
    done = call("train", *flags["killed"], capsys=capsys)
    assert done.code == 0 and "after update 2 of 4" in done.err, done.err
    whole, killed = final_state(tmp_path / "whole"), final_state(tmp_path / "killed")
    assert all(np.array_equal(whole[path], killed[path]) for path in whole)
    assert metrics_without_times(tmp_path / "whole") == metrics_without_times(tmp_path / "killed")

    workdir = tmp_path / "whole"
    trained = json.loads((workdir / "eval_results.json").read_text())
    done = call("evaluate", f"--workdir={workdir}", capsys=capsys)
    assert done.code == 0, done.err
    again = json.loads(done.out)
    main = head_named(name).main_metric(read_config(workdir / "model")[0].id2label)
    assert again["eval_loss"] == pytest.approx(trained["eval_loss"], rel=1e-6)
    assert again[f"eval_{main}"] == pytest.approx(trained[f"eval_{main}"], rel=1e-6)

    if head_named(name).long[0] == "window":  # a stride of its own is read anew
        done = call("evaluate", f"--workdir={workdir}", "--stride=0", capsys=capsys)
        assert done.code == 0 and " texts over " in done.err, done.err

    output = tmp_path / "answers.jsonl"
    columns = [f"--text={fields['data__text']}"] if "data__text" in fields else []
    predict = ["predict", f"--model={workdir / 'model'}", f"--input={fields['data__validation']}"]
    done = call(*predict, f"--output={output}", *columns, capsys=capsys)
    assert done.code == 0, done.err
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(records) == 20
    done = call(*predict, f"--output={tmp_path / 'answers.csv'}", *columns, capsys=capsys)
    assert done.code == 0 and len((tmp_path / "answers.csv").read_text().splitlines()) == 21

    predictor = predictor_for(workdir / "model").from_pretrained(workdir / "model")
    column = fields.get("data__text", "text")
    rows = [json.loads(line) for line in fields["data__validation"].read_text().splitlines()]
    assert predictor([row[column] for row in rows]) == records


@heads
def test_another_head_is_not_taken_for_this_one(name, tmp_path):
    """A checkpoint of another class with as many labels: its head is fresh, and that is told."""
    config = config_of(name)
    other = next(h for h in HEADS if head_named(h).architecture != head_named(name).architecture)
    theirs = dataclasses.replace(config_of(other), id2label=config.id2label)
    write_model(tmp_path, theirs, jax.device_get(init_params(theirs, 1)), [])
    loaded = read_model(tmp_path, config, 0, [])
    prefix = head_named(name).prefix
    assert {f.partition(".")[0] for f in loaded.fresh} >= {prefix}
    stated = head_named(other).architecture
    assert any(f"is {stated}'s, and is not used" in note for note in loaded.notes)
    assert flatten(loaded.params).keys() == flatten(abstract_params(config)).keys()
