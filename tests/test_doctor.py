"""The doctor: a healthy machine and run, and every failure provoked."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from packaging.version import Version

from flaxbert.config import Config, to_dict
from flaxbert.diagnose import canary, devices, run_folder, versions
from flaxbert.diagnose.findings import (
    FAILURE,
    OK,
    WARNING,
    Finding,
    as_json,
    as_lines,
    exit_code,
    guarded,
)
from flaxbert.hosts import collectives
from flaxbert.model.kernels.self_test import LENGTHS, wrong_kernels
from flaxbert.storage import lease
from flaxbert.storage.checkpoint import Checkpoints
from flaxbert.storage.lock import holder, locked
from flaxbert.storage.workdir import Workdir, write_json
from tests.commands import call
from tests.gcs_server import BUCKET, failure, shared_server


def _said(findings, status=None) -> str:
    return "\n".join(f"{f.said} -> {f.do}" for f in findings if status in (None, f.status))


def _worst(findings) -> str:
    return next(s for s in (FAILURE, WARNING, OK) if any(f.status == s for f in findings))


# --- the page ---


def test_the_page_and_the_exit_code():
    findings = [
        Finding("a", OK, "fine"),
        Finding("a", WARNING, "odd \x1b[31m", "do this"),
        Finding("b", FAILURE, "broken", "do that", code=4),
        Finding("b", FAILURE, "worse", code=70),
    ]
    assert as_lines(findings) == [
        "a",
        "  ok   fine",
        "  !!   odd \\x1b[31m",
        "       -> do this",
        "",
        "b",
        "  FAIL broken",
        "       -> do that",
        "  FAIL worse",
        "",
        "2 failures, 1 warnings, 1 ok",
    ]
    assert exit_code(findings) == 4 and exit_code(findings[:2]) == 0
    values = json.loads(as_json(findings))
    assert values["exit_code"] == 4 and len(values["findings"]) == 4


def test_a_check_that_breaks_is_a_finding_and_keeps_what_it_saw():
    def broken():
        yield Finding("x", OK, "seen")
        raise RuntimeError("no such thing\nsecond line")

    seen, failed = guarded("x", broken)
    assert seen.said == "seen" and failed.code == 70
    assert "RuntimeError: no such thing" in failed.said and "second" not in failed.said


def test_nothing_that_identifies_a_person_leaves(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    finding = Finding(
        "x",
        OK,
        "/home/somebody/run and https://me:pass@host/x with hf_abcdefghijkl",
        facts={"/home/somebody": ["Bearer abc"]},
    )
    for text in ("\n".join(as_lines([finding])), as_json([finding])):
        assert "~/run and https://[user]@host/x with [token]" in text
        assert not any(word in text for word in ("somebody", "pass", "hf_abc", "Bearer abc"))


# --- versions ---


def _bad_pairs(gpu=False, **found):
    named = {name.replace("_", "-"): Version(v) for name, v in found.items()}
    return list(versions.bad_pairs(named, gpu))


def test_the_installed_versions_are_right():
    findings = list(versions.check(gpu=False))
    assert _worst(findings) == OK, _said(findings)
    assert f"jax {jax.__version__}" in findings[0].said


@pytest.mark.parametrize(
    ("bad", "good"),
    [
        ({"jax": "0.11.1", "flax": "0.12.8"}, {"jax": "0.11.1", "flax": "0.12.9"}),
        ({"jax": "0.12.0", "flax": "0.12.8"}, {"jax": "0.10.2", "flax": "0.12.8"}),
        ({"jaxlib": "0.10.2", "gpu": True}, {"jaxlib": "0.10.2", "gpu": False}),
        ({"jaxlib": "0.11.0", "gpu": True}, {"jaxlib": "0.11.2", "gpu": True}),
        ({"jaxlib": "0.11.1"}, {"jaxlib": "0.11.2"}),
        (
            {"jaxlib": "0.11.2", "jax_cuda12_plugin": "0.11.0"},
            {"jaxlib": "0.11.2", "jax_cuda12_plugin": "0.11.2.post1"},
        ),
        ({"jaxlib": "0.11.2", "jax_cuda13_plugin": "0.12.0"}, {"jaxlib": "0.11.2"}),
        ({"jax": "0.12.0.dev20260920"}, {"jax": "0.12.0.1"}),
    ],
)
def test_known_bad_pairs(bad, good):
    (found,) = _bad_pairs(**bad)
    assert "pip install" in found.do
    assert not _bad_pairs(**good)


def test_a_bad_pair_is_told(monkeypatch):
    monkeypatch.setattr(
        versions, "_installed", lambda: {"jax": Version("0.11.1"), "flax": Version("0.12.8")}
    )
    told = _said(versions.check(gpu=False), FAILURE)
    assert "does not import with jax 0.11.1" in told
    assert "numpy is not installed: flaxbert needs numpy" in told  # as >=2.0,<3 or <3,>=2.0


def test_what_a_package_of_ours_needs_is_compared_too():
    installed = versions._installed()
    assert not list(versions.disagreements(installed))
    wrong = installed | {"jaxlib": Version("0.1.0"), "numpy": Version("1.20")}
    told = "\n".join(versions.disagreements(wrong))
    assert "jaxlib 0.1.0: jax needs" in told and "numpy 1.20: flaxbert needs" in told


# --- devices ---


def the_gpus():
    gpu = pytest.importorskip("flaxbert.model.kernels.gpu", reason="no Pallas for Triton")
    return gpu.KERNELS


def the_tpus():
    from flaxbert.model.kernels import tpu

    return tpu.kernels_of(lambda function, *_: functools.partial(function, 0), 1, interpret=True)


@pytest.mark.slow
@pytest.mark.parametrize("kernels", [the_gpus, the_tpus])
def test_the_canary_compares_the_kernels(kernels, monkeypatch):
    assert canary.kernels_here() is None  # so they run as plain JAX
    kernels = kernels()
    assert wrong_kernels(kernels) == []
    wrong = dataclasses.replace(
        kernels,
        attention=lambda *inputs: kernels.attention(
            *inputs[:4], None if inputs[4] is None else inputs[4] + 1, *inputs[5:]
        ),
        residual=lambda *inputs: kernels.residual(*inputs[:5], inputs[5] + 1, *inputs[6:]),
        dense=lambda x, projection, _: kernels.dense(x, projection, jax.nn.relu),
    )
    assert wrong_kernels(wrong) == [
        *(f"the attention kernel at {length} tokens" for length in LENGTHS),
        "the kernel of residual and LayerNorm",
        "the kernel of a linear layer and its activation",
    ]


def test_the_canary_finds_no_wrong_number_here():
    assert canary.wrong_products() == []
    assert len(jax.devices()) == 8
    assert collectives.wrong_collectives((2**10, 2**15)) == []


@pytest.mark.parametrize("name", ["psum", "psum_scatter", "all_gather", "all_to_all", "ppermute"])
def test_the_canary_finds_one_wrong_element(name, monkeypatch):
    right = getattr(jax.lax, name)

    def wrong(x, *args, **options):
        return right(x, *args, **options).at[..., -1].add(1)

    monkeypatch.setattr(jax.lax, name, wrong)
    assert collectives.wrong_collectives((2**10,)) == [f"{name} of 1 kB"]


def test_the_canary_finds_a_wrong_product(monkeypatch):
    dot = jax.lax.dot
    monkeypatch.setattr(jax.lax, "dot", lambda *a, **o: dot(*a, **o).at[0, 0].add(1))
    expected = [f"a product of matrices in {dtype}" for dtype in ("float32", "bfloat16")]
    assert canary.wrong_products() == expected


def _prints(value) -> tuple[str, ...]:
    return (sys.executable, "-c", f"print({json.dumps(value)!r})")


_HEALTHY = {
    "devices": [{"kind": "cpu", "platform": "cpu", "memory": 2**34}] * 2,
    "wrong": [],
    "collectives": True,
}


@pytest.mark.parametrize(
    ("command", "options", "status", "said"),
    [
        (_prints(_HEALTHY), {}, OK, "2 cpu (cpu), 16.0 GiB each"),
        (_prints(_HEALTHY), {"gpu": True}, WARNING, 'pip install -U "jax[cuda12]"'),
        (_prints(_HEALTHY), {"tpu": True}, WARNING, 'pip install -U "jax[tpu]"'),
        (_prints(_HEALTHY | {"wrong": ["psum of 4 kB"]}), {}, FAILURE, "wrong numbers: psum of"),
        (_prints({"error": "RuntimeError: busy"}), {"tpu": True}, FAILURE, "hold the TPU"),
        ((sys.executable, "-c", "import time; time.sleep(60)"), {}, FAILURE, "within 1 s"),
        ((sys.executable, "-c", "import os; os.abort()"), {}, FAILURE, "exit code -6"),
        ((sys.executable, "-c", "raise SystemExit('no driver')"), {}, FAILURE, "no driver"),
    ],
)  # fmt: skip
def test_what_the_canary_said(command, options, status, said, monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    found = list(
        devices.check(**{"gpu": False, "tpu": False, **options}, command=command, seconds=1)
    )
    assert _worst(found) == status and said in _said(found)
    assert exit_code(found) == (0 if status != FAILURE else 70 if "wrong" in said else 2)


def test_a_gpu_that_a_variable_hides(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    found = list(devices.check(gpu=True, tpu=False, command=_prints(_HEALTHY)))
    assert "JAX_PLATFORMS=cpu hides an NVIDIA GPU" in _said(found, WARNING)


def test_secrets_are_only_set(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "canary-1")
    monkeypatch.setenv("HTTPS_PROXY", "http://me:canary-2@host")
    monkeypatch.setenv("HF_ENDPOINT", "https://me:canary-3@host")
    monkeypatch.setenv("JAX_ENABLE_X64", "1")
    monkeypatch.setenv("UNRELATED", "canary-4")
    found = list(versions.check_environment())
    assert "HF_TOKEN=set" in found[0].said and "JAX_ENABLE_X64=1" in found[0].said
    assert "canary" not in "\n".join(as_lines(found)) + as_json(found)


# --- a run's folder ---


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run's folder, by the functions that make a real one."""
    run = Workdir(tmp_path_factory.mktemp("runs") / "run")
    run.model.mkdir(parents=True)
    (run.model / "model.safetensors").write_bytes(b"best weights")
    write_json(run.config, to_dict(Config()))
    write_json(run.data_report, {"training": {"rows": 1000}})
    best = {"step": 2, "value": 0.5, "weights": run.store.sha256(run.model / "model.safetensors")}
    checkpoints = Checkpoints(run.checkpoints, keep=3)
    for step in (2, 4):
        checkpoints.save(step, {"x": jnp.full(100, step)}, {"step": step, "best": best})
        checkpoints.wait()
    checkpoints.close()
    lines = [json.dumps({"step": step, "name": "loss", "value": 0.5}) for step in (1, 2, 3, 4)]
    run.metrics.write_text("\n".join(lines) + "\n")
    with locked(run.lock):
        pass
    return run.root


@pytest.fixture
def run(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "run"))


def _snapshot(folder: Path) -> dict[str, tuple]:
    """Everything about every entry but the time of the last access."""
    return {
        str(path): (
            path.lstat().st_mode,
            path.lstat().st_ino,
            path.lstat().st_mtime_ns,
            path.read_bytes() if stat.S_ISREG(path.lstat().st_mode) else b"",
        )
        for path in (folder, *folder.rglob("*"))
    }


def _look(run, *, failures=0):
    before = _snapshot(run)
    found = list(run_folder.check(str(run)))
    assert _snapshot(run) == before
    assert sum(f.status == FAILURE for f in found) == failures, _said(found)
    return found


def test_a_healthy_run(run):
    found = _look(run)
    told = _said(found)
    assert _worst(found) == OK
    for expected in (
        "no process writes to it",
        "checkpoint 2 is valid",
        "checkpoint 4 is valid",
        # 1000 rows, 32 a batch, 3 epochs: ceil(31.25) * 3
        "resumes after update 4 of 96",
        "model/ is the best model, of update 2",
        "4 lines, the last of update 4",
    ):
        assert expected in told


def test_a_finished_run(run):
    write_json(run / "all_results.json", {})
    assert "the run is finished" in _said(_look(run))


def _flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_damaged_checkpoint_stays_where_it_is(run):
    _flip(next((run / "checkpoints" / "4" / "state").rglob("d/*")))
    (run / "checkpoints" / "6.tmp").mkdir()
    (run / "checkpoints" / "damaged-1").mkdir()
    found = _look(run, failures=1)
    told = _said(found)
    assert exit_code(found) == 4 and "checkpoint 4 is damaged: " in told
    assert "resumes after update 2 of 96" in told
    assert "6.tmp" in told and "damaged-1 was set aside" in told
    assert "a resume removes the 2 lines after update 2" in told


def test_no_valid_checkpoint(run):
    for step in ("2", "4"):
        (run / "checkpoints" / step / "manifest.json").unlink()
    found = _look(run, failures=3)
    assert "ends with exit code 4" in _said(found) and exit_code(found) == 4


def test_no_checkpoint_yet(run):
    shutil.rmtree(run / "checkpoints")
    (run / "metrics.jsonl").unlink()
    told = _said(_look(run))
    assert "starts from the beginning" in told and "none yet" in told


@pytest.mark.parametrize("kept", [True, False])
def test_another_model_than_the_checkpoint_names(run, kept):
    if kept:
        shutil.copytree(run / "model", run / "model.previous.tmp")
    (run / "model" / "model.safetensors").write_bytes(b"newer weights")
    told = _said(_look(run), WARNING)
    assert "model/ is not the best model" in told
    assert ("a resume restores the old one" if kept else "counts as best") in told


def test_metrics_with_half_a_line_and_with_rubbish(run):
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "na')
    assert _worst(_look(run)) == OK
    (run / "metrics.jsonl").write_text('rubbish\n[]\n{"step": 3}\n')
    assert "2 cannot be read" in _said(_look(run), WARNING)


@pytest.mark.parametrize("content", ["{", "{}", '{"train": 1, "optim": 2, "checkpoint": 3}', None])
def test_no_run(run, content):
    if content is None:
        (run / "config.json").unlink()
    else:
        (run / "config.json").write_text(content)
    found = _look(run, failures=1)
    assert exit_code(found) in (2, 4)


_HOLDER = """
import sys
from pathlib import Path
from flaxbert.storage.lock import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_who_holds_the_lock_is_told_and_the_holder_does_not_notice(run):
    lock = run / ".lock"
    assert holder(lock) is None and holder(run / "no such file") is None
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(lock)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
    ) as process:  # fmt: skip
        assert process.stdout is not None and process.stdout.readline() == "locked\n"
        assert f"in use by pid {process.pid} on " in _said(_look(run))
        process.communicate()
    assert "no process writes to it" in _said(_look(run))


def test_a_lock_that_cannot_be_told(run, monkeypatch):
    read = Path.read_text

    def no_linux(path, *args, **options):
        if str(path) == "/proc/locks":
            raise FileNotFoundError(2, "no such file")
        return read(path, *args, **options)

    monkeypatch.setattr(Path, "read_text", no_linux)
    assert "whether it is in use is unknown" in _said(_look(run))


def test_a_lock_of_another_machine_is_not_free(run):
    """On a shared disk the kernel here knows nothing of it."""
    (run / ".lock").write_text("pid 4711 on somewhere-else\n")
    told = _said(_look(run))
    assert "whether it is in use is unknown (pid 4711 on somewhere-else" in told
    assert "no process writes to it" not in told and "in use by" not in told


@pytest.mark.xdist_group("bucket")  # one server a process
def test_a_run_in_a_bucket_is_only_read(finished):
    server = shared_server()
    server.reset()
    for path in finished.rglob("*"):
        if path.is_file() and path.name != ".lock":
            server.put(f"runs/one/{path.relative_to(finished)}", path.read_bytes())
    found = list(run_folder.check(f"gs://{BUCKET}/runs/one"))
    told = _said(found)
    assert _worst(found) == OK, told
    assert "checkpoint 4 is valid" in told and "resumes after update 4 of 96" in told
    assert "model/ is the best model, of update 2" in told
    assert "no process writes to it" in told
    reading = {"read", "list", "stat", "bucket"}
    assert {request.kind for request in server.requests} <= reading
    name = "runs/one/.lock"
    with lease.Lease(BUCKET, name).held():
        server.requests.clear()
        told = _said(run_folder.check(f"gs://{BUCKET}/runs/one"))
        assert f"pid {os.getpid()} on " in told and "has its lease, renewed at 20" in told
        assert {request.kind for request in server.requests} <= reading
    server.requests.clear()
    server.on_request = lambda request: failure(403, "no") if request.name == name else None
    told = _said(run_folder.check(f"gs://{BUCKET}/runs/one"))
    assert "whether it is in use is unknown" in told and "permission denied" in told
    assert {request.kind for request in server.requests} <= reading
    server.put("runs/one/checkpoints/4/run.json", b"{}")
    assert "checkpoint 4 is damaged" in _said(run_folder.check(f"gs://{BUCKET}/runs/one"), FAILURE)
    server.reset()


# --- the command ---


def test_the_command(run, capsys, monkeypatch):
    defaults = {"command": _prints(_HEALTHY), "seconds": 60}
    monkeypatch.setattr(devices.check, "__kwdefaults__", defaults)
    done = call("doctor", f"--workdir={run}", capsys=capsys)
    assert done.code == 0 and "0 failures" in done.out, done.out + done.err
    _flip(next((run / "checkpoints" / "4" / "state").rglob("d/*")))
    done = call("doctor", f"--workdir={run}", "--json", capsys=capsys)
    values = json.loads(done.out)
    assert done.code == values["exit_code"] == 4
    assert {"versions", "devices", "environment", "workdir"} == {
        finding["subject"] for finding in values["findings"]
    }


@pytest.mark.slow
def test_the_real_command_on_a_real_machine(tmp_path):
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "4", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "flaxbert.doctor", "--json"],
        env=environment | {"PYTHONPATH": str(Path(__file__).parents[1])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = [finding["said"] for finding in json.loads(done.stdout)["findings"]]
    assert "4 cpu (cpu)" in told
    assert "products of matrices, and over 4 devices are those of NumPy" in told
    assert not done.stderr
