"""A run's files in a bucket: whole or not there, whatever request fails, with the real clients."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import threading
import time
from pathlib import Path, PurePath

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxbert.errors import ConfigError, ModelFileError, StorageError
from flaxbert.storage import bucket as bucket_module
from flaxbert.storage.bucket import Bucket, split_url
from flaxbert.storage.checkpoint import Checkpoints
from flaxbert.storage.interface import DamagedError
from flaxbert.storage.manifest import verify_manifest
from flaxbert.storage.store import location, on_disk, store_for
from flaxbert.storage.workdir import (
    existing_workdir,
    open_workdir,
    read_json,
    write_json,
)
from tests.gcs_server import BUCKET, GcsServer, failure

pytestmark = pytest.mark.xdist_group("bucket")  # one server a process

ROOT = f"gs://{BUCKET}/runs/one"


def _below(server: GcsServer, prefix: str) -> dict[str, bytes]:
    start = f"runs/one/{prefix}/"
    return {n[len(start) :]: data for n, data in server.objects.items() if n.startswith(start)}


def _count(server: GcsServer, *kinds: str) -> int:
    return sum(request.kind in kinds for request in server.requests)


def _dead_from(server: GcsServer, number: int) -> None:
    """The process ends before its number-th change: nothing that it asks for is done any more."""
    left = iter(range(number))

    def fail(request):
        changes = request.kind in ("write", "delete", "copy")
        if (changes and next(left, None) is None) or server.dead:
            server.dead = True
            return failure(403, "died here")
        return None

    server.dead = False
    server.on_request = fail


# Names


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("gs://bucket/a/b", ("bucket", "a/b")),
        ("gs://bucket/a/", ("bucket", "a")),
        ("gs://my.bucket-1_x", ("my.bucket-1_x", "")),
        ("gs://bucket/ümlaut and space", ("bucket", "ümlaut and space")),
    ],
)
def test_urls(url, parts):
    assert split_url(url) == parts


@pytest.mark.parametrize(
    "url",
    ["gs://", "gs:/bucket/a", "gs://B/a", "gs://bucket//a", "gs://bucket/a/../b", "gs://bucket/a*",
     "gs://bucket/a?b", "gs://bucket/a#1", "gs://bucket/[a]", "gs://bucket/a\nb", "gs://-bucket/a",
     "gs:bucket", "gs://bucket/./a"],
)  # fmt: skip
def test_malformed_urls(url):
    with pytest.raises(ConfigError, match=r"expected gs://|must not have"):
        location(url)
    with pytest.raises(ConfigError):
        open_workdir(url)


def test_without_gcsfs_the_message_names_the_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'pip install "flaxbert\[gcs\]"'):
        Bucket(BUCKET)


# Files


def test_files(gcs, root):
    store = store_for(root)
    assert not store.is_file(root / "a.json")
    with pytest.raises(ModelFileError, match="No such file"):
        read_json(root / "a.json")
    for value in (1, 2):
        write_json(root / "a.json", {"x": value})
    assert read_json(root / "a.json") == {"x": 2}
    store.write(root / "sub" / "b", b"")
    assert store.is_file(root / "sub" / "b") and not store.is_file(root / "sub")
    assert store.is_directory(root / "sub") and not store.is_directory(root / "su")
    assert store.names(root) == ["a.json", "sub"]
    assert store.sizes(root / "sub") == {"b": 0}
    assert store.sha256(root / "a.json") == hashlib.sha256(store.read(root / "a.json")).hexdigest()
    store.remove(root / "sub")
    store.remove(root / "sub")  # of nothing is no error
    assert store.names(root) == ["a.json"]
    assert store.names(location(f"gs://{BUCKET}")) == ["runs"]


def test_a_neighbour_with_the_same_beginning_is_another_folder(gcs, root):
    store = store_for(root)
    store.write(location(ROOT + "-two") / "a", b"2")
    store.write(root / "a", b"1")
    assert store.names(root) == ["a"]
    store.remove(root)
    assert gcs.objects == {"runs/one-two/a": b"2"}


def test_a_large_file_goes_in_pieces(gcs, root, monkeypatch):
    monkeypatch.setattr(bucket_module, "_CHUNK", 1000)
    data = np.random.default_rng(0).bytes(4500)
    store = store_for(root)
    store.write(root / "large", data)
    gcs.requests.clear()
    assert store.sha256(root / "large") == hashlib.sha256(data).hexdigest()
    assert _count(gcs, "read") == 5


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n", b"\n--", b"\n\n"])
def test_every_byte_arrives(root, end):
    store_for(root).write(root / "file", b"a\n\nb" + end)
    assert store_for(root).read(root / "file") == b"a\n\nb" + end


def test_a_text_file_appears_whole_or_not(gcs, root):
    store = store_for(root)
    with pytest.raises(KeyError), store.replacing(root / "out.txt") as file:
        file.write("half")
        raise KeyError
    assert not gcs.objects
    with store.replacing(root / "out.txt") as file:
        file.write("ä\nb")
    assert gcs.objects == {"runs/one/out.txt": "ä\nb".encode()}


def test_growing_files_are_put_whole_when_they_changed(gcs, root):
    store = store_for(root)
    store.write(root / "metrics.jsonl", b"old\n")
    spool = store.spool(root / "metrics.jsonl")
    assert (spool.directory / "metrics.jsonl").read_bytes() == b"old\n"
    before = _count(gcs, "write")
    spool.push()
    assert _count(gcs, "write") == before  # nothing has changed
    with (spool.directory / "metrics.jsonl").open("a") as file:
        file.write("new\n")
    (spool.directory / "events").write_bytes(b"1")
    spool.push()
    assert gcs.objects == {"runs/one/metrics.jsonl": b"old\nnew\n", "runs/one/events": b"1"}
    (spool.directory / "events").write_bytes(b"12")
    spool.close()
    assert gcs.objects["runs/one/events"] == b"12"
    assert not spool.directory.exists()


def test_a_trackers_file_that_cannot_be_put_ends_no_run(gcs, root, capsys):
    """The run's own record has to arrive; the other file is put by the next push."""
    spool = store_for(root).spool(root / "metrics.jsonl")
    (spool.directory / "more").mkdir()
    for name in ("events", "metrics.jsonl", "more/events"):
        (spool.directory / name).write_bytes(b"1")
    gcs.on_request = lambda request: failure(403, "no") if "events" in request.name else None
    spool.push()
    assert gcs.objects == {"runs/one/metrics.jsonl": b"1"}
    assert "events was not uploaded, and the run goes on: " in capsys.readouterr().err
    gcs.on_request = lambda request: failure(403, "no")
    (spool.directory / "metrics.jsonl").write_bytes(b"12")
    with pytest.raises(StorageError, match=r"metrics\.jsonl: permission denied"):
        spool.push()
    gcs.on_request = lambda request: None
    spool.close()
    found = {"metrics.jsonl": b"12", "events": b"1", "more/events": b"1"}
    assert gcs.objects == {f"runs/one/{name}": data for name, data in found.items()}


