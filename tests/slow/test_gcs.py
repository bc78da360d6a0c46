"""Real commands with a workdir in a bucket: killed, stopped, started twice, and read from there.

`make soak` kills at every kind of request: tests/soak/bucket.py.
"""

from __future__ import annotations

import functools
import json
import signal
import threading
import time
from pathlib import Path

import pytest

from tests.commands import call, start
from tests.gcs_server import BUCKET, failure, gcs_server, shared_server
from tests.soak.bucket import (
    PREFIX,
    URL,
    flags_for,
    killed,
    nth,
    on_disk,
    run,
    run_and_signal,
)
from tests.soak.resume import compare

pytestmark = pytest.mark.slow

# One of each kind, in the order in which a run comes to them.
KILLS = [
    ("write", "metrics.jsonl", 0),
    ("write", "checkpoints/2/state/", 2),
    ("write", "checkpoints/2/manifest.json", 0),
    ("copy", "model/config.json", 0),
    ("delete", "checkpoints/2/manifest.json", 0),
    ("write", "all_results.json", 0),
]


@pytest.fixture
def gcs():
    with gcs_server() as server:
        yield server


@pytest.fixture
def bucket():
    """A bucket for commands inside this process."""
    server = shared_server()
    server.reset()
    yield server
    server.reset()


@pytest.fixture(scope="module")
def flags(tiny_bert, reviews):
    return functools.partial(flags_for, tiny_bert, reviews)


@pytest.fixture(scope="module")
def whole(flags, tmp_path_factory) -> Path:
    """The same run on disk, which nobody touched."""
    workdir = tmp_path_factory.mktemp("whole") / "work"
    done = run(None, "train", *flags(workdir))
    assert done.code == 0, done.err
    assert done.err.count("best so far") == 3
    return workdir


@pytest.mark.timeout(900)
def test_sigkill_at_kinds_of_requests(gcs, flags, whole, tmp_path):
    assert killed(gcs, flags(URL), whole, tmp_path / "work", KILLS)["problems"] == []


@pytest.mark.timeout(600)
def test_sigterm_saves_and_the_same_command_goes_on(gcs, flags, whole, tmp_path):
    at = nth("write", "checkpoints/2/state/", 0)
    done = run_and_signal(gcs, signal.SIGTERM, at, *flags(URL))
    assert done.code == 75, done.err
    assert PREFIX + ".lock" not in gcs.objects  # released: the next start does not wait
    done = run(gcs, "train", *flags(URL))
    assert done.code == 0 and "resuming" in done.err, done.err
    assert compare(whole, on_disk(gcs, tmp_path / "work")) == []


@pytest.mark.timeout(600)
def test_a_store_with_bad_days_changes_nothing(gcs, flags, whole, tmp_path):
    """Every 15th request fails once, by turns with 503, 429 and 500; the clients try again."""

    def sometimes(request):
        turn, rest = divmod(request.number, 15)
        return failure((503, 429, 500)[turn % 3], "busy") if rest == 0 else None

    gcs.on_request = sometimes
    done = run(gcs, "train", *flags(URL), timeout=500)
    assert done.code == 0, done.err
    assert compare(whole, on_disk(gcs, tmp_path / "work")) == []


@pytest.mark.timeout(600)
def test_two_trainers_on_one_workdir(gcs, flags, whole, tmp_path):
    """The second one is refused once the first has renewed its lease, 20 s at most; a killed one's
    runs out after a minute."""
    go, first_at_work = [], []

    def hold(request):
        if request.name.endswith("checkpoints/2/manifest.json"):
            first_at_work.append(request)
            while not go:
                time.sleep(0.1)
        return None

    gcs.on_request = hold
    first = start("train", *flags(URL), env=gcs.environment)
    while not first_at_work:
        time.sleep(0.1)
        assert first.poll() is None
    second = run(gcs, "train", *flags(URL))
    assert second.code == 2, second.err
    assert f"in use by pid {first.pid}" in second.err
    first.kill()
    first.communicate()
    gcs.on_request = lambda request: failure(403, "died") if not go else None
    go.append(True)
    begun = time.monotonic()
    third = run(gcs, "train", *flags(URL))
    assert third.code == 0, third.err
    assert f"held by pid {first.pid}" in third.err and "waiting 60 s" in third.err
    assert time.monotonic() - begun > 60
    assert compare(whole, on_disk(gcs, tmp_path / "work")) == []


