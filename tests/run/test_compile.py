"""An update that does not fit the device is computed in parts, and stays the same update."""

from __future__ import annotations

import re
import threading

import pytest

from flaxbert import train
from flaxbert.errors import InterruptedRun
from flaxbert.hosts.group import SingleProcess
from flaxbert.loop import memory
from flaxbert.run import compile
from tests.commands import call, final_state, metrics_without_times, train_flags

# Each test trains several times, in shapes of its own.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def limited(monkeypatch):
    """limited(MiB): what every device of the test has from now on."""

    def limit(mib: float) -> None:
        monkeypatch.setattr(memory, "limit_of", lambda device: int(mib * memory.MIB))

    return limit


@pytest.fixture
def trained(tiny_bert, reviews, tmp_path, capsys):
    """trained(name, fields): a run of three updates of 32 sequences."""

    def run(name: str, **fields: object):
        flags = train_flags(
            tiny_bert,
            reviews["train"],
            tmp_path / name,
            **{"train__batch_size": 32, "train__steps": 3, "data__row_length": 0, **fields},
        )
        return call("train", *flags, capsys=capsys), tmp_path / name

    return run


def needed(err: str) -> float:
    """The MiB that the compiler counted."""
    found = re.search(r"memory of an update: ([0-9.]+)", err)
    assert found, err
    return float(found[1])


def test_the_process_that_needs_the_most_counts_for_all(monkeypatch):
    class Two(SingleProcess):
        def all_gather(self, value):
            return [value, [900, 30]]

    monkeypatch.setattr(memory, "fit", lambda program, limit: memory.Fit(800, limit, 40))
    assert compile.fit_of_all(Two(), 850, None) == memory.Fit(900, 850, 40)
    assert compile.fit_of_all(SingleProcess(), 850, None).fits


def test_as_few_micro_batches_as_fit(trained, limited):
    whole, _ = trained("whole")
    assert whole.code == 0 and "micro-batches" not in whole.err
    two, halves = trained("two", train__accumulate=2)
    assert two.code == 0
    assert needed(two.err) < needed(whole.err)
    limited((needed(two.err) + needed(whole.err)) / 2)
    parts, chosen = trained("parts")
    assert parts.code == 0, parts.err
    assert "of memory: it is computed in 2 micro-batches" in parts.err
    ours, asked = final_state(chosen), final_state(halves)
    assert all((ours[name] == asked[name]).all() for name in asked)
    assert metrics_without_times(chosen) == metrics_without_times(halves)


def test_what_was_asked_for_is_done_and_warned_of(trained, limited):
    limited(1)
    done, _ = trained("asked", train__accumulate=1)
    assert done.code == 0, done.err
    assert re.search(r"WARNING: an update needs [0-9.]+ of 1.0 MiB of memory", done.err)


def test_nothing_fits(trained, limited):
    limited(1)
    done, workdir = trained("nothing")
    assert done.code == 2
    assert "smaller ones do not help" in done.err and "config.mesh.fsdp" in done.err
    assert "Traceback" not in done.err
    assert not (workdir / "model").exists()


def test_the_choice_is_no_part_of_the_config(trained, limited, monkeypatch):
    """A resume where there is more memory goes on whole."""
    whole, _ = trained("whole", checkpoint__every=1)
    limited(needed(whole.err) - 0.1)
    real = train._train_batch

    def interrupted(*arguments):
        if arguments[-1] == 1:
            raise InterruptedRun("enough")
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(train, "_train_batch", interrupted)
        parts, _ = trained("parts", checkpoint__every=1)
    assert parts.code == 75 and "micro-batches" in parts.err
    limited(100_000)
    again, _ = trained("parts", checkpoint__every=1)
    assert again.code == 0, again.err
    assert "after update 1 of 3" in again.err and "micro-batches" not in again.err


def test_a_compiler_that_refuses_is_answered_with_smaller_parts(trained, monkeypatch, limited):
    """TPUs tell while compiling that a program does not fit."""
    limited(100_000)
    real, tried = compile.compile_step, []

    def refusing(step, state, batch, seeds):
        tried.append(batch["input_ids"].shape[0])
        if tried[-1] < 3:
            raise RuntimeError("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm.")
        return real(step, state, batch, seeds)

    monkeypatch.setattr(compile, "compile_step", refusing)
    for mib in (100_000, 0):  # a device may say what it has, or not
        limited(mib)
        tried.clear()
        done, _ = trained(f"refused-{mib}")
        assert done.code == 0, done.err
        assert tried[:3] == [1, 2, 4] and set(tried[2:]) == {4}

    done, _ = trained("asked", train__accumulate=2)
    assert done.code == 2 and "config.train.accumulate=0" in done.err
    assert "Traceback" not in done.err

    def broken(*arguments):
        raise RuntimeError("INTERNAL: something else")

    monkeypatch.setattr(compile, "compile_step", broken)
    done, _ = trained("broken")
    assert done.code == 70 and "something else" in done.err


def test_several_shapes_are_compiled_at_once_where_that_pays():
    both = threading.Barrier(2, timeout=30)  # neither ends before the other has begun

    def compiled(rows):
        both.wait()
        return rows * 10

    assert compile._each(compiled, [3, 4], at_once=2) == [30, 40]
    assert compile._each(lambda rows: threading.current_thread(), [3], at_once=1) == [
        threading.main_thread()
    ]
    assert compile._each(compiled, [], at_once=0) == []