# Opening a workdir


def test_a_new_workdir_and_the_same_again(gcs):
    assert not open_workdir(ROOT).started
    with pytest.raises(ConfigError, match=r"no config\.json"):
        existing_workdir(ROOT)
    write_json(open_workdir(ROOT + "/").config, {"train": {}, "optim": {}, "checkpoint": {}})
    assert open_workdir(ROOT).started and existing_workdir(ROOT).started
    gcs.put("runs/two/notes.txt", b"")
    with pytest.raises(ConfigError, match=r"not empty.*notes\.txt"):
        open_workdir(f"gs://{BUCKET}/runs/two")


def test_a_bucket_that_is_not_there(gcs):
    with pytest.raises(StorageError, match="no such bucket") as caught:
        open_workdir("gs://other-bucket/run")
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    ("status", "said"),
    [(403, "permission denied.*Storage Object User"), (400, "nonsense")],
)
def test_a_refusal_is_one_line(gcs, status, said):
    gcs.on_request = lambda request: failure(status, "nonsense")
    with pytest.raises(StorageError, match=said) as caught:
        open_workdir(ROOT)
    assert "\n" not in str(caught.value)


def test_errors_that_pass_are_tried_again(gcs, root):
    """One of each kind fails once, at the same time: gcsfs then waits 1 to 2 s."""
    store, seen = store_for(root), set()

    def once(request):
        if request.kind in seen:
            return None
        seen.add(request.kind)
        return failure(503 if request.kind == "write" else 429, "busy")

    gcs.on_request = once
    store.write(root / "a", b"1")
    assert gcs.objects == {"runs/one/a": b"1"}
    assert seen == {"write"} and _count(gcs, "write") == 2