@pytest.mark.timeout(300)
def test_a_run_that_lost_its_lease_stops_at_once(gcs, flags):
    """A holder is stopped (as a machine that sleeps is), loses the lease, and wakes up.

    It is stopped while it writes the state of update 6: what it had sent by then may still arrive,
    but no commit and no deletion is among it, which come before and after.
    """
    process = start("train", *flags(URL, train__steps=5000), env=gcs.environment)
    at = nth("write", "checkpoints/6/state/", 0)
    stopped = threading.Event()

    def hook(request):
        if not stopped.is_set() and at(request):
            process.send_signal(signal.SIGSTOP)
            stopped.set()

    gcs.on_request = hook
    try:
        while not stopped.wait(0.1):
            assert process.poll() is None
        gcs.put(PREFIX + ".lock", b'{"pid": 7, "host": "elsewhere", "token": "x"}')
        time.sleep(50)  # longer than it may write without asking
        taken = gcs.objects
        process.send_signal(signal.SIGCONT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 4, err
    assert "taken over by pid 7 on elsewhere" in err and "Traceback" not in err
    manifests = {name for name in gcs.objects if name.endswith("manifest.json")}
    assert manifests == {name for name in taken if name.endswith("manifest.json")}
    assert gcs.objects[PREFIX + ".lock"] == taken[PREFIX + ".lock"]


@pytest.mark.timeout(300)
def test_a_quota_that_is_used_up_is_one_line(gcs, flags):
    """Every checkpoint fails: a first failure is only warned of, and tried once more."""
    gcs.on_request = lambda request: (
        failure(403, "quota exceeded")
        if request.kind == "write" and "/state/ocdbt" in request.name
        else None
    )
    done = run(gcs, "train", *flags(URL))
    assert done.code == 4, done.err
    last = done.err.splitlines()[-1]
    assert "permission denied" in last and "quota exceeded" in last
    assert PREFIX + ".lock" not in gcs.objects


def test_evaluate_predict_and_convert_from_a_bucket(bucket, whole, reviews, tmp_path, capsys):
    for path in whole.rglob("*"):
        if path.is_file():
            bucket.put(PREFIX + path.relative_to(whole).as_posix(), path.read_bytes())
    stored = json.loads((whole / "eval_results.json").read_text())
    bucket.delete(PREFIX + "eval_results.json")
    done = call("evaluate", f"--workdir={URL}", capsys=capsys)
    assert done.code == 0, done.err
    again = json.loads(bucket.objects[PREFIX + "eval_results.json"])
    assert again["eval_loss"] == pytest.approx(stored["eval_loss"], abs=1e-6)  # float32 sums
    outputs = {}
    for name, source in {"disk": f"--workdir={whole}", "run": f"--workdir={URL}",
                         "model": f"--model={URL}/model",
                         "checkpoint": f"--model={URL}/checkpoints/6"}.items():  # fmt: skip
        output = tmp_path / f"{name}.jsonl"
        done = call(
            "predict", source, f"--input={reviews['test']}", f"--output={output}", capsys=capsys
        )
        assert done.code == 0, done.err
        outputs[name] = output.read_bytes()
    assert len(set(outputs.values())) == 1  # update 6 is the best one here
    for name, source in {"a": URL, "b": URL + "/model", "c": URL + "/checkpoints/6"}.items():
        done = call("convert", f"--from={source}", f"--to={tmp_path / name}", capsys=capsys)
        assert done.code == 0, done.err
        weights = (tmp_path / name / "model.safetensors").read_bytes()
        assert weights == (whole / "model" / "model.safetensors").read_bytes()


def test_a_model_in_a_bucket_is_trained_further(bucket, flags, tiny_bert, tmp_path, capsys):
    for path in tiny_bert.iterdir():
        bucket.put(f"models/tiny/{path.name}", path.read_bytes())
    workdir = tmp_path / "work"
    model = f"gs://{BUCKET}/models/tiny"
    done = call("train", *flags(workdir, train__steps=2, model__path=model), capsys=capsys)
    assert done.code == 0, done.err
    assert (workdir / "model" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["train", "--config=configs/quickstart.py", "--workdir=gs:/b/run"], 2, "gs://bucket"),
        (["train", "--config=configs/quickstart.py", "--workdir=s3://b/run"], 2, "gs://bucket"),
        (["train", "--config=configs/quickstart.py", "--workdir=gs://other-bucket/run"], 4,
         "no such bucket"),
        (["train", "--config=configs/text.py", f"--config.data.train=gs://{BUCKET}/a.csv"], 3,
         "read from local files"),
        (["evaluate", f"--workdir={URL}"], 2, "no config.json of a run"),
        (["predict", f"--model={URL}/model", "--input=-", "--output=-"], 4, "nothing there"),
        (["predict", "--model=embedded:minilm", "--input=-", f"--output={URL}/a.csv"], 2,
         "local file"),
        (["convert", f"--from={URL}", "--to=out"], 4, "nothing there"),
        (["convert", "--from=embedded:minilm", f"--to={URL}"], 2, "local folder"),
    ],
)  # fmt: skip
def test_mistakes(bucket, arguments, code, said, capsys):
    done = call(*arguments, capsys=capsys)
    assert (done.code, said in done.err) == (code, True), done.err
    assert "Traceback" not in done.err and not bucket.objects


@pytest.mark.timeout(300)
def test_a_store_that_cannot_be_reached_ends_in_bounded_time(tmp_path):
    with gcs_server() as server:
        environment = server.environment  # of a port where nobody listens any more
    process = start("train", "--config=configs/quickstart.py", f"--workdir={URL}", env=environment)
    begun = time.monotonic()
    _, err = process.communicate(timeout=150)
    assert process.returncode == 4, err
    assert "still waiting" in err and "cannot be reached" in err and "Traceback" not in err
    assert time.monotonic() - begun < 120  # six attempts take 31 to 36 s
