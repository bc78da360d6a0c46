"""The lease of a bucket: one holder, whatever requests fail; released by signals, lost in time."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from flaxbert.errors import ConfigError, StorageError
from flaxbert.shell import signals
from flaxbert.storage import lease as module
from flaxbert.storage.lease import Lease
from tests.commands import ROOT
from tests.gcs_server import BUCKET, failure

pytestmark = pytest.mark.xdist_group("bucket")  # one server a process

KEY = "runs/one/.lock"
FAST = 0.6  # seconds of a lease in these tests: long against a request on loopback


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(module, "SECONDS", FAST)
    pauses = module._RETRIES | {"initial_delay": "10ms", "max_delay": "10ms"}
    monkeypatch.setattr(module, "_RETRIES", pauses)


@pytest.fixture
def left(monkeypatch):
    """What the process was left with, instead of leaving it."""
    codes = []
    monkeypatch.setattr(signals, "leave", lambda *arguments: codes.append(arguments))
    return codes


def _lease():
    return Lease(BUCKET, KEY)


def _other(server):
    """Somebody else takes the lease by force."""
    server.put(KEY, b'{"pid": 7, "host": "elsewhere", "token": "x"}')


def test_it_is_taken_renewed_and_released(gcs):
    with _lease().held() as lease:
        first = lease._generation
        assert json.loads(gcs.objects[KEY])["pid"] == os.getpid()
        time.sleep(FAST * 1.5)
        assert lease._generation != first
        lease.check()
    assert not gcs.objects
    with _lease().held():
        pass


@pytest.mark.parametrize("status", [400, 403])
def test_a_refusal_is_told_at_once(gcs, status):
    """As an error of the store: a plain ValueError would count as a defect of ours."""
    gcs.on_request = lambda request: failure(status, "nonsense")
    refused = pytest.raises(StorageError, match=r"runs/one/\.lock: .*nonsense")
    with refused as caught, _lease().held():
        pass
    assert caught.value.exit_code == 4 and "\n" not in str(caught.value)
    assert (status == 403) == ("Storage Object User" in str(caught.value))
    assert len(gcs.requests) == 1


@pytest.mark.parametrize("lost_answer", [False, True])
def test_a_store_that_is_away_at_the_start_is_tried_again(gcs, lost_answer):
    """With the lease written, or not."""
    failed = []

    def away(request):
        if request.kind != "write" or len(failed) >= (1 if lost_answer else 5):
            return None
        if lost_answer:
            gcs.put(request.name, json.dumps({"token": lease._token}).encode())
        failed.append(request)
        return failure(503, "away")

    gcs.on_request = away
    lease = _lease()
    with lease.held():
        assert len(failed) == (1 if lost_answer else 5)
    assert not gcs.objects


def test_a_second_one_is_refused_while_the_first_lives(gcs, capsys):
    alive = pytest.raises(ConfigError, match=f"in use by pid {os.getpid()} on")
    with _lease().held(), alive, _lease().held():
        pass
    said = capsys.readouterr().err
    assert f"held by pid {os.getpid()}" in said and "lease to expire" in said


@pytest.mark.parametrize("body", [b'{"pid": 7, "host": "elsewhere", "token": "x"}', b"", b"[]"])
def test_one_that_ran_out_is_taken_over_and_not_before(gcs, capsys, body):
    gcs.put(KEY, body)
    begun = time.monotonic()
    with _lease().held():
        assert FAST < time.monotonic() - begun < 10 * FAST
    assert ("pid 7 on elsewhere" if b"7" in body else "pid ? on ?") in capsys.readouterr().err


def test_of_two_that_take_over_at_once_one_wins(gcs):
    _other(gcs)
    gate, results = threading.Barrier(3), []

    def take():
        gate.wait()
        try:
            with _lease().held():
                results.append("held")
                time.sleep(FAST * 2)
        except ConfigError:
            results.append("refused")

    threads = [threading.Thread(target=take) for _ in range(2)]
    for thread in threads:
        thread.start()
    gate.wait()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["held", "refused"]


def test_whoever_lost_it_ends_and_writes_no_more(gcs, left):
    at_the_end = pytest.raises(StorageError, match="taken over by pid 7 on elsewhere")
    with at_the_end, _lease().held() as lease:
        _other(gcs)
        time.sleep(FAST)
        assert [code for code, _ in left] == [4] and "taken over" in left[0][1]
        with pytest.raises(StorageError, match="taken over"):
            lease.check()
    assert b"elsewhere" in gcs.objects[KEY]  # and does not delete the other's


def test_a_process_that_slept_looks_before_it_writes(gcs, monkeypatch):
    """Stopped for longer than the lease: the first thing after it is a write, not a renewal."""
    with pytest.raises(StorageError), _lease().held() as lease:
        lease._stop.set()  # the renewing thread sleeps on
        _other(gcs)
        lease.check()  # still sure: nobody can have taken it over by the rules
        now = module._now
        monkeypatch.setattr(module, "_now", lambda: now() + FAST)
        with pytest.raises(StorageError, match="taken over"):
            lease.check()


def test_an_answer_that_was_lost_is_no_loss_of_the_lease(gcs, left):
    """The renewal is done, its answer is an error: tried again, the generation is another."""
    broken = []

    def swallow(request):
        renews = request.kind == "write" and request.query.get("ifGenerationMatch", "0") != "0"
        if not renews or broken:
            return None
        broken.append(gcs.put(request.name, gcs.objects[request.name]))
        return failure(503, "lost")

    gcs.on_request = swallow
    with _lease().held() as lease:
        time.sleep(FAST * 1.2)
        assert broken and not left
        lease.check()
    assert not gcs.objects


def test_a_store_that_is_away_for_a_while_is_no_loss_either(gcs, left):
    with _lease().held() as lease:
        gcs.on_request = lambda request: failure(403, "away")
        time.sleep(FAST * 1.2)
        with pytest.raises(StorageError, match=r"lock: permission denied.*away"):
            lease.check()
        gcs.on_request = lambda request: None
        lease.check()
    assert not left and not gcs.objects


@pytest.mark.parametrize("renewing", [False, True])
def test_who_leaves_lets_it_go_and_waits_for_nobody(gcs, renewing):
    """`renewing`: its request is never answered, and the lock is held."""
    lease, go, asked = _lease(), threading.Event(), threading.Event()
    with contextlib.ExitStack() as stack:
        stack.enter_context(lease.held())
        if renewing:
            gcs.on_request = lambda request: asked.set() or (go.wait(20) and None)
            assert asked.wait(20)
        begun = time.monotonic()
        lease._release()
        assert time.monotonic() - begun < 2.8  # the process is left after three seconds
        assert bool(gcs.objects) is renewing
        go.set()
        if not renewing:
            time.sleep(FAST)
            assert not gcs.objects  # and it is not renewed any more


_LEAVES = """
import sys, time
from flaxbert.shell import signals
signals.install()
from flaxbert.storage.store import location, on_disk, store_for
root = location(sys.argv[1])
store = store_for(root)
on_disk(root / "model")
store.stage(root / "model").mkdir()
store.spool(root / "metrics.jsonl")
with store.locked(root / ".lock"), store.replacing(root / "out.txt") as file:
    file.write("half")
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.mark.slow
def test_a_signal_leaves_no_lease_and_no_local_copies(gcs, tmp_path):
    for name in ("config.json", "model.safetensors"):
        gcs.put(f"runs/one/model/{name}", b"1")
    before = gcs.objects
    environment = os.environ | gcs.environment | {"TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", _LEAVES, f"gs://{BUCKET}/runs/one"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    ) as process:  # fmt: skip
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        assert gcs.objects.keys() - before.keys() == {KEY} and list(tmp_path.rglob("out.txt"))
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=30)
    assert process.returncode == 75 and "WARNING" not in told, told
    assert gcs.objects == before and not list(tmp_path.iterdir())