def test_no_answer_ends_and_says_that_it_waits(gcs, root, monkeypatch, capsys):
    monkeypatch.setattr(bucket_module, "_PATIENCE", 0.3)
    monkeypatch.setattr(bucket_module, "_REPORT_AFTER", 0.1)
    monkeypatch.setattr(bucket_module, "_REPORT_EVERY", 0.1)
    go = threading.Event()
    gcs.on_request = lambda request: go.wait(20) and None
    with pytest.raises(StorageError, match=r"no answer within"):
        store_for(root).read(root / "a")
    go.set()
    assert "still waiting" in capsys.readouterr().err


def test_after_an_error_nothing_changes_the_bucket_any_more(gcs, root):
    """One of three deletions is refused at once; the others, slower, are waited for."""
    names, done = ("a", "b", "c"), []
    for name in names:
        gcs.put(f"runs/one/{name}", b"")

    def answer(request):
        if request.kind != "delete":
            return None
        if request.name.endswith("/a"):
            return failure(403, "refused")
        time.sleep(0.3)
        done.append(request.name)
        return None

    gcs.on_request = answer
    with pytest.raises(StorageError, match="refused"):
        store_for(root).remove(root)
    assert len(done) == 2 and list(gcs.objects) == ["runs/one/a"]


def test_the_test_s_server_waits_for_what_is_under_way(gcs, root):
    """Or what a test gave up would change the objects of the next one."""
    arrived, go = threading.Event(), threading.Event()
    gcs.on_request = lambda request: arrived.set() or (go.wait(20) and None)
    writing = threading.Thread(target=store_for(root).write, args=(root / "late", b"1"))
    writing.start()
    assert arrived.wait(20)
    with pytest.raises(AssertionError):
        gcs.wait_until_idle(0.1)
    threading.Timer(0.2, go.set).start()
    gcs.reset()
    writing.join()
    assert not gcs.objects


# Checkpoints


def _state(seed=0):
    random = np.random.default_rng(seed)
    return {
        "params": {str(i): jnp.asarray(random.normal(size=(3, 4)), jnp.float32) for i in range(12)},
        "count": jnp.int32(seed + 7),
    }


def _abstract(state):
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), state
    )


def _save(checkpoints, *steps):
    for step in steps:
        checkpoints.save(step, _state(step), {"step": step})
    checkpoints.wait()


def _steps(server):
    return sorted({name.split("/")[0] for name in _below(server, "checkpoints")})


def _assert_restores(checkpoints, step):
    actual, expected = checkpoints.restore(step, _abstract(_state())), _state(step)
    for ours, theirs in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()
    assert checkpoints.read_run(step) == {"step": step}


@pytest.fixture
def checkpoints(root):
    made = Checkpoints(root / "checkpoints", keep=2)
    assert made.newest_valid() is None
    yield made
    made.close()


def test_the_state_comes_back_and_the_newest_are_kept(gcs, root, checkpoints):
    _save(checkpoints, 2, 9, 10)
    assert _steps(gcs) == ["10", "9"]
    again = Checkpoints(root / "checkpoints", keep=2)
    assert again.newest_valid() == 10
    for step in (9, 10):
        verify_manifest(root / "checkpoints" / str(step))
        _assert_restores(again, step)
    again.close()


def test_a_step_without_a_manifest_is_litter(gcs, checkpoints, capsys):
    _save(checkpoints, 3, 6)
    gcs.delete("runs/one/checkpoints/6/manifest.json")
    gcs.put("runs/one/checkpoints/007/note", b"")  # no step of ours
    assert checkpoints.newest_valid() == 3
    assert _steps(gcs) == ["007", "3"]
    assert not capsys.readouterr().err
    _save(checkpoints, 6)
    assert checkpoints.newest_valid() == 6


