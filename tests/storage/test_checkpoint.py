"""Checkpoints with the real Orbax: the same bits back, and never a damaged or a silent restart."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxbert.errors import ModelFileError
from flaxbert.storage import checkpoint as module
from flaxbert.storage import valid_checkpoints
from flaxbert.storage.checkpoint import Checkpoints
from flaxbert.storage.local import LocalDisk
from flaxbert.storage.manifest import verify_manifest, write_manifest


def _state(seed=0, layers=12, width=3):
    """Like a training state: string layer numbers past "10", odd float bits, counters."""
    random = np.random.default_rng(seed)
    odd = np.array([0x80000000, 1, 0x7FC00123, 0x7F7FFFFF], np.uint32).view(np.float32)
    return {
        "params": {
            "layer": {
                str(i): {"kernel": jnp.asarray(random.normal(size=(width, 4)), jnp.float32)}
                for i in range(layers)
            },
            "odd": jnp.asarray(odd),
        },
        "count": jnp.int32(seed + 7),
        "half": jnp.asarray(random.normal(size=5), jnp.bfloat16),
    }


def _abstract(state):
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), state
    )


def _assert_same_bits(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert ours.dtype == theirs.dtype
        assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()


@pytest.fixture
def checkpoints(tmp_path):
    made = Checkpoints(tmp_path / "checkpoints", keep=2)
    (tmp_path / "checkpoints").mkdir()
    yield made
    made.close()


def _save(checkpoints, *steps):
    for step in steps:
        checkpoints.save(step, _state(step, layers=2), {"step": step})
    checkpoints.wait()


def _damage(directory):
    """Changes one bit of the largest file below a checkpoint."""
    path = max(directory.rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else -1)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _names(directory):
    return sorted(os.listdir(directory))


def test_the_state_comes_back_bit_for_bit(checkpoints):
    state = _state()
    checkpoints.save(5, state, {"best": {"metric": 0.25, "step": 3}, "loss": float("nan")})
    checkpoints.wait()
    assert checkpoints.newest_valid() == 5
    _assert_same_bits(checkpoints.restore(5, _abstract(state)), state)
    assert checkpoints.read_run(5) == {"best": {"metric": 0.25, "step": 3}, "loss": None}


def test_another_process_may_restore_it(checkpoints, tmp_path):
    state = _state()
    checkpoints.save(5, state, {})
    checkpoints.wait()
    again = Checkpoints(tmp_path / "checkpoints", keep=2)
    _assert_same_bits(again.restore(again.newest_valid(), _abstract(state)), state)
    again.close()


def test_layers_are_not_permuted(checkpoints):
    state = {"layer": {str(i): jnp.full((2,), i, jnp.float32) for i in range(13)}}
    checkpoints.save(1, state, {})
    checkpoints.wait()
    restored = checkpoints.restore(1, _abstract(state))["layer"]
    for name in ("2", "10", "11", "1"):
        np.testing.assert_array_equal(restored[name], int(name))


def test_the_state_is_laid_out_as_asked(checkpoints):
    state = {"kernel": jnp.arange(16.0).reshape(8, 2)}
    checkpoints.save(1, state, {})
    checkpoints.wait()
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    asked = {"kernel": jax.ShapeDtypeStruct((8, 2), jnp.float32, sharding=sharding)}
    restored = checkpoints.restore(1, asked)
    assert restored["kernel"].sharding == sharding
    _assert_same_bits(restored, state)


def test_a_state_that_is_donated_after_the_save_is_saved_as_it_was(checkpoints):
    state = {"x": jnp.arange(100_000.0)}
    expected = np.asarray(state["x"]).copy()
    step = jax.jit(lambda s: {"x": s["x"] * 0 - 1}, donate_argnums=0)
    checkpoints.save(1, state, {})
    for _ in range(3):
        state = step(state)
    checkpoints.wait()
    np.testing.assert_array_equal(checkpoints.restore(1, _abstract(state))["x"], expected)


def test_a_new_run_has_no_checkpoint(tmp_path):
    checkpoints = Checkpoints(tmp_path / "new", keep=2)
    assert checkpoints.newest_valid() is None
    checkpoints.close()


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_are_kept(tmp_path, keep):
    checkpoints = Checkpoints(tmp_path, keep=keep)
    _save(checkpoints, 2, 9, 10, 11)
    checkpoints.close()
    assert _names(tmp_path) == sorted(["2", "9", "10", "11"][-keep:])
    for name in _names(tmp_path):
        verify_manifest(tmp_path / name)


def test_the_old_one_goes_after_the_new_one_stands(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, keep=1)
    _save(checkpoints, 1)
    removed = []
    rmtree = shutil.rmtree

    def watched(path, *args, **options):
        if str(path).endswith("/1.tmp"):
            verify_manifest(tmp_path / "2")
            removed.append(path)
        rmtree(path, *args, **options)

    monkeypatch.setattr(shutil, "rmtree", watched)
    _save(checkpoints, 2)
    checkpoints.close()
    assert len(removed) == 1
    assert _names(tmp_path) == ["2"]


def test_a_step_that_is_saved_already_stays(checkpoints, tmp_path):
    _save(checkpoints, 4)
    before = (tmp_path / "checkpoints" / "4" / "manifest.json").read_bytes()
    checkpoints.save(4, _state(99, layers=2), {"step": 99})
    checkpoints.wait()
    assert (tmp_path / "checkpoints" / "4" / "manifest.json").read_bytes() == before


def test_litter_is_removed(checkpoints, tmp_path):
    directory = tmp_path / "checkpoints"
    _save(checkpoints, 1)
    (directory / "2.tmp" / "state").mkdir(parents=True)
    (directory / "2.tmp" / "state" / "half").touch()
    (directory / "file.tmp").touch()
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").touch()
    (directory / "link.tmp").symlink_to(outside)
    assert checkpoints.newest_valid() == 1
    assert _names(directory) == ["1"]
    assert (outside / "precious").exists()


def test_only_litter_is_no_checkpoint(checkpoints, tmp_path):
    (tmp_path / "checkpoints" / "2.tmp").mkdir()
    assert checkpoints.newest_valid() is None


@pytest.mark.parametrize(
    "damage",
    [
        _damage,
        lambda path: (path / "manifest.json").unlink(),
        lambda path: (path / "run.json").unlink(),
        lambda path: shutil.rmtree(path / "state"),
        lambda path: (shutil.rmtree(path), path.mkdir()),
        lambda path: (shutil.rmtree(path), path.touch()),
    ],
    ids=["flipped bit", "no manifest", "no run.json", "no state", "empty", "a file"],
)
def test_a_damaged_newest_one_is_set_aside_and_the_older_one_wins(
    checkpoints, tmp_path, capsys, damage
):
    directory = tmp_path / "checkpoints"
    _save(checkpoints, 3, 6)
    damage(directory / "6")
    assert checkpoints.newest_valid() == 3
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "WARNING" in lines[0] and "checkpoint 6" in lines[0]
    assert str(directory / "damaged-6") in lines[0]
    assert _names(directory) == ["3", "damaged-6"]
    assert checkpoints.newest_valid() == 3  # and is quiet about it from now on
    assert not capsys.readouterr().err
    state = _state(3, layers=2)
    _assert_same_bits(checkpoints.restore(3, _abstract(state)), state)


def test_the_step_can_be_saved_again_and_damaged_again(checkpoints, tmp_path, capsys):
    directory = tmp_path / "checkpoints"
    for _ in range(2):
        _save(checkpoints, 3, 6)
        _damage(directory / "6")
        assert checkpoints.newest_valid() == 3
    assert _names(directory) == ["3", "damaged-6"]
    assert capsys.readouterr().err.count("WARNING") == 2


def test_damaged_ones_do_not_count_as_kept(checkpoints, tmp_path, capsys):
    directory = tmp_path / "checkpoints"
    _save(checkpoints, 3, 6)
    _damage(directory / "6")
    checkpoints.newest_valid()
    _save(checkpoints, 6, 9)
    assert _names(directory) == ["6", "9", "damaged-6"]


def test_a_checkpoint_under_another_number_is_set_aside(checkpoints, tmp_path, capsys):
    directory = tmp_path / "checkpoints"
    _save(checkpoints, 3, 6)
    shutil.copytree(directory / "3", directory / "9")
    assert checkpoints.newest_valid() == 6
    assert _names(directory) == ["3", "6", "damaged-9"]
    assert "checkpoint 9 is damaged (it holds the state after update 3)" in capsys.readouterr().err


def test_all_damaged_is_an_error_and_stays_one(checkpoints, tmp_path, capsys):
    directory = tmp_path / "checkpoints"
    _save(checkpoints, 3, 6)
    _damage(directory / "3")
    _damage(directory / "6")
    for _ in range(2):  # never a silent restart, at the second attempt neither
        with pytest.raises(ModelFileError) as caught:
            checkpoints.newest_valid()
        assert caught.value.exit_code == 4
        assert "damaged-3, damaged-6" in str(caught.value)
    assert _names(directory) == ["damaged-3", "damaged-6"]


def test_names_that_are_no_steps_are_left_alone(checkpoints, tmp_path):
    directory = tmp_path / "checkpoints"
    _save(checkpoints, 1)
    for name in ("notes", "007", "-3", "1e3", "³"):
        (directory / name).mkdir()
    assert checkpoints.newest_valid() == 1
    assert len(_names(directory)) == 6


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES, errno.ESTALE, errno.ETIMEDOUT])
@pytest.mark.parametrize("reading", ["manifest", "run.json"])
def test_what_cannot_be_read_for_now_is_not_taken_for_damaged(
    checkpoints, tmp_path, monkeypatch, number, reading
):
    _save(checkpoints, 3, 6)

    def refused(*_):
        raise OSError(number, os.strerror(number), "some file")

    with monkeypatch.context() as patched:
        if reading == "manifest":
            patched.setattr(LocalDisk, "sha256", refused)
        else:
            patched.setattr(valid_checkpoints, "verify_manifest", lambda _: None)
            patched.setattr(LocalDisk, "read", refused)
        with pytest.raises(ModelFileError, match="some file: cannot be read: ") as caught:
            checkpoints.newest_valid()
    assert os.strerror(number) in str(caught.value)
    assert _names(tmp_path / "checkpoints") == ["3", "6"]
    assert checkpoints.newest_valid() == 6


def test_run_facts_that_are_no_object_are_damage(checkpoints, tmp_path):
    _save(checkpoints, 3, 6)
    (tmp_path / "checkpoints" / "6" / "run.json").write_text("[]")
    write_manifest(tmp_path / "checkpoints" / "6")
    assert checkpoints.newest_valid() == 3


def test_a_deletion_that_was_cut_off_leaves_litter_not_half_a_checkpoint(
    checkpoints, tmp_path, monkeypatch
):
    _save(checkpoints, 1, 2)

    def killed(path, **_):
        if not Path(path).exists():
            return
        (Path(path) / "manifest.json").unlink()
        raise OSError(errno.EIO, "cut off")

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", killed)
        _save(checkpoints, 3)
    assert _names(tmp_path / "checkpoints") == ["1.tmp", "2", "3"]
    assert [found.damage for found in valid_checkpoints.examine(tmp_path / "checkpoints")] == [
        "",
        "",
    ]
    assert checkpoints.newest_valid() == 3
    assert _names(tmp_path / "checkpoints") == ["2", "3"]


@pytest.mark.parametrize("finish", ["wait", "close", "save"])
def test_a_failed_save_surfaces(tmp_path, monkeypatch, finish):
    checkpoints = Checkpoints(tmp_path, keep=2)
    _save(checkpoints, 1)

    def fail(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(module, "write_manifest", fail)
        checkpoints.save(2, _state(2, layers=2), {})
        with pytest.raises(OSError, match="No space left"):
            if finish == "save":
                checkpoints.save(3, _state(3, layers=2), {})
            else:
                getattr(checkpoints, finish)()
    # Nothing was committed, nothing older deleted.
    assert [name for name in _names(tmp_path) if name != "2.tmp"] == ["1"]
    if finish == "close":
        checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.wait()  # told once
    assert checkpoints.newest_valid() == 1
    _save(checkpoints, 2)
    assert checkpoints.newest_valid() == 2
    checkpoints.close()


def test_an_error_of_orbax_itself_surfaces(checkpoints, tmp_path, monkeypatch):
    wait = checkpoints._orbax.wait_until_finished

    def fail():
        wait()
        if threading.current_thread().name == "checkpoint-commit":
            raise RuntimeError("orbax failed")

    monkeypatch.setattr(checkpoints._orbax, "wait_until_finished", fail)
    checkpoints.save(1, _state(layers=2), {})
    with pytest.raises(RuntimeError, match="orbax failed"):
        checkpoints.wait()
    monkeypatch.undo()
    assert _names(tmp_path / "checkpoints") == ["1.tmp"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_disk_s_error_inside_orbax_is_told_in_words(checkpoints, tmp_path, monkeypatch, number):
    text = f"RESOURCE_EXHAUSTED: a page of it [os_error_code='{number}'] and more"

    def fail():
        raise ValueError(text)

    monkeypatch.setattr(checkpoints._orbax, "wait_until_finished", fail)
    assert checkpoints.save(7, _state(layers=2), {})
    with pytest.raises(ModelFileError) as raised:
        checkpoints.check()
    monkeypatch.undo()
    said = f"saving {tmp_path / 'checkpoints' / '7'}: "
    assert str(raised.value).startswith(f"{said}{os.strerror(number)}. ")
    assert raised.value.exit_code == 4


def test_the_commit_waits_for_nobody_but_wait_does(checkpoints, tmp_path, monkeypatch):
    gate = threading.Event()
    write = module.write_manifest
    monkeypatch.setattr(module, "write_manifest", lambda path: (gate.wait(60), write(path)))
    checkpoints.save(1, _state(layers=2), {})
    assert _names(tmp_path / "checkpoints") == ["1.tmp"]  # returned before the commit
    gate.set()
    checkpoints.wait()
    assert _names(tmp_path / "checkpoints") == ["1"]


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s["params"].pop("odd"),
        lambda s: s["params"].update(more=jnp.zeros(2)),
        lambda s: s["params"].update(odd=jnp.zeros(3)),
        lambda s: s["params"].update(odd=jnp.zeros(5)),
        lambda s: s["params"]["layer"].update({"2": {"kernel": jnp.zeros((3, 4))}}),
        lambda s: s["params"].update(odd=s["params"]["odd"].astype(jnp.bfloat16)),
        lambda s: s.update(params=jnp.zeros(2)),
    ],
    ids=["one less", "one more", "shorter", "longer", "another layer", "another type", "no tree"],
)
def test_another_model_s_checkpoint_is_refused(checkpoints, tmp_path, change):
    state = _state(layers=2)
    checkpoints.save(1, state, {})
    checkpoints.wait()
    other = _state(layers=2)
    change(other)
    with pytest.raises(ModelFileError, match="holds another model") as caught:
        checkpoints.restore(1, _abstract(other))
    assert caught.value.exit_code == 4
    assert str(tmp_path / "checkpoints" / "1") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_refusal_names_the_array_and_both_shapes(checkpoints):
    checkpoints.save(1, {"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(3)}, {})
    checkpoints.wait()
    other = {"kernel": jnp.zeros((4, 3)), "bias": jnp.zeros(3)}
    with pytest.raises(ModelFileError) as caught:
        checkpoints.restore(1, _abstract(other))
    said = "(1 arrays differ; kernel: expected float32[4, 3], found float32[2, 3])"
    assert said in str(caught.value)


def test_what_the_devices_say_is_not_put_down_to_the_file(checkpoints, monkeypatch):
    """Another process that has gone, for one: not 4."""
    state = _state(layers=2)
    checkpoints.save(1, state, {})
    checkpoints.wait()

    def gone(*arguments, **named):
        raise jax.errors.JaxRuntimeError("UNKNOWN: Gloo failed: Connection closed by peer")

    monkeypatch.setattr(checkpoints._orbax, "restore", gone)
    with pytest.raises(jax.errors.JaxRuntimeError, match="closed by peer"):
        checkpoints.restore(1, _abstract(state))


def test_memory_of_a_save_is_given_back(checkpoints, monkeypatch):
    saved = []
    call = lambda: saved.append(checkpoints.last_commit.step)  # noqa: E731
    monkeypatch.setattr(module, "give_back_memory", call)
    checkpoints.save(1, _state(layers=1), {})
    checkpoints.wait()  # raises what went wrong
    assert saved == [1]


def test_a_directory_that_cannot_be_made_leaves_no_thread_behind(checkpoints, tmp_path):
    """One that waits for it keeps the process from ending, for twenty minutes."""
    running = {thread.name for thread in threading.enumerate()}
    begin = LocalDisk.begin

    def begin_in_a_file(self, path):
        begun = begin(self, path)
        begun.rmdir()
        begun.touch()
        return begun

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(LocalDisk, "begin", begin_in_a_file)
        checkpoints.save(1, _state(layers=2), {"step": 1})
        with pytest.raises(ModelFileError, match=os.strerror(errno.ENOTDIR)):
            checkpoints.wait()
    left = {t.name for t in threading.enumerate() if not t.daemon} - running
    # Those of asyncio's pool are idle, and end with the process; how many it has is its affair.
    assert [name for name in left if not name.startswith("asyncio_")] == []
    _save(checkpoints, 2)
    assert _names(tmp_path / "checkpoints") == ["2"]


def test_what_a_failed_save_writes_late_is_removed_at_the_end(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, keep=2)
    monkeypatch.setattr(LocalDisk, "commit", _refuse)
    checkpoints.save(1, _state(layers=2), {"step": 1})
    with pytest.raises(ModelFileError):
        checkpoints.wait()
    monkeypatch.undo()
    _save(checkpoints, 2)
    (tmp_path / "1.tmp" / "state").mkdir(parents=True)
    checkpoints.close()
    assert _names(tmp_path) == ["2"]


def _refuse(*_):
    raise OSError(errno.EIO, os.strerror(errno.EIO))
