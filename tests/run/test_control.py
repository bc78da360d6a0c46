"""Run control with real checkpoints and a model of one number: which save follows which failure."""

from __future__ import annotations

import errno
import os
import types

import jax.numpy as jnp
import pytest

from flaxbert.config import Config
from flaxbert.errors import InterruptedRun, ModelFileError
from flaxbert.loop.cadence import Cadence
from flaxbert.loop.progress import Progress
from flaxbert.run import control
from flaxbert.storage import checkpoint
from flaxbert.storage.checkpoint import Checkpoints
from flaxbert.storage.workdir import Workdir
from flaxbert.track import open_trackers

_COUNTS = {"examples": 1, "real_tokens": 1, "computed_tokens": 1, "attended_keys": 1}


class _Started:
    """A training that is asked to stop when `asked` says so."""

    def __init__(self, training, asked):
        self._training, self._asked = training, asked

    def __getattr__(self, name):
        return getattr(self._training, name)

    @property
    def interrupted(self):
        return self._asked()


class _Runs:
    """Starts runs of six updates in one folder; the tests say what befalls them."""

    def __init__(self, folder):
        self.folder = folder
        self.exports = []  # (step, whether the present model/ is a committed checkpoint's)
        self.stop_at = None  # a stop is asked for once that many updates were sent

    def start(self, *, eval_every=100, save_every=2):
        checkpoints = Checkpoints(self.folder / "checkpoints", keep=10)
        newest = checkpoints.newest_valid()
        state, progress = {"params": jnp.float32(0)}, Progress()
        if newest:
            progress = Progress.from_dict(checkpoints.read_run(newest))
            state = {"params": jnp.float32(newest)}
        training = types.SimpleNamespace(
            batch=lambda step: ({}, _COUNTS),
            update=self._update,
            learning_rate=lambda step: 0.0,
            utilisation=lambda tokens, attended, seconds: {"model_flops_per_second": 1.0},
            evaluate=self._evaluate,
            export=self._export,
            started=0.0,
            facts={},
            several=False,
            beat=lambda: None,
            cadence=Cadence(6, 6, 100, eval_every, save_every, 0, 3, "loss"),
        )
        started = _Started(training, lambda: progress.step == self.stop_at)
        trackers = open_trackers(Config(), Workdir(self.folder), total=6, step=progress.step)
        try:
            control.train(started, state, progress, checkpoints, trackers)
        finally:
            trackers.close()
            checkpoints.close()
        return progress

    @property
    def saved(self):
        return checkpoint.steps_in(self.folder / "checkpoints")

    def _update(self, state, batch):
        sums = {"loss": 1.0, "normalizer": 1.0, "gradient_norm": 1.0, "finite": True}
        return {"params": state["params"] + 1}, sums

    def _evaluate(self, params):
        loss = 1 / float(params)
        return {"loss": loss, "samples": 1, "samples_per_second": 1.0, "runtime": 1.0}

    def _export(self, params, step, metrics, committed):
        self.exports.append((step, committed))
        return "digest"


@pytest.fixture
def runs(tmp_path):
    return _Runs(tmp_path)


@pytest.fixture
def fail(monkeypatch):
    """fail(n, ...): the n-th commit of the test, counted from 1, meets a full disk."""
    real, seen = checkpoint.write_manifest, []

    def arrange(*which):
        def write(path):
            seen.append(path.name)
            if len(seen) in which:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            real(path)

        monkeypatch.setattr(checkpoint, "write_manifest", write)
        return seen

    return arrange


def test_a_save_that_fails_once_is_told_and_made_up_for(runs, fail, capsys):
    fail(1)
    runs.start()
    told = capsys.readouterr().err
    assert told.count("No space left on device") == told.count("Trying once more, now.") == 1
    # The second try is of the state of its own update, soon after that of the first.
    assert runs.saved[-2:] == [4, 6] and set(runs.saved) <= {2, 3, 4, 6} and 2 not in runs.saved


def test_a_second_failure_in_a_row_ends_the_run(runs, fail):
    fail(2, 3)
    with pytest.raises(ModelFileError, match="No space left on device"):
        runs.start()
    assert runs.saved == [2]


def test_failures_that_are_not_in_a_row_do_not_add_up(runs, fail, capsys):
    commits = fail(1, 3)
    assert runs.start(save_every=1).step == 6
    assert len(commits) >= 4 and runs.saved[-1] == 6
    assert capsys.readouterr().err.count("Trying once more") == 2


def test_the_last_save_has_a_second_try_too(runs, fail):
    fail(3)
    runs.start()
    assert runs.saved == [2, 4, 6]


def test_a_stop_after_a_failed_save_saves_its_own_state(runs, fail):
    fail(1)
    runs.stop_at = 3
    with pytest.raises(InterruptedRun, match="update 3 of 6 is saved"):
        runs.start()
    assert runs.saved == [3]


def test_a_stop_whose_save_fails_tries_once_more(runs, fail):
    commits = fail(2)
    runs.stop_at = 3
    with pytest.raises(InterruptedRun, match="update 3 of 6 is saved"):
        runs.start()
    assert commits == ["2.tmp", "3.tmp", "3.tmp"] and runs.saved == [2, 3]


def test_a_stop_that_cannot_save_is_no_interruption(runs, fail):
    fail(2, 3)
    runs.stop_at = 3
    with pytest.raises(ModelFileError, match="No space left on device"):
        runs.start()
    assert runs.saved == [2]


def test_a_failure_before_an_evaluation_is_made_up_for_before_model_is_switched(runs, fail):
    commits = fail(1)
    runs.start(eval_every=3, save_every=3)
    # The save at 3 failed; at the latest the evaluation at 6 finds it, before the next best.
    assert runs.exports == [(3, True), (6, True)]
    assert commits[0] == "3.tmp" and runs.saved[-1] == 6 and len(runs.saved) == len(commits) - 1


def test_a_best_model_that_no_checkpoint_knows_is_not_taken_for_a_checkpoint_s(runs):
    """The step is committed already, so the save after a repeated evaluation does nothing."""
    runs.stop_at = 3
    with pytest.raises(InterruptedRun):
        runs.start()
    runs.stop_at = None
    # Evaluated at 3 by the resume, whose checkpoint 3 stands and does not know it.
    runs.start(eval_every=3, save_every=3)
    assert runs.exports == [(3, True), (6, False)]