def test_damaged_ones_are_set_aside_and_nothing_valid_is_lost(gcs, root, checkpoints, capsys):
    _save(checkpoints, 3)
    whole = _below(gcs, "checkpoints/3")
    largest = max(whole, key=lambda name: len(whole[name]))
    flipped = bytearray(whole[largest])
    flipped[len(flipped) // 2] ^= 1
    damages = {
        "flipped": lambda: gcs.put(f"runs/one/checkpoints/6/{largest}", bytes(flipped)),
        "shorter": lambda: gcs.put(f"runs/one/checkpoints/6/{largest}", whole[largest][:-1]),
        "missing": lambda: gcs.delete("runs/one/checkpoints/6/run.json"),
        "unexpected": lambda: gcs.put("runs/one/checkpoints/6/state/more", b""),
        "manifest": lambda: gcs.put("runs/one/checkpoints/6/manifest.json", b"{}"),
    }
    for damage in damages.values():
        for name, data in whole.items():
            gcs.put(f"runs/one/checkpoints/6/{name}", data)
        verify_manifest(root / "checkpoints" / "6")
        damage()
        damaged = _below(gcs, "checkpoints/6")
        assert checkpoints.newest_valid() == 3
        assert _steps(gcs) == ["3", "damaged-6"]
        assert _below(gcs, "checkpoints/damaged-6") == damaged
        assert _below(gcs, "checkpoints/3") == whole
        assert "checkpoint 6 is damaged" in capsys.readouterr().err
    gcs.put(f"runs/one/checkpoints/3/{largest}", bytes(flipped))
    for _ in range(2):
        with pytest.raises(ModelFileError, match="damaged-3, damaged-6"):
            checkpoints.newest_valid()


def test_setting_aside_may_be_cut_off_anywhere(gcs, root, checkpoints):
    _save(checkpoints, 3, 6)
    gcs.put("runs/one/checkpoints/6/run.json", b"{}")
    start = gcs.objects
    for number in range(100):
        gcs.reset()
        for name, data in start.items():
            gcs.put(name, data)
        _dead_from(gcs, number)
        try:
            assert checkpoints.newest_valid() == 3
            finished = True
        except StorageError:
            finished = False
        gcs.on_request = lambda request: None
        gcs.wait_until_idle()
        assert checkpoints.newest_valid() == 3
        assert _steps(gcs) == ["3", "damaged-6"], number
        assert len(_below(gcs, "checkpoints/damaged-6")) == len(
            [name for name in start if "/checkpoints/6/" in name]
        ), number
        if finished:
            break
    assert finished and number > 10


def test_a_store_that_refuses_is_not_called_damaged(gcs, checkpoints):
    _save(checkpoints, 3, 6)
    before = gcs.objects
    gcs.on_request = lambda request: failure(403, "no") if request.kind == "read" else None
    with pytest.raises(StorageError):
        checkpoints.newest_valid()
    gcs.on_request = lambda request: None
    assert gcs.objects == before
    assert checkpoints.newest_valid() == 6


def test_a_save_that_fails_leaves_the_older_one(gcs, checkpoints):
    _save(checkpoints, 3)
    before = _below(gcs, "checkpoints/3")
    gcs.on_request = lambda r: (
        failure(403, "quota") if r.kind == "write" and "manifest.json" in r.name else None
    )
    checkpoints.save(6, _state(6), {"step": 6})
    with pytest.raises(StorageError, match="quota"):
        checkpoints.wait()
    gcs.on_request = lambda request: None
    assert _below(gcs, "checkpoints/3") == before
    assert "manifest.json" not in _below(gcs, "checkpoints/6")
    _save(checkpoints, 6)  # over the litter
    assert checkpoints.newest_valid() == 6
    _assert_restores(checkpoints, 6)


# TensorStore calls back into a loop that Orbax has closed; in commands library_output.py hides it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_orbax_s_clients_raise_is_one_line_too(gcs, checkpoints):
    """gcsfs writes its descriptions, TensorStore its arrays."""
    _save(checkpoints, 3)
    for part in ("_CHECKPOINT_METADATA", "ocdbt.process_0"):
        gcs.on_request = lambda r, part=part: (
            failure(403, "quota") if r.kind == "write" and part in r.name else None
        )
        with pytest.raises(StorageError, match=r"saving .*permission denied.*quota") as caught:
            _save(checkpoints, 6)
        assert "\n" not in str(caught.value)
    gcs.on_request = lambda r: failure(403, "no") if "/d/" in r.name else None
    with pytest.raises(ModelFileError, match="cannot be read by Orbax"):
        checkpoints.restore(3, _abstract(_state()))
    gcs.on_request = lambda request: None
    assert checkpoints.newest_valid() == 3


def test_an_old_one_that_cannot_be_deleted_is_no_reason_to_stop(gcs, checkpoints, capsys):
    _save(checkpoints, 3, 6)
    gcs.on_request = lambda r: (
        failure(403, "no") if r.kind == "delete" and "/3/" in r.name else None
    )
    _save(checkpoints, 9)
    assert "checkpoint 3 could not be deleted" in capsys.readouterr().err
    gcs.on_request = lambda request: None
    _save(checkpoints, 12)
    assert _steps(gcs) == ["12", "9"]


# The folder of the best model


def _model(folder: Path, text: str, *more: str) -> Path:
    folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "README.md", *more):
        (folder / name).write_text(text)
    return folder


