"""What one process prepares and the others of its machine take over is the same to the last bit."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path

import numpy as np
import pytest

# Before there are threads: its lazy imports are not made for several.
from transformers import AutoTokenizer, BertTokenizer  # noqa: F401

from flaxbert.config import make_config
from flaxbert.data.batches import Examples
from flaxbert.errors import DataError
from flaxbert.hosts.group import SingleProcess
from flaxbert.run import shared_data
from flaxbert.run.inputs import read_inputs_together


class Together(SingleProcess):
    """Threads that play the processes of one machine, or of two."""

    def __init__(self, index: int, shared: Shared, here: int) -> None:
        self.index, self.count, self.local_count = index, shared.count, here
        self.is_first, self.is_leader = index == 0, index % here == 0
        self._leader, self._shared, self._calls = index - index % here, shared, 0

    def _say(self, value):
        self._calls += 1
        return self._shared.say(self._calls, self.index, value)

    def all_gather(self, value):
        return self._say(value)

    def on_first(self, function):
        return self._say(function() if self.is_first else None)[0]

    def on_leader(self, function):
        return self._say(function() if self.is_leader else None)[self._leader]


class Shared:
    def __init__(self, count: int) -> None:
        self.count, self.failed = count, False
        self._said, self._news = {}, threading.Condition()

    def say(self, call, index, value):
        wanted = {(call, other) for other in range(self.count)}
        with self._news:
            self._said[call, index] = value
            self._news.notify_all()
            self._news.wait_for(lambda: wanted <= self._said.keys() or self.failed)
            if not wanted <= self._said.keys():
                raise RuntimeError("another one has failed")
            return [self._said[call, other] for other in range(self.count)]

    def fail(self):
        with self._news:
            self.failed = True
            self._news.notify_all()


def together(count, here, function):
    """Returns what function(group) gave in each thread; an error instead of a result."""
    shared, results = Shared(count), [None] * count

    def run(index):
        try:
            results[index] = function(Together(index, shared, here))
        except Exception as error:
            results[index] = error
            shared.fail()

    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def same(ours: Examples, theirs: Examples) -> bool:
    pairs = [(ours.labels, theirs.labels)]
    for field in dataclasses.fields(ours.tokens):
        pairs.append((getattr(ours.tokens, field.name), getattr(theirs.tokens, field.name)))
    return all(
        np.array_equal(a, b) and (not isinstance(a, np.ndarray) or a.dtype == b.dtype)
        for a, b in pairs
    )


def config_for(model: Path, files: dict[str, Path], **data: object):
    return make_config(
        {
            "model": {"path": str(model)},
            "data": {"train": str(files["train"]), "validation": str(files["dev"]), **data},
            "loss": {"class_weights": ["balanced"]},
        }
    )


@pytest.mark.parametrize("max_length", [128, 20])  # 20 cuts: other fields are set
def test_all_have_what_the_leader_prepared(max_length, tiny_bert, reviews, monkeypatch):
    from flaxbert.run import inputs as module

    config = config_for(tiny_bert, reviews, max_length=max_length)
    real, calls = module.read_inputs, []
    monkeypatch.setattr(module, "read_inputs", lambda *a, **k: calls.append(1) or real(*a, **k))
    results = together(4, 2, lambda group: read_inputs_together(config, None, group, {}))
    assert len(calls) == 2  # once on each machine
    first = results[0]
    for other in results[1:]:
        assert other.sets.keys() == first.sets.keys() and len(first.sets) == 2
        for name in first.sets:
            assert same(other.sets[name], first.sets[name])
        for field in dataclasses.fields(first):
            if field.name not in ("train", "validation", "lines", "report", "tokenizer_files"):
                assert getattr(other, field.name) == getattr(first, field.name), field.name
    counts = first.report["training"]["labels"].values()
    assert first.class_weights == pytest.approx([sum(counts) / (2 * n) for n in counts])


def test_files_are_gone_once_all_have_them(tiny_bert, reviews, tmp_path, monkeypatch):
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    config = config_for(tiny_bert, reviews)
    results = together(2, 2, lambda group: read_inputs_together(config, None, group, {}))
    assert list(tmp_path.iterdir()) == []
    assert results[1].train.tokens.input_ids.sum() > 0  # still there


def test_machines_with_other_data_are_refused(tiny_bert, reviews):
    def run(group):
        files = dict(reviews)
        if group.index == 1:
            files["train"] = reviews["test"]
        return read_inputs_together(config_for(tiny_bert, files), None, group, {})

    results = together(2, 1, run)
    assert all(isinstance(result, DataError) for result in results)
    assert "process 1 has read other data" in str(results[0])


def test_one_process_hands_nothing_over(monkeypatch):
    monkeypatch.setattr(shared_data, "_write", None)
    assert shared_data.hand_over(SingleProcess(), {}, 1) == ({}, 1)
