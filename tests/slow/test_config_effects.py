"""Every config field has an effect: changing it changes what a small run does, writes or says."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest

from flaxbert.config import Config, flatten, to_dict
from flaxbert.registry import declared, members
from tests.commands import call, train_flags
from tests.inputs import write_tiny_bert

# field: (value, fields that this case needs besides). The base run has validation data, 12 updates
# of 16 sequences over 96 rows, one a row (packed, each run would compile four shapes for one), and
# is compared with a run under the same extra fields.
CASES: dict[str, tuple[object, dict[str, object]]] = {
    "seed": (1, {}),
    "seeds.init": (5, {}),
    "seeds.data": (5, {}),
    "seeds.dropout": (5, {}),
    "model.path": ("TWO LAYERS", {}),
    "model.dtype": ("bfloat16", {}),
    "data.train": ("TEST", {}),
    "data.validation": ("TEST", {}),
    "data.validation_fraction": (0.25, {"data.validation": ""}),
    "data.text": ("label", {}),
    "data.text_pair": ("label", {}),
    "data.label": ("text", {"data.validation": "", "train.steps": 1}),
    "data.problem": ("multi_label", {}),
    "data.label_separator": ("i", {}),
    "data.max_length": (10, {}),
    "data.packing": ("pack", {"train.steps": 2}),
    "data.row_length": (200, {"data.packing": "pack", "train.steps": 2}),
    "train.batch_size": (8, {}),
    "train.epochs": (1.0, {"train.steps": 0}),
    "train.steps": (7, {}),
    "train.eval_every": (5, {}),
    "train.accumulate": (3, {}),
    "train.best_metric": ("loss", {"train.eval_every": 1}),
    "train.patience": (1, {"optim.learning_rate": 1e-12, "train.eval_every": 3}),
    "method.name": ("freeze", {}),
    "method.freeze.trained": ("bias", {"method.name": "freeze"}),
    "method.freeze.layers": (1, {"method.name": "freeze", "method.freeze.trained": "bias"}),
    "optim.learning_rate": (1e-2, {}),
    "optim.name": ("sgd", {}),
    "mesh.data": (2, {}),
    "mesh.fsdp": (2, {}),
    "mesh.model": (2, {}),
    "checkpoint.every": (5, {}),
    "checkpoint.keep": (1, {}),
    "log.every": (3, {}),
    "log.trackers": ("()", {}),
}

_OF_AN_UPDATE = "tests/optim/test_adamw.py: test_every_field_changes_the_update"
_OF_AN_OPTIMIZER = "tests/optim/test_conformance.py: test_every_option_changes_the_update"
_OF_A_LOSS = "tests/loop/test_step.py: test_loss_options_reach_the_loss"


def _options(name: str) -> list[str]:
    options = declared("optim", name).options
    return list(vars(options)) if options else []


# Proved elsewhere: by tests that need a hub, a broken batch, or an update alone.
ELSEWHERE = {
    **{
        f"optim.{name}": _OF_AN_UPDATE
        for name in ("schedule", "warmup", "weight_decay", "clip_norm", "b1", "b2", "eps")
    },
    **{
        f"optim.{name}.{field}": _OF_AN_OPTIMIZER
        for name in members("optim")
        for field in _options(name)
    },
    "loss.label_smoothing": _OF_A_LOSS,
    "loss.class_weights": _OF_A_LOSS,
    "model.revision": "tests/weights/test_resolve.py: passed to the hub client",
    "data.task": "test_data_task below",
    "data.dataset": "tests/data/sources/test_hub_datasets.py: other rows",
    "data.dataset_config": "tests/data/sources/test_hub_datasets.py: other rows",
    "data.dataset_revision": "tests/storage/test_hub.py: passed to the hub client",
    "data.test": "test_test_split below",
    "data.on_bad_row": "tests/test_bad_input.py: test_policies",
    "data.on_empty": "tests/test_bad_input.py: test_policies",
    "data.on_leak": "tests/test_bad_input.py: test_policies",
    "data.on_single_class": "tests/test_bad_input.py: test_policies",
    "train.nonfinite_limit": "test_nonfinite_limit below",
    "head.name": "tests/heads/test_conformance.py: test_the_whole_way",
    "head.token.scheme": "tests/heads/test_token.py: test_the_scheme_can_be_named",
    "processes.lost_after": "tests/slow/test_several.py: test_a_stopped_process_is_lost",
    "processes.stuck_after": "tests/slow/test_several.py: test_a_stuck_process_dumps_its_stack",
}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def one_layer(minilm, tmp_path_factory):
    """Most of these runs compile a program of their own: of one layer in half the time."""
    return write_tiny_bert(tmp_path_factory.mktemp("models") / "one", num_hidden_layers=1)


def test_no_field_is_forgotten():
    assert flatten(to_dict(Config())).keys() == CASES.keys() | ELSEWHERE.keys()


def _flags(one_layer, reviews, workdir, fields):
    chosen = {
        "data.validation": reviews["dev"],
        "train.steps": 12,
        "data.max_length": 64,
        "data.packing": "pad",
        "data.row_length": 0,
        **fields,
    }
    return train_flags(
        one_layer,
        reviews["train"],
        workdir,
        **{name.replace(".", "__"): value for name, value in chosen.items()},
    )


def _fingerprint(workdir: Path, err: str) -> dict[str, object]:
    """What a run did, without clock and folder: lines said, metrics, files, weights."""
    said = re.sub(r"[0-9.]+ (sequences/s|tokens/s|s\b|/s\))|\([0-9]+ examples, [0-9]+/s\)", "", err)
    said = said.replace(str(workdir), "")
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    metrics = [
        (line["step"], line["split"], line["name"], line["value"])
        for line in lines
        if "per_second" not in line["name"]
    ]
    weights = (workdir / "model" / "model.safetensors").read_bytes()
    return {
        "metrics": metrics,
        "weights": hashlib.sha256(weights).hexdigest(),
        "checkpoints": sorted(path.name for path in (workdir / "checkpoints").iterdir()),
        "mesh": re.findall(r"mesh (.*)", said),
        "rows": re.findall(r"rows: (.*)", said),
        "best": re.findall(r"best: .* after update (.*)", said),
        "events": len(list(workdir.glob("events.out.*"))),
    }


@pytest.fixture(scope="module")
def base_runs():
    return {}


@pytest.mark.parametrize("field", CASES)
def test_field_has_an_effect(field, base_runs, one_layer, tiny_bert, reviews, tmp_path, capsys):
    value, extra = CASES[field]
    value = {"TEST": reviews["test"], "TWO LAYERS": tiny_bert}.get(value, value)
    key = json.dumps(extra, sort_keys=True)
    if key not in base_runs:
        done = call("train", *_flags(one_layer, reviews, tmp_path / "base", extra), capsys=capsys)
        assert done.code == 0, done.err
        base_runs[key] = _fingerprint(tmp_path / "base", done.err)
    fields = {**extra, field: value}
    done = call("train", *_flags(one_layer, reviews, tmp_path / "run", fields), capsys=capsys)
    assert done.code == 0, done.err
    assert _fingerprint(tmp_path / "run", done.err) != base_runs[key]


def test_the_same_config_has_the_same_fingerprint(one_layer, reviews, tmp_path, capsys):
    """Otherwise every field would seem to have an effect."""
    prints = []
    for name in ("a", "b"):
        done = call("train", *_flags(one_layer, reviews, tmp_path / name, {}), capsys=capsys)
        prints.append(_fingerprint(tmp_path / name, done.err))
    assert prints[0] == prints[1]


def test_data_task(one_layer, reviews, tmp_path, capsys):
    fields = {"data.task": "rotten_tomatoes", "train.steps": 1, "data.validation": ""}
    flags = _flags(one_layer, reviews, tmp_path / "run", fields)
    done = call("train", *flags, capsys=capsys)
    assert done.code == 2 and "config.data.train" in done.err  # it would have no effect
    flags = [flag for flag in flags if not flag.startswith("--config.data.train=")]
    done = call("train", *flags, capsys=capsys)
    assert done.code == 0, done.err
    assert "training: 7676 rows" in done.err


def test_test_split(one_layer, reviews, tmp_path, capsys):
    fields = {"data.test": reviews["test"], "train.steps": 1}
    flags = _flags(one_layer, reviews, tmp_path / "run", fields)
    assert call("train", *flags, capsys=capsys).code == 0
    done = call("evaluate", f"--workdir={tmp_path / 'run'}", "--split=test", capsys=capsys)
    assert done.code == 0, done.err
    results = json.loads((tmp_path / "run" / "test_results.json").read_text())
    assert results["test_samples"] == 24


@pytest.mark.parametrize("limit", [2, 4])
def test_nonfinite_limit(limit, one_layer, reviews, tmp_path, capsys, monkeypatch):
    from flaxbert.data import batches

    real = batches.train_batch

    def broken(*args, step, **kwargs):
        batch = real(*args, step=step, **kwargs)
        if 3 <= step < 6:
            batch["weights"] *= float("nan")
        return batch

    monkeypatch.setattr(batches, "train_batch", broken)
    fields = {"train.nonfinite_limit": limit}
    done = call("train", *_flags(one_layer, reviews, tmp_path / "run", fields), capsys=capsys)
    assert done.code == (5 if limit <= 3 else 0), done.err