def _is(text: str):
    digest = hashlib.sha256(text.encode()).hexdigest()

    def is_right(folder: PurePath) -> bool:
        store, path = store_for(folder), folder / "model.safetensors"
        return store.is_file(path) and store.sha256(path) == digest

    return is_right


def _export(root: PurePath, text: str, *more: str, committed: bool) -> None:
    store = store_for(root)
    staged = store.stage(root / "model")
    _model(staged, text, *more)
    store.replace_directory(staged, root / "model", committed=committed)
    assert not staged.parent.exists()


def test_a_model_is_switched_and_the_committed_one_kept(gcs, root):
    store = store_for(root)
    _export(root, "first", "only in the first", committed=True)
    assert "model.previous.tmp" not in store.names(root)
    for text, committed in (("second", True), ("third", False)):
        _export(root, text, committed=committed)
        assert set(_below(gcs, "model").values()) == {text.encode()}
    assert set(_below(gcs, "model.previous.tmp").values()) == {b"first"}
    assert not store.choose_directory(root / "model", _is("second"))
    assert store.choose_directory(root / "model", _is("third"))
    assert store.choose_directory(root / "model", _is("first"))
    assert set(_below(gcs, "model").values()) == {b"first"} and len(_below(gcs, "model")) == 4
    assert store.names(root) == ["model"]
    _export(root, "fourth", committed=True)
    store.forget_previous(root / "model")
    assert store.names(root) == ["model"]


@pytest.mark.parametrize("committed", [True, False])
def test_a_switch_may_be_cut_off_anywhere(gcs, root, committed):
    """The right one comes back, and its weights never stand beside another model's files."""
    store = store_for(root)
    switched = []
    for number in range(60):
        gcs.reset()
        _export(root, "old", "only in the old", committed=True)
        if not committed:  # what no checkpoint speaks of stands in between
            _export(root, "between", committed=True)
        _dead_from(gcs, number)
        try:
            _export(root, "new", committed=committed)
            finished = True
        except StorageError:
            finished = False
        gcs.on_request = lambda request: None
        now = _below(gcs, "model")
        if "model.safetensors" in now:
            assert len(set(now.values())) == 1, (number, now)
        switched.append(now.get("model.safetensors") == b"new")
        _dead_from(gcs, number // 2)  # the repair is cut off too, and done again
        with contextlib.suppress(StorageError):
            store.choose_directory(root / "model", _is("old"))
        gcs.on_request = lambda request: None
        assert store.choose_directory(root / "model", _is("old")), number
        assert set(_below(gcs, "model").values()) == {b"old"} and len(_below(gcs, "model")) == 4
        if finished:
            break
    assert finished and switched[-1] and not switched[0]


# Copies to disk


def test_a_copy_has_the_folder_and_what_belongs_to_it(gcs):
    files = {"config.json": b"c", "source/vocab.txt": b"v", "model/model.safetensors": b"w",
             "model/sub/x": b"x", "checkpoints/6/state/d": b"d", "checkpoints/6/run.json": b"r",
             "checkpoints/3/run.json": b"3", "checkpoints/frozen/state/f": b"f",
             "metrics.jsonl": b"m", "source/facts.json": b"f"}  # fmt: skip
    for name, data in files.items():
        gcs.put(f"runs/one/{name}", data)

    def copied(url):
        folder = Path(on_disk(url))
        top = next(p for p in (folder, *folder.parents) if p.name == "one")
        return {
            p.relative_to(top).as_posix(): p.read_bytes() for p in top.rglob("*") if p.is_file()
        }

    assert copied(ROOT + "/model").keys() == {
        "config.json", "source/facts.json", "model/model.safetensors", "model/sub/x",
    }  # fmt: skip
    assert copied(ROOT + "/checkpoints/6").keys() == {
        "config.json", "source/vocab.txt", "source/facts.json", "checkpoints/6/state/d",
        "checkpoints/6/run.json", "checkpoints/frozen/state/f",
    }  # fmt: skip
    with pytest.raises(ModelFileError, match="nothing there"):
        on_disk(ROOT + "/modell")
    assert on_disk("some/folder") == "some/folder"


@pytest.mark.parametrize(
    ("url", "folder", "more"),
    [
        ("", "", 0),
        ("/6", "6/", 0),
        ("/model", "model/", 1),
        ("/checkpoints/6", "checkpoints/6/", 2),
    ],
)
def test_a_model_at_the_top_of_a_bucket_is_fetched_once(gcs, url, folder, more):
    """config.json and source/ of its run belong to it, where there is room for a run above it."""
    for name in ("model.safetensors", "vocab.txt"):
        gcs.put(folder + name, b"1")
    if folder:
        gcs.put("config.json", b"1")
        gcs.put("source/vocab.txt", b"1")
    copy = Path(on_disk(f"gs://{BUCKET}{url}"))
    assert (copy / "vocab.txt").read_bytes() == b"1"
    assert _count(gcs, "read") == 2 + more


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "a//b", "./a", "a/\0b"])
def test_names_that_lead_out_of_the_folder_are_refused(gcs, name):
    gcs.put(f"runs/one/model/{name}", b"x")
    gcs.put("runs/one/model/model.safetensors", b"x")
    before = _count(gcs, "read")
    with pytest.raises(ModelFileError, match="no name of a file"):
        on_disk(ROOT + "/model")
    assert _count(gcs, "read") == before


def test_a_folder_that_changes_meanwhile_is_copied_again(gcs):
    for name in ("a", "model.safetensors"):
        gcs.put(f"runs/one/model/{name}", b"old")
    changes = []

    def change(request):
        if request.kind == "read" and request.name.endswith("/a") and not changes:
            changes.append(request)
            for name in ("a", "model.safetensors"):
                gcs.put(f"runs/one/model/{name}", b"new")
        return None

    gcs.on_request = change
    folder = Path(on_disk(ROOT + "/model"))
    assert changes and {p.read_bytes() for p in folder.iterdir()} == {b"new"}


def test_a_disk_without_room_is_told(gcs, monkeypatch):
    gcs.put("runs/one/model/model.safetensors", b"x" * 100)
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=99))
    with pytest.raises(StorageError, match=r"has 100 bytes.*room for 99.*TMPDIR"):
        on_disk(ROOT + "/model")


# Without the lease


def test_a_store_whose_lease_is_lost_refuses_every_change(gcs, root, monkeypatch):
    store = store_for(root)
    store.write(root / "a", b"1")

    class Lost:
        def check(self):
            raise StorageError("lost")

    monkeypatch.setattr(store, "_lease", Lost())
    staged = _model(store.stage(root / "model"), "x")
    spool = store.spool(root / "metrics.jsonl")
    (spool.directory / "metrics.jsonl").write_text("x")
    changes = [
        lambda: store.write(root / "a", b"2"),
        lambda: store.remove(root / "a"),
        lambda: store.begin(root / "5"),
        lambda: store.set_aside(root, root / "b"),
        lambda: store.replace_directory(staged, root / "model", committed=False),
        lambda: store.forget_previous(root / "model"),
        lambda: spool.push(),
    ]
    for change in changes:
        with pytest.raises(StorageError, match="lost"):
            change()
    with pytest.raises(StorageError, match="lost"), store.replacing(root / "a"):
        pass
    with pytest.raises(StorageError, match="lost"):
        spool.close()
    assert gcs.objects == {"runs/one/a": b"1"}


def test_damage_errors_are_no_storage_errors():
    """An outage must not be taken for damage, which is deleted or set aside."""
    assert not issubclass(StorageError, (OSError, DamagedError))
