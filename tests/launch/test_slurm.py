"""slurm.sbatch against a stand-in srun and scontrol: the step, the code that counts, the queue.

The stand-in srun really starts the tasks, with Slurm's variables, and as Slurm does signals every
process of a task.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.commands import ROOT, Done
from tests.launch.cloud import write_program

_SRUN = """
import json, os, subprocess, sys
folder = os.environ["CLUSTER"]
options = [a for a in sys.argv[1:4]]
with open(f"{folder}/calls", "a") as file: file.write(json.dumps(["srun", *options]) + "\\n")
count = int(os.environ["SLURM_NTASKS"])
tasks = [
    subprocess.Popen(
        sys.argv[4:], env={**os.environ, "SLURM_PROCID": str(i)}, start_new_session=True
    )
    for i in range(count)
]
with open(f"{folder}/tasks", "w") as file: file.write(" ".join(str(task.pid) for task in tasks))
codes = [task.wait() for task in tasks]
sys.exit(max(code if code >= 0 else 128 - code for code in codes))
"""

_SCONTROL = """
import json, os, sys
folder = os.environ["CLUSTER"]
call = ["scontrol", *sys.argv[1:]]
with open(f"{folder}/calls", "a") as file: file.write(json.dumps(call) + "\\n")
if "show" in sys.argv: print(f"JobId=77 JobState={os.environ['STATE']} Reason=None")
"""

_TRAIN = """
import json, os, signal, sys, time
folder, index = os.environ["CLUSTER"], int(os.environ["SLURM_PROCID"])
word = os.environ["CODES"].split()[index]
with open(f"{folder}/runs-{index}", "w") as file: json.dump(sys.argv[1:], file)
if word == "wait":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    open(f"{folder}/waits-{index}", "w").close()
    time.sleep(60)
if word == "lost": os.killpg(os.getpgid(0), 9)
sys.exit(int(word))
"""


class _Cluster:
    def __init__(self, folder: Path):
        self.folder = folder
        for name, text in (("srun", _SRUN), ("scontrol", _SCONTROL), ("python", _TRAIN)):
            write_program(folder / "bin" / name, text)
        (folder / "submit").mkdir()

    def start(self, codes: str, *arguments: str, **environment: str) -> subprocess.Popen:
        return subprocess.Popen(
            ["bash", str(ROOT / "launch" / "slurm.sbatch"), *arguments],
            cwd=self.folder / "submit",
            env={
                "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
                "CLUSTER": str(self.folder),
                "SLURM_SUBMIT_DIR": str(self.folder / "submit"),
                "SLURM_JOB_ID": "77",
                "SLURM_NTASKS": str(len(codes.split())),
                "STATE": "RUNNING",
                "CODES": codes,
                **environment,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def call(self, codes: str, *arguments: str, **environment: str) -> Done:
        process = self.start(codes, *(arguments or ("--workdir=/shared/run",)), **environment)
        out, err = process.communicate(timeout=30)
        return Done(process.returncode, out, err)

    def calls(self) -> list[list[str]]:
        path = self.folder / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def cluster(tmp_path) -> _Cluster:
    return _Cluster(tmp_path)


SRUN = ["srun", "--kill-on-bad-exit=0", "--wait=300", "--gpu-bind=none"]
SHOW = ["scontrol", "--oneliner", "show", "job", "77"]
REQUEUE = ["scontrol", "requeue", "77"]


@pytest.mark.parametrize(
    ("codes", "answer", "again"),
    [
        ("0 0", 0, False),
        ("71 3 71", 3, False),
        ("2 2", 2, False),
        ("71 4", 4, False),
        ("5 5", 5, False),
        ("1 71", 1, False),
        ("75 75", 75, True),
        ("71 71 70", 70, True),
        ("71 lost", 137, True),
        ("71 0", 71, True),
    ],
)
def test_the_code_that_counts(cluster, codes, answer, again):
    done = cluster.call(codes)
    assert done.code == answer, done.err
    assert cluster.calls() == [SRUN, *([SHOW, REQUEUE] if again else [])]
    assert list((cluster.folder / "submit").iterdir()) == []  # the tasks' codes


def test_arguments_arrive_as_they_were(cluster):
    arguments = ["--config=configs/text.py", "--workdir=/a b", '--config.data.text=it\'s "$HOME" *']
    assert cluster.call("0 0", *arguments).code == 0
    for index in range(2):
        run = json.loads((cluster.folder / f"runs-{index}").read_text())
        assert run == ["-m", "flaxbert.train", *arguments]


def test_restarts_are_bounded_but_not_after_75(cluster):
    done = cluster.call("71 71", SLURM_RESTART_COUNT="10")
    assert done.code == 71 and "after 10 restarts" in done.err and cluster.calls() == [SRUN]
    assert cluster.call("70", SLURM_RESTART_COUNT="10", FLAXBERT_RESTARTS="11").code == 70
    assert cluster.calls()[1:] == [SRUN, SHOW, REQUEUE]
    assert cluster.call("75", SLURM_RESTART_COUNT="999").code == 75
    assert cluster.calls()[-1] == REQUEUE


def test_a_cancelled_job_does_not_come_back(cluster):
    done = cluster.call("75 75", STATE="COMPLETING")
    assert done.code == 75 and "not queued again" in done.err
    assert REQUEUE not in cluster.calls()


def test_a_signal_before_the_time_limit(cluster):
    process = cluster.start("wait wait", "--workdir=/shared/run")
    until = time.monotonic() + 20
    while not all((cluster.folder / f"waits-{index}").exists() for index in range(2)):
        assert time.monotonic() < until
        time.sleep(0.02)
    for pid in (cluster.folder / "tasks").read_text().split():
        os.killpg(int(pid), signal.SIGTERM)  # the shell of the task and the command in it
    process.send_signal(signal.SIGTERM)  # some clusters signal the script too
    assert process.wait(timeout=20) == 75
    process.communicate()
    assert cluster.calls()[-1] == REQUEUE


def test_a_workdir_is_needed(cluster):
    done = cluster.call("0", "--config=configs/sst2.py")
    assert done.code == 2 and "a folder that all nodes see" in done.err
    assert cluster.calls() == []


def test_what_it_asks_for():
    text = (ROOT / "launch" / "slurm.sbatch").read_text()
    options = [line.removeprefix("#SBATCH ") for line in text.splitlines() if "#SBATCH" in line[:7]]
    asked = dict(option.removeprefix("--").partition("=")[::2] for option in options)
    assert asked["signal"] == "TERM@120"  # to the tasks: B: would signal the script only
    assert "requeue" in asked and asked["open-mode"] == "append"
    # JAX gives each task the GPU of its local number.
    assert asked["ntasks-per-node"] == asked["gpus-per-node"]
    # Slurm reads options up to the first command only.
    assert text.rindex("#SBATCH") < text.index("set -euo pipefail")
