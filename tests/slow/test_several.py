"""Several real processes on this machine: what one of them meets, all answer with one code.

A few cases of each kind; `make soak` does many: lost.py, agreed.py, elastic.py, links.py.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time

import numpy as np
import pytest

from tests.commands import ROOT
from tests.hosts import parity
from tests.hosts.cut import Link
from tests.hosts.several import environment, free_port, started, train
from tests.inputs import write_tiny_bert
from tests.soak.lost import flags_for
from tests.soak.resume import compare

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

_HOOK = str(ROOT / "tests" / "soak" / "phases")
_GRACE = 30.0


def flags_of(model, files, workdir, **fields):
    values = {
        "train__steps": 40,
        "train__accumulate": 1,
        "train__eval_every": 20,
        "checkpoint__every": 10,
    }
    return flags_for(model, files, workdir, **(values | fields))


def staying(phase: str, seconds: float, process: int) -> dict[str, str]:
    """Environment that makes one process stay in a phase, and all tell their phases."""
    return {
        "PYTHONPATH": os.pathsep.join([_HOOK, str(ROOT)]),
        "FLAXBERT_TEST_STAY": f"{phase}:{seconds}:python:{process}",
    }


@pytest.fixture(scope="module")
def one_layer(minilm, tmp_path_factory):
    """All but the first process compile at every start: one layer in half the time."""
    return write_tiny_bert(tmp_path_factory.mktemp("models") / "one", num_hidden_layers=1)


@pytest.fixture(scope="module")
def whole(one_layer, reviews, tmp_path_factory):
    """The run of two processes that nobody touched."""
    folder = tmp_path_factory.mktemp("whole")
    flags = flags_of(one_layer, reviews, folder / "run")
    with started(folder, 2, 1, train(flags)) as run:
        assert run.codes() == [0, 0], run.said()
    return folder / "run"


def goes_on(folder, flags, whole, workdir):
    """The same command ends with the bits of the run that nobody touched."""
    with started(folder / "again", 2, 1, train(flags)) as run:
        assert run.codes() == [0, 0], run.said()
    assert compare(whole, workdir) == []


def test_losses_do_not_depend_on_the_processes(tmp_path):
    """Each process compiles for itself, in both dtypes; `make soak` has the other layouts."""
    layout, mesh = "2 x 4", "2 x 2 x 2"
    found = parity.losses(tmp_path / "several", layout, mesh)
    alone = parity.computed(",".join(map(str, parity.MESHES[mesh])))  # on 8 devices here
    for dtype, most in parity.MOST.items():
        assert len(found[dtype]) == parity.UPDATES[dtype]
        difference = np.abs(np.array(found[dtype]) / np.array(alone[dtype]) - 1).max()
        assert difference <= most, (dtype, difference)


# JAX's own client is what it stands on, so one case runs on both lines.
@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.both_lines), 1])
def test_a_killed_process_ends_the_others(victim, one_layer, reviews, tmp_path, whole):
    flags = flags_of(one_layer, reviews, tmp_path / "run")
    with started(tmp_path, 2, 1, train(flags)) as run:
        run.wait_for("update 15/")
        run.signal(signal.SIGKILL, [victim])
        begun = time.monotonic()
        codes = run.codes()
        assert time.monotonic() - begun <= _GRACE
    assert codes[victim] == -signal.SIGKILL and codes[1 - victim] == 71, run.said()
    assert f"process {1 - victim} ends: another process of the run is gone" in run.text(1 - victim)
    goes_on(tmp_path, flags, whole, tmp_path / "run")


@pytest.mark.both_lines
def test_one_that_is_started_again_alone_ends_the_others(one_layer, reviews, tmp_path):
    """Before anybody has missed it: JAX's coordinator takes that for an error and aborts all."""
    flags = flags_of(one_layer, reviews, tmp_path / "run", train__steps=4000)
    port = free_port()
    with started(tmp_path / "logs", 2, 1, train(flags), ports=[port, port]) as run:
        run.wait_for("update 5/")
        run.signal(signal.SIGKILL, [1])
        with started(tmp_path / "again", 1, 1, train(flags), env=environment(2, 1, 1, port)):
            assert run.children[0].wait(_GRACE) == 71, run.said()
    assert "another process of the run is gone" in run.text(0)


def test_a_doctor_beside_a_run_does_not_end_it(one_layer, reviews, tmp_path):
    """It has the variables of a process of the run, and does not join it."""
    flags = flags_of(one_layer, reviews, tmp_path / "run", train__steps=4000)
    port = free_port()
    with started(tmp_path / "logs", 2, 1, train(flags), ports=[port, port]) as run:
        run.wait_for("update 5/")
        doctor, process_1 = ["-m", "flaxbert.diagnose.canary"], environment(2, 1, 1, port)
        with started(tmp_path / "doctor", 1, 1, doctor, env=process_1) as asked:
            assert asked.codes() == [0], asked.said()
        run.signal(signal.SIGTERM, [0])
        assert run.codes() == [75, 75], run.said()


@pytest.mark.parametrize(
    ("phase", "asked"),
    [("compiling", [1]), ("evaluating", [1]), ("saving", [0, 1])],
)
def test_one_signal_stops_all(phase, asked, one_layer, reviews, tmp_path, whole):
    flags = flags_of(one_layer, reviews, tmp_path / "run")
    with started(tmp_path, 2, 1, train(flags), env=staying(phase, 1.0, asked[0])) as run:
        run.wait_for(f"phase: {phase}", process=asked[0])
        run.signal(signal.SIGTERM, asked)
        begun = time.monotonic()
        assert run.codes() == [75, 75], run.said()
        assert time.monotonic() - begun <= _GRACE
        if phase == "compiling":  # nothing is saved: the other one is told by this one
            assert all(run.text(i).count("Run the same command again.") == 1 for i in range(2))
    goes_on(tmp_path, flags, whole, tmp_path / "run")


def test_a_resume_on_other_processes_and_devices(one_layer, reviews, tmp_path):
    alone, workdir = tmp_path / "alone", tmp_path / "run"
    with started(tmp_path / "1", 1, 4, train(flags_of(one_layer, reviews, alone))) as run:
        assert run.codes() == [0], run.said()
    # Three layouts one after the other; each is asked to stop on its way.
    for count, devices, words in ((2, 2, "update 10/"), (1, 2, "update 20/"), (2, 1, "")):
        flags = flags_of(one_layer, reviews, workdir)
        with started(tmp_path / f"{count}{devices}", count, devices, train(flags)) as run:
            if words:
                run.wait_for(words)
                run.signal(signal.SIGTERM, [count - 1])
            assert run.codes() == [75 if words else 0] * count, run.said()
    losses = [_losses(folder) for folder in (alone, workdir)]
    assert len(losses[0]) == len(losses[1]) == 8
    assert np.abs(np.array(losses[0]) / np.array(losses[1]) - 1).max() <= 1e-5
    results = [json.loads((f / "all_results.json").read_text()) for f in (alone, workdir)]
    assert results[0]["train_samples"] == results[1]["train_samples"]


def _losses(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [x["value"] for x in lines if (x["split"], x["name"]) == ("train", "loss")]


def test_a_stopped_process_is_lost(one_layer, reviews, tmp_path):
    flags = flags_of(one_layer, reviews, tmp_path / "run", processes__lost_after=6)
    with started(tmp_path, 2, 1, train(flags)) as run:
        run.wait_for("update 5/")
        run.signal(signal.SIGSTOP, [1])
        begun = time.monotonic()
        run.children[0].wait(_GRACE)
        assert time.monotonic() - begun >= 5
        run.signal(signal.SIGCONT, [1])
        assert run.codes() == [71, 71], run.said()


def test_a_slow_process_is_waited_for(one_layer, reviews, tmp_path):
    flags = flags_of(one_layer, reviews, tmp_path / "run", processes__lost_after=4)
    with started(tmp_path, 2, 1, train(flags), env=staying("training", 12.0, 1)) as run:
        assert run.codes() == [0, 0], run.said()


def test_a_stuck_process_dumps_its_stack(one_layer, reviews, tmp_path):
    flags = flags_of(one_layer, reviews, tmp_path / "run", processes__stuck_after=5)
    with started(tmp_path, 2, 1, train(flags), env=staying("training", 600.0, 1)) as run:
        assert run.codes() == [70, 70], run.said()
    assert "no progress for" in run.text(0)
    assert "sitecustomize.py" in run.text(1)  # where it is stuck
    assert "in train" in run.text(0)


def test_a_cut_link(one_layer, reviews, tmp_path):
    flags = flags_of(one_layer, reviews, tmp_path / "run", processes__lost_after=6)
    port = free_port()
    with (
        Link(port) as link,
        started(tmp_path, 2, 1, train(flags), ports=[port, link.port]) as run,
    ):
        run.wait_for("update 5/")
        link.cut()
        begun = time.monotonic()
        assert run.codes() == [71, 71], run.said()
        assert time.monotonic() - begun <= _GRACE


def test_an_error_in_one_process_ends_all_with_its_code(one_layer, reviews, tmp_path):
    """Its message comes once, from the process that has it."""
    flags = [
        flag for flag in flags_of(one_layer, reviews, tmp_path / "run") if "data.train" not in flag
    ]
    missing = tmp_path / "missing.csv"
    with started(tmp_path, 2, 1, train([*flags, f"--config.data.train={missing}"])) as run:
        assert run.codes() == [3, 3], run.said()
    assert "Traceback" not in run.text(0) + run.text(1)
    assert run.text(0).count("flaxbert: error:") == 1
    assert "because of process 0" in run.text(1)


def test_a_config_that_fails_on_one_machine_ends_all(tmp_path):
    """Before anything else has been read; nobody waits for those who never come."""
    config = tmp_path / "mine.py"
    config.write_text(
        "import os\n"
        "from configs import text\n"
        "def get_config(arg=''):\n"
        "    if os.environ['JAX_PROCESS_ID'] == '1':\n"
        "        raise FileNotFoundError('labels.txt')\n"
        "    return text.get_config()\n"
    )
    begun = time.monotonic()
    with started(tmp_path / "logs", 2, 1, train([f"--config={config}"])) as run:
        assert run.codes() == [2, 2], run.said()
    assert time.monotonic() - begun <= _GRACE
    assert "mine.py:5: labels.txt" in run.text(1)
    assert "because of process 1" in run.text(0)
    assert "Traceback" not in run.text(0) + run.text(1)


def test_a_config_that_asks_jax_for_devices_is_refused(tmp_path):
    config = tmp_path / "mine.py"
    config.write_text(
        "import jax\n"
        "from configs import text\n"
        "def get_config(arg=''):\n"
        "    config = text.get_config()\n"
        "    config.train.batch_size = jax.device_count()\n"
        "    return config\n"
    )
    with started(tmp_path / "logs", 2, 1, train([f"--config={config}"])) as run:
        assert run.codes() == [2, 2], run.said()
    assert "asks it for devices" in run.text(0)


def test_a_taken_port_is_told(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        ports = [other.getsockname()[1]] * 2
        with started(tmp_path, 2, 1, train(["--config=configs/text.py"]), ports=ports) as run:
            run.children[0].wait(60)
    assert run.children[0].returncode == 2, run.said()
    assert f"127.0.0.1:{ports[0]}" in run.text(0) and "Choose a free port" in run.text(0)


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_commands_of_one_process_refuse_several(command, tmp_path):
    with started(tmp_path, 2, 1, ["-m", f"flaxbert.{command}", "--model=model"]) as run:
        assert run.codes() == [2, 2], run.said()
    assert "runs in one process" in run.text(0)


def test_a_workdir_in_use_and_different_configs(one_layer, reviews, tmp_path):
    flags = flags_of(one_layer, reviews, tmp_path / "run", train__steps=4000)
    with started(tmp_path / "a", 2, 1, train(flags)) as first:
        first.wait_for("update 5/")
        with started(tmp_path / "b", 2, 1, train(flags)) as second:
            assert second.codes() == [2, 2], second.said()
        assert "is in use by pid" in second.text(0)
        first.signal(signal.SIGTERM, [0, 1])
        assert first.codes() == [75, 75], first.said()


def test_wrong_exchanges_are_refused(one_layer, reviews, tmp_path):
    flags = flags_of(one_layer, reviews, tmp_path / "run")
    env = staying("none", 0, 0) | {"FLAXBERT_TEST_WRONG": "psum_scatter"}
    with started(tmp_path, 2, 1, train(flags), env=env) as run:
        assert run.codes() == [70, 70], run.said()
    assert "psum_scatter of 1 kB" in run.text(0)
    assert "Traceback" not in run.text(0)


def test_all_try_again_to_save_what_one_could_not(one_layer, reviews, tmp_path, whole):
    """In Orbax's own thread: the others are at its barrier."""
    flags = flags_of(one_layer, reviews, tmp_path / "run")
    env = staying("none", 0, 0) | {"FLAXBERT_TEST_SAVE": "1:1"}
    with started(tmp_path, 2, 1, train(flags), env=env) as run:
        assert run.codes() == [0, 0], run.said()
    assert "process 1: saving" in run.text(0) and "No space left on device" in run.text(0)
    assert "Trying once more" in run.text(0)
    assert compare(whole, tmp_path / "run") == []


def test_a_save_that_fails_again_ends_all(one_layer, reviews, tmp_path):
    flags = flags_of(one_layer, reviews, tmp_path / "run")
    env = staying("none", 0, 0) | {"FLAXBERT_TEST_SAVE": "1:9"}
    with started(tmp_path, 2, 1, train(flags), env=env) as run:
        assert run.codes() == [4, 4], run.said()
    assert "Traceback" not in run.text(0) + run.text(1)


def test_other_weights_on_one_machine_are_refused(one_layer, reviews, tmp_path):
    flags = flags_of(one_layer, reviews, tmp_path / "run")
    env = staying("none", 0, 0) | {"FLAXBERT_TEST_WEIGHTS": "1"}
    with started(tmp_path, 2, 1, train(flags), env=env) as run:
        assert run.codes() == [4, 4], run.said()
    assert "has read other weights" in run.text(0) + run.text(1)


def test_a_mesh_that_leaves_a_process_out_is_refused(one_layer, reviews, tmp_path):
    flags = flags_of(one_layer, reviews, tmp_path / "run", mesh__data=2)
    with started(tmp_path, 2, 2, train(flags)) as run:
        assert run.codes() == [2, 2], run.said()
    assert "none of process 1" in run.text(0)
