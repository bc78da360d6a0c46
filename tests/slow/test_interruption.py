"""Signals in the phases of a real run, stops after single updates, and poisoned ones.

A few of each here; `make soak` does all and writes tests/results/{interrupt,resume_points}.json.
"""

from __future__ import annotations

import errno
import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from flaxbert.errors import ConfigError, DataError, ModelFileError, NonFiniteError
from tests.commands import final_state, train_flags
from tests.soak import interrupt, resume_points

pytestmark = pytest.mark.slow


@pytest.mark.timeout(900)
def test_signals_in_the_phases_of_a_run(tiny_bert, reviews, tmp_path):
    cases = [
        ("importing", signal.SIGINT),
        ("compiling", signal.SIGTERM),
        ("training", signal.SIGINT),
        ("saving", signal.SIGTERM),
    ]
    outcomes = interrupt.soak(tiny_bert, reviews, tmp_path, cases, seed=1)
    assert [outcome.problems for outcome in outcomes] == [[] for _ in cases]
    assert {outcome.code for outcome in outcomes} == {75}


@pytest.mark.timeout(900)
def test_stops_after_single_updates(tiny_bert, reviews, tmp_path):
    """Inside of an epoch and between checkpoints; float32 is resumed in tests/test_train.py."""
    outcomes = resume_points.stop_everywhere(tiny_bert, reviews, tmp_path, "bfloat16", (30,))
    assert outcomes == {30: []}


@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore:invalid value encountered in multiply:RuntimeWarning")
def test_poisoned_updates():
    points = (1, 30, 60)
    outcomes = resume_points.poison_everywhere(points)
    assert len(outcomes) == len(points) * len(resume_points.KINDS)
    assert not any(outcomes.values())


def _broken_from(first: int, monkeypatch) -> None:
    from flaxbert.data import batches

    real = batches.train_batch

    def broken(*args, step, **kwargs):
        batch = real(*args, step=step, **kwargs)
        if step + 1 >= first:
            batch["weights"][batch["weights"] > 0] = np.nan
        return batch

    monkeypatch.setattr(batches, "train_batch", broken)


@pytest.mark.timeout(900)
def test_the_count_in_a_row_outlives_a_restart(tiny_bert, reviews, tmp_path, monkeypatch):
    """Stopped in the middle of bad updates, and started again, it gives up at the same one."""
    _broken_from(5, monkeypatch)
    workdir = tmp_path / "work"
    flags = train_flags(tiny_bert, reviews["train"], workdir, train__steps=12)
    assert resume_points.run(flags, 6)
    assert json.loads((workdir / "checkpoints/6/run.json").read_text())["nonfinite_in_a_row"] == 2
    for _ in range(2):  # a restart loop that does not look at the code comes no further
        with pytest.raises(NonFiniteError, match=r"3 updates in a row \(from update 5 on"):
            resume_points.run(flags)
        assert [path.name for path in (workdir / "checkpoints").iterdir()] == ["6"]
    assert all(np.isfinite(array).all() for array in final_state(workdir).values())


@pytest.mark.timeout(900)
def test_parameters_that_overflow_are_never_saved(tiny_bert, reviews, tmp_path, monkeypatch):
    """A row of the embeddings that no text uses: loss and gradients stay finite."""
    import jax
    import jax.numpy as jnp

    from flaxbert.run import training

    def beyond(path, leaf):
        words = "word" in jax.tree_util.keystr(path)
        return leaf.at[29999].set(jnp.inf) if words and leaf.ndim == 2 else leaf

    compile_update = training.compile_update

    def compiled(*arguments):
        update = compile_update(*arguments)

        def overflowing(state, batch):
            state, sums = update(state, batch)
            if int(state["step"]) == 5:
                params = jax.tree_util.tree_map_with_path(beyond, state["params"])
                assert not all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(params))
                state = {**state, "params": params}
            return state, sums

        overflowing.run = update.run
        return overflowing

    monkeypatch.setattr(training, "compile_update", compiled)
    workdir = tmp_path / "work"
    flags = train_flags(tiny_bert, reviews["train"], workdir, train__steps=12, checkpoint__every=4)
    with pytest.raises(NonFiniteError, match="no longer finite after update 8"):
        resume_points.run(flags)
    assert [path.name for path in (workdir / "checkpoints").iterdir()] == ["4"]


@pytest.mark.timeout(900)
def test_a_save_that_fails_at_a_stop_is_no_interruption(tiny_bert, reviews, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device", "manifest.json")

    flags = train_flags(tiny_bert, reviews["train"], tmp_path / "work", checkpoint__every=100)
    with monkeypatch.context() as patch:
        patch.setattr("flaxbert.storage.checkpoint.write_manifest", full)
        with pytest.raises(OSError, match="No space left"):
            resume_points.run(flags, 3)
    assert not resume_points.run(flags)  # nothing was saved, nothing is in the way


@pytest.mark.timeout(900)
def test_another_model_data_set_or_batch_is_refused_by_name(tiny_bert, reviews, tmp_path):
    files = {name: tmp_path / f"{name}.csv" for name in ("train", "dev")}
    for name, path in files.items():
        shutil.copy(reviews[name], path)
    workdir = tmp_path / "work"
    fields = {"data__validation": files["dev"], "train__steps": 20}
    flags = train_flags(tiny_bert, files["train"], workdir, **fields)
    assert resume_points.run(flags, 3)
    before = _contents(workdir)

    for field, words in (
        ("model.path=elsewhere", "config.model.path: .* -> 'elsewhere'"),
        ("model.dtype=bfloat16", "config.model.dtype"),
        ("data.task=sst2", "config.data.task: 'text' -> 'sst2'"),
        (f"data.train={reviews['test']}", "the training data differ"),
        ("data.max_length=32", "config.data.max_length: 128 -> 32"),
        ("train.batch_size=8", "config.train.batch_size: 16 -> 8"),
        ("seed=1", "config.seed: 0 -> 1"),
    ):
        with pytest.raises((ConfigError, DataError), match=words):
            resume_points.run([*flags, f"--config.{field}"])
        assert _contents(workdir) == before

    def changed(path: Path, old: str, new: str, error: type[Exception], words: str) -> None:
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new, 1), encoding="utf-8")
        changed_contents = _contents(workdir)
        with pytest.raises(error, match=words):
            resume_points.run(flags)
        assert _contents(workdir) == changed_contents
        path.write_text(text, encoding="utf-8")

    changed(files["train"], "the", "teh", DataError, "training data differ")
    changed(files["dev"], "the", "teh", DataError, "validation data differ")
    source = workdir / "source"
    changed(source / "vocab.txt", "\nthe\n", "\nteh\n", ModelFileError, "source: vocab.txt")
    changed(source / "tokenizer.json", '"the"', '"teh"', ModelFileError, "source: tokenizer.json")
    changed(source / "config.json", '"0": "negative"', '"0": "bad"', ModelFileError, "config.json")
    assert not resume_points.run(flags)  # with everything put back it goes on


def _contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }
