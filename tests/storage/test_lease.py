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
from flaxbert.storage.lease import Lease, watch
from tests.commands import ROOT
from tests.gcs_server import BUCKET, failure

pytestmark = pytest.mark.xdist_group("bucket")  # one server a process

KEY = "runs/one/.lock"
FAST = 0.6  # seconds of a lease in these tests: long against a request on loopback


def _lease(lost=None):
    return Lease(BUCKET, KEY, FAST, (lost if lost is not None else []).append)


def _other(server):
    """Somebody else takes the lease by force."""
    server.put("runs/one/.lock", b'{"pid": 7, "host": "elsewhere", "token": "x"}')


def test_it_is_taken_renewed_and_released(gcs):
    with _lease().held() as lease:
        first = gcs.objects["runs/one/.lock"]
        assert f'"pid": {os.getpid()}'.encode() in first
        time.sleep(FAST * 1.5)
        assert gcs.objects["runs/one/.lock"] != first
        lease.check()
    assert not gcs.objects
    with _lease().held():
        pass


@pytest.mark.parametrize("status", [400, 403])
def test_a_refusal_is_told_at_once(gcs, status):
    """As an error of the store: a plain ValueError would count as a defect of ours."""
    gcs.on_request = lambda request: failure(status, "nonsense")
    begun = time.monotonic()
    refused = pytest.raises(StorageError, match=r"runs/one/\.lock: .*nonsense")
    with refused as caught, _lease().held():
        pass
    assert caught.value.exit_code == 4 and "\n" not in str(caught.value)
    assert (status == 403) == ("Storage Object User" in str(caught.value))
    assert len(gcs.requests) == 1 and time.monotonic() - begun < module._ACQUIRE_PAUSE


@pytest.fixture
def quick(monkeypatch):
    """The pauses before a request is made again."""
    pauses = module._RETRIES | {"initial_delay": "10ms", "max_delay": "10ms"}
    monkeypatch.setattr(module, "_RETRIES", pauses)
    monkeypatch.setattr(module, "_ACQUIRE_PAUSE", 0.1)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("lost_answer", [False, True])
def test_a_store_that_is_away_at_the_start_is_waited_for(gcs, capsys, lost_answer):
    """For longer than TensorStore's own three attempts; with the lease written, or not."""
    failed = []

    def away(request):
        if request.kind != "write" or len(failed) >= (1 if lost_answer else 5):
            return None
        if lost_answer and not failed:
            gcs.put(request.name, json.dumps({"token": lease._token}).encode())
        failed.append(request)
        return failure(503, "away")

    gcs.on_request = away
    lease = _lease()
    with lease.held():
        pass
    said = capsys.readouterr().err
    if lost_answer:  # the second write is refused: it is there, and it is ours
        assert len(failed) == 1 and not said
    else:
        assert len(failed) == 5 and "busy or out of order (ABORTED: All 3" in said
    assert not gcs.objects


@pytest.mark.usefixtures("quick")
def test_a_store_that_stays_away_is_an_error_of_the_store(gcs, monkeypatch):
    monkeypatch.setattr(module, "_ACQUIRE_PATIENCE", 0.0)
    gcs.on_request = lambda request: failure(503, "away")
    away = pytest.raises(StorageError, match=r"out of order.*away.*the same command goes on")
    with away, _lease().held():
        pass


def test_a_store_that_cannot_be_opened_is_an_error_of_the_store(gcs, monkeypatch):
    def no_answer(bucket, seconds):
        raise TimeoutError

    monkeypatch.setattr(module, "_open", no_answer)
    with pytest.raises(StorageError, match="no answer in time"):
        _lease()


def test_a_second_one_is_refused_while_the_first_lives(gcs, capsys):
    alive = pytest.raises(ConfigError, match=f"in use by pid {os.getpid()} on")
    with _lease().held(), alive, _lease().held():
        pass
    said = capsys.readouterr().err
    assert f"held by pid {os.getpid()}" in said and "runs out in" in said


def test_one_that_ran_out_is_taken_over_and_not_before(gcs, capsys):
    _other(gcs)
    begun = time.monotonic()
    with _lease().held():
        assert FAST < time.monotonic() - begun < 10 * FAST
    assert "pid 7 on elsewhere" in capsys.readouterr().err


@pytest.mark.parametrize("body", [b"", b"[]", b'{"seconds": 1e9}'])
def test_any_content_is_a_lease_that_runs_out(gcs, body):
    gcs.put("runs/one/.lock", body)
    with _lease().held():
        pass


def test_a_holder_with_a_longer_lease_is_given_its_time(gcs):
    gcs.put("runs/one/.lock", b'{"seconds": 1.2}')
    begun = time.monotonic()
    with _lease().held():
        assert time.monotonic() - begun > 1.2


def test_whoever_lost_it_writes_no_more(gcs):
    lost = []
    at_the_end = pytest.raises(StorageError, match="taken over by pid 7 on elsewhere")
    with at_the_end, _lease(lost).held() as lease:
        _other(gcs)
        time.sleep(FAST)
        assert len(lost) == 1
        with pytest.raises(StorageError, match="taken over"):
            lease.check()
    assert b"elsewhere" in gcs.objects["runs/one/.lock"]  # and does not delete the other's


def test_a_loss_is_told_at_once_and_not_a_renewal_later(gcs):
    lost, seconds = [], 3.0  # a renewal a second
    refused = threading.Event()

    def answer(request):
        if "elsewhere" in str(gcs.objects) and request.kind == "read":
            refused.set()  # it looks who has it
        return None

    gcs.on_request = answer
    with pytest.raises(StorageError), Lease(BUCKET, KEY, seconds, lost.append).held():
        _other(gcs)
        assert refused.wait(seconds)
        time.sleep(seconds / module._RENEWALS / 2)
        assert len(lost) == 1


@pytest.mark.parametrize("broken", [False, True])
def test_without_its_lease_the_process_ends_though_nobody_reads_what_it_says(monkeypatch, broken):
    def tell(line):
        told.append(line)
        if broken:
            raise MemoryError

    told: list[str] = []
    codes: list[int] = []
    monkeypatch.setattr(signals, "tell", tell)
    monkeypatch.setattr(os, "_exit", codes.append)
    with pytest.raises(MemoryError) if broken else contextlib.nullcontext():
        module._end_at_once("taken over by pid 7 on \x1b[2J")
    assert codes == [4] and told == [r"error: taken over by pid 7 on \x1b[2J"]


def test_what_the_renewing_thread_says_waits_for_no_other_thread(gcs, capfd, monkeypatch):
    """print holds a lock while it writes to a pipe that nobody empties."""
    monkeypatch.setattr("builtins.print", lambda *_, **__: time.sleep(60))
    with _lease().held():
        gcs.on_request = lambda request: failure(403, "away")
        time.sleep(FAST * 1.5)
        gcs.on_request = lambda request: None
        time.sleep(FAST / 2)
    assert "could not be renewed" in capfd.readouterr().err


# What a signal leaves


@pytest.mark.parametrize("renewing", [False, True])
def test_who_leaves_lets_it_go_and_waits_for_nobody(gcs, renewing):
    """`renewing`: its request is never answered, and the guard is held."""
    lease, go, asked = _lease(), threading.Event(), threading.Event()
    with contextlib.ExitStack() as stack:
        stack.enter_context(lease.held())
        if renewing:
            gcs.on_request = lambda request: asked.set() or (go.wait(20) and None)
            assert asked.wait(20)
        begun = time.monotonic()
        lease._let_go()
        assert time.monotonic() - begun < 2.8  # the process is left after three seconds
        assert bool(gcs.objects) is renewing
        go.set()
        if not renewing:
            time.sleep(FAST)
            assert not gcs.objects  # and it is not renewed any more
            lease._guard.release()  # or the end of the block would wait for this process to end


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


def test_an_answer_that_was_lost_is_no_loss_of_the_lease(gcs):
    """The renewal is done, its answer is an error: tried again, the generation is another."""
    lost, broken = [], []

    def swallow(request):
        renews = request.kind == "write" and request.query.get("ifGenerationMatch", "0") != "0"
        if not renews or broken:
            return None
        broken.append(gcs.put(request.name, gcs.objects[request.name]))
        return failure(503, "lost")

    gcs.on_request = swallow
    with _lease(lost).held() as lease:
        time.sleep(FAST * 1.2)
        assert broken and not lost
        lease.check()
    assert not gcs.objects


def test_a_store_that_is_away_for_a_while_is_no_loss_either(gcs):
    lost = []
    with _lease(lost).held() as lease:
        gcs.on_request = lambda request: failure(403, "away")
        time.sleep(FAST * 1.2)
        with pytest.raises(StorageError, match="cannot be renewed"):
            lease.check()
        gcs.on_request = lambda request: None
        time.sleep(FAST / 2)
        lease.check()
    assert not lost and not gcs.objects


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


# Watched by somebody who does not want it


def _held_by_somebody(server, seconds=FAST):
    """Puts what a holder writes."""
    with _lease().held():
        body = json.loads(server.objects[KEY])
    server.put(KEY, json.dumps(body | {"seconds": seconds}).encode())


@pytest.mark.parametrize("renewed", [True, False])
def test_a_lease_is_watched_without_taking_it(gcs, renewed):
    assert watch(BUCKET, KEY) is None
    # One that is renewed is watched no longer than until then.
    _held_by_somebody(gcs, seconds=60 if renewed else FAST)
    body, reads = gcs.objects[KEY], iter(range(3))
    gcs.requests.clear()

    def renew(request):
        if renewed and next(reads, None) == 1:
            gcs.put(KEY, body)

    gcs.on_request = renew
    seen = watch(BUCKET, KEY)
    assert seen is not None and seen.who.startswith(f"pid {os.getpid()} on ")
    assert (seen.renewed, seen.lasts) == (renewed, 60 if renewed else FAST)
    assert renewed or seen.seconds >= FAST / 2
    assert seen.seconds < 20 and {request.kind for request in gcs.requests} == {"read"}
    assert gcs.objects == {KEY: body}


def test_a_lease_that_is_released_while_it_is_watched(gcs):
    _held_by_somebody(gcs, seconds=60)
    reads = iter(range(2))
    gcs.on_request = lambda request: gcs.delete(request.name) if next(reads, 0) else None
    assert watch(BUCKET, KEY) is None


def test_a_lease_that_may_not_be_seen(gcs):
    gcs.on_request = lambda request: failure(403, "no")
    with pytest.raises(StorageError, match=r"gs://.*lock: permission denied"):
        watch(BUCKET, KEY)
