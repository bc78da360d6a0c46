"""What a method leaves as it is: saved once for all checkpoints, and never taken for another."""

from __future__ import annotations

import errno

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxbert.errors import ModelFileError
from flaxbert.storage.checkpoint import Checkpoints
from flaxbert.storage.local import LocalDisk


def _state(seed=0):
    random = np.random.default_rng(seed)
    kernel = jnp.asarray(random.normal(size=(300, 40)), jnp.float32)
    return {
        "params": {"layer": {"bias": jnp.full(3, seed, jnp.float32)}},
        "frozen": {"layer": {"kernel": kernel}},
        "step": jnp.int32(seed),
    }


def _same_bits(ours, theirs):
    leaves = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in leaves)


def _save(directory, state, *steps):
    """As one start of a run does; `state` stays, so that only the step's number changes."""
    checkpoints = Checkpoints(directory, keep=2)
    checkpoints.newest_valid()
    for step in steps:
        checkpoints.save(step, state | {"step": jnp.int32(step)}, {"step": step})
    checkpoints.close()


def _restore(directory, state, step):
    checkpoints = Checkpoints(directory, keep=2)
    try:
        return checkpoints.restore(step, state)
    finally:
        checkpoints.close()


def _bytes(directory):
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def test_it_is_saved_once_and_comes_back(tmp_path):
    state = _state()
    _save(tmp_path, state, 1, 2, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3", "frozen"]
    kernel = 300 * 40 * 4
    assert _bytes(tmp_path / "frozen") > kernel > _bytes(tmp_path / "3")
    assert _same_bits(_restore(tmp_path, state, 3), state | {"step": jnp.int32(3)})
    assert _restore(tmp_path, state, 3).keys() == state.keys()


def test_a_resumed_run_saves_it_no_more(tmp_path):
    state = _state()
    _save(tmp_path, state, 1)
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "frozen").rglob("*")}
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(2, checkpoints.restore(1, state), {"step": 2})
    checkpoints.close()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "frozen").rglob("*")} == written
    assert _same_bits(_restore(tmp_path, state, 2), state | {"step": jnp.int32(1)})


def test_what_a_killed_start_has_left_is_not_taken(tmp_path, monkeypatch):
    """It died after the frozen part, before its first checkpoint; weights may be others now."""
    commit = LocalDisk.commit

    def dies(self, begun, path):
        if path.name == "1":
            raise OSError(errno.EIO, "gone")
        commit(self, begun, path)

    monkeypatch.setattr(LocalDisk, "commit", dies)
    with pytest.raises(ModelFileError):
        _save(tmp_path, _state(5), 1)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["frozen"]
    _save(tmp_path, _state(6), 1)
    assert _same_bits(_restore(tmp_path, _state(6), 1)["frozen"], _state(6)["frozen"])


def test_a_save_that_failed_is_tried_again_without_it(tmp_path, monkeypatch):
    commit, state = LocalDisk.commit, _state()
    monkeypatch.setattr(LocalDisk, "commit", _failing_once(commit, "1"))
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.newest_valid()
    checkpoints.save(1, state, {"step": 1})
    with pytest.raises(ModelFileError):
        checkpoints.wait()
    checkpoints.save(1, state, {"step": 1})
    checkpoints.close()
    assert _same_bits(_restore(tmp_path, state, 1), state)


def _failing_once(commit, name):
    failed = []

    def fails(self, begun, path):
        if path.name == name and not failed:
            failed.append(path)
            raise OSError(errno.ENOSPC, "full")
        commit(self, begun, path)

    return fails


@pytest.mark.parametrize("how", ["damaged", "missing", "another run's"])
def test_one_that_is_not_right_is_refused(how, tmp_path):
    state, frozen = _state(), tmp_path / "a" / "frozen"
    _save(tmp_path / "a", state, 1)
    if how == "damaged":
        path = max((p for p in frozen.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    else:
        frozen.rename(tmp_path / "away")
    if how == "another run's":
        _save(tmp_path / "b", _state(8), 1)
        (tmp_path / "b" / "frozen").rename(frozen)
    with pytest.raises(ModelFileError, match=r"a/frozen: the parameters .* another workdir"):
        _restore(tmp_path / "a", state, 1)
    assert (tmp_path / "a" / "1").is_dir()  # nothing is wrong with it


def test_a_state_without_a_frozen_part_has_no_folder(tmp_path):
    state = _state() | {"frozen": {}}
    _save(tmp_path, state, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
    assert _restore(tmp_path, state, 1)["frozen"] == {}
