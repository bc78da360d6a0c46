"""tpu_vm.sh against a stand-in cloud: what it asks for and in which order, and when it goes on."""

from __future__ import annotations

import signal
import stat
import subprocess
import time

import pytest

from tests.commands import ROOT
from tests.launch.cloud import Cloud

TOKEN = "hf_0123456789secret"
SSH = [
    "--ssh-flag=-oConnectTimeout=20",
    "--ssh-flag=-oServerAliveInterval=15",
    "--ssh-flag=-oServerAliveCountMax=4",
]
START = ["tpu-vm ssh", "tpu-vm scp", "tpu-vm ssh", "tpu-vm scp", "tpu-vm ssh"]  # setup and start
SURVEY = ["tpu-vm describe", "tpu-vm ssh"]
FOLLOW = ["tpu-vm ssh"]
AGAIN = ["queued-resources describe", "queued-resources delete", "queued-resources create"]


@pytest.fixture
def cloud(tmp_path):
    """Returns a function that makes the cloud; what trains in it ends with the test."""
    made = []

    def make(plan=(), **fields) -> Cloud:
        made.append(Cloud(tmp_path / "cloud", list(plan), **fields))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_a_run_from_nothing(cloud):
    here = cloud(clone=ROOT)
    done = here.call("run", "--project=p 1", HF_TOKEN=TOKEN)
    assert done.code == 0, done.err
    calls = here.lines("calls")
    where = ["--zone=us-west4-a", "--project=p 1"]
    tpus = ["compute", "tpus"]
    states = [*tpus, "queued-resources", "list", "--format=value(name.basename(),state.state)"]
    create = [
        *["queued-resources", "create", "bert", "--node-id=bert"],
        *["--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite", "--spot"],
    ]
    # GONE, then create, WAITING_FOR_RESOURCES, PROVISIONING, ACTIVE.
    head = [[*states, *where], [*tpus, *create, *where], *[[*states, *where]] * 3]
    assert calls[: len(head)] == head

    def ssh(worker, command):
        return [*tpus, "tpu-vm", "ssh", "bert", f"--worker={worker}", *SSH, command, *where]

    def scp(*names):
        sent = [word.rpartition("/")[2] for word in names]
        return [*tpus, "tpu-vm", "scp", *sent, "--worker=all", "--scp-flag=-p", *where]

    script = "bash flaxbert-launch/tpu_worker.sh"
    look = "if [ -f flaxbert-launch/tpu_worker.sh ]; then bash flaxbert-launch/tpu_worker.sh state;"
    look = f'--command={look} else echo "flaxbert-state none 0"; fi'
    count = [
        *[*tpus, "tpu-vm", "describe", "bert", "--format=value(networkEndpoints.len())"],
        *where,
    ]
    rest = [call for call in calls[len(head) :] if call[3] != "list"]
    for call in rest:
        if call[3] == "scp":  # from a folder of this start
            call[4:-4] = [word.rpartition("/")[2] for word in call[4:-4]]
    assert rest == [
        *[count, ssh("all", look)],
        ssh("all", "--command=umask 077; mkdir -p flaxbert-launch"),
        scp("source.tar.gz", "stamp", "tpu_worker.sh", "bert:flaxbert-launch/"),
        ssh("all", f"--command={script} setup"),
        scp("arguments", "hf_token", "bert:flaxbert-launch/"),
        ssh("all", f"--command={script} start"),
        ssh(0, f"--command={script} follow"),
        *[count, ssh("all", look)],
    ]
    assert "worker 0 attempt 0 trains" in done.out and "worker 1" not in done.out
    assert "WAITING_FOR_RESOURCES" in done.err and "the TPU costs until" in done.err
    assert {run["worker"] for run in here.lines("runs")} == {0, 1}
    installs = (here.folder / "installs").read_text()
    assert installs.count("python3 -m pip install --quiet --target=tools uv") == 2
    assert installs.count("uv venv --quiet --allow-existing --python=3.12 venv") == 2
    assert "--reinstall-package=flaxbert ./source[tpu,gcs]" in installs


def test_the_token_goes_as_a_file(cloud):
    here = cloud(state="ACTIVE")
    done = here.call("run", HF_TOKEN=TOKEN)
    assert done.code == 0, done.err
    assert [run["token"] for run in here.lines("runs")] == [TOKEN, TOKEN]
    assert TOKEN not in (here.folder / "calls").read_text() + done.out + done.err
    for index in range(2):
        folder = here.folder / str(index) / "flaxbert-launch"
        assert stat.S_IMODE((folder / "hf_token").stat().st_mode) == 0o600
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_without_a_token_there_is_none(cloud):
    here = cloud(state="ACTIVE", workers=1)  # not an empty one, nor the one of the last start
    (here.folder / "0" / "flaxbert-launch").mkdir()
    (here.folder / "0" / "flaxbert-launch" / "hf_token").write_text(TOKEN)
    assert here.call("run").code == 0
    assert [run["token"] for run in here.lines("runs")] == [None]


def test_overrides_arrive_as_they_were(cloud):
    overrides = [
        '--config.data.text=a column\'s "name"',
        "--config.model.path=two  spaces $HOME `id` \\n; rm -rf /nothing & | * ~",
        "--config.data.label=two\nlines",
        "--config.data.train=ein größerer Text.csv",
        "",
    ]
    here = cloud(state="ACTIVE")
    done = here.call("run", "--config=configs/glue.py:mrpc", "--", *overrides)
    assert done.code == 0, done.err
    module = ["-m", "flaxbert.train", "--config=configs/glue.py:mrpc", "--workdir=gs://bucket/run"]
    assert [run["arguments"] for run in here.lines("runs")] == [[*module, *overrides]] * 2
    assert not any("--config" in word for call in here.lines("calls") for word in call)


def test_a_preempted_tpu_is_created_again_and_the_run_resumed(cloud):
    here = cloud(["SUSPENDED"], state="ACTIVE")
    done = here.call("run", "--", "--config.seed=1")
    assert done.code == 0, done.err
    assert here.verbs() == [
        *[*SURVEY, *START, *FOLLOW],
        # The connection to the lost machine hangs until the list tells; then nobody answers.
        "tpu-vm describe",
        *AGAIN,
        *[*SURVEY, *START, *FOLLOW, *SURVEY],
    ]
    delete = next(call for call in here.lines("calls") if call[3] == "delete")
    assert delete[4:] == ["bert", "--force", "--quiet", "--zone=us-west4-a"]
    assert "bert is lost (no capacity); re-creation 1 of 20" in done.err
    runs = here.lines("runs")
    assert len(runs) == 4 and all(run["arguments"] == runs[0]["arguments"] for run in runs)


def test_re_creations_are_bounded(cloud):
    here = cloud(["SUSPENDED"] * 9, state="ACTIVE", workers=1)
    done = here.call("run", "--recreations=1")
    assert done.code == 75 and "created again 1 times (--recreations)" in done.err
    assert here.verbs().count("queued-resources create") == 1


def test_a_tpu_deleted_by_somebody_else_stays_deleted(cloud):
    here = cloud(["GONE"], state="ACTIVE")
    done = here.call("run")
    assert done.code == 75 and "was deleted by somebody else" in done.err
    assert "queued-resources create" not in here.verbs()


@pytest.mark.parametrize(("codes", "answer"), [([2, 2], 2), ([71, 3], 3), ([5, 137], 5)])
def test_it_stops_where_a_new_start_cannot_help(cloud, codes, answer):
    here = cloud([codes], state="ACTIVE")
    done = here.call("run")
    assert done.code == answer and f"ended with {answer}" in done.err
    assert len(here.lines("runs")) == 2 and here.verbs() == [*SURVEY, *START, *FOLLOW, *SURVEY]


def test_restarts(cloud):
    here = cloud([[75, 75], [71, 70]], state="ACTIVE")
    done = here.call("run")
    assert done.code == 0, done.err
    assert "ended with 75; restart 1 of 10" in done.err
    assert "ended with 70; restart 2 of 10" in done.err
    # Installed once: the workers have the stamp of this checkout.
    assert (here.folder / "installs").read_text().count("uv venv") == 2


def test_restarts_are_bounded(cloud):
    here = cloud([71] * 9, state="ACTIVE", workers=1)
    done = here.call("run", "--restarts=1")
    assert done.code == 71 and "after 1 restarts" in done.err
    assert len(here.lines("runs")) == 2


def test_a_worker_that_does_not_end_is_ended(cloud):
    here = cloud([[71, "wait"]], state="ACTIVE")
    done = here.call("run", "--restarts=0")
    assert done.code == 137, done.err


def test_workers_that_never_answer_are_replaced(cloud):
    sick = "READY\tUNHEALTHY_MAINTENANCE"
    here = cloud(state="ACTIVE", workers=1, broken={"tpu-vm ssh": 5}, health=sick)
    done = here.call("run")
    assert done.code == 0, done.err
    assert here.verbs()[:14] == [*SURVEY * 5, "tpu-vm describe", *AGAIN]
    assert "ssh-add" in done.err


def test_a_worker_that_does_not_answer_while_others_do_is_replaced(cloud):
    here = cloud(state="ACTIVE", silent=[1])
    done = here.call("run")
    assert done.code == 0, done.err
    assert here.verbs()[:13] == [*SURVEY * 5, *AGAIN]


def test_a_healthy_tpu_that_cannot_be_reached_from_here_is_left_alone(cloud):
    here = cloud(state="ACTIVE", broken={"tpu-vm ssh": 99})
    done = here.call("run")
    assert done.code == 4 and "Look at ssh-agent" in done.err
    assert "queued-resources delete" not in here.verbs()


def test_preemptions_do_not_add_up_to_a_tpu_that_does_not_answer(cloud):
    here = cloud([*["SUSPENDED"] * 4, "UNREACHED"], state="ACTIVE", workers=1)
    done = here.call("run")
    assert done.code == 0, done.err
    assert "workers do not answer (2 of 5; the TPU is ACTIVE)" in done.err
    assert here.verbs().count("queued-resources create") == 4


def test_a_re_creation_is_tried_again(cloud):
    fails = {"queued-resources delete": 2, "queued-resources create": 2}
    here = cloud(["SUSPENDED"], state="ACTIVE", workers=1, broken=fails)
    done = here.call("run")
    assert done.code == 0, done.err
    for what in fails:
        assert here.verbs().count(what) == 3


@pytest.mark.parametrize("what", ["delete", "create"])
def test_a_re_creation_is_not_tried_for_ever(what, cloud):
    here = cloud(["SUSPENDED"], state="ACTIVE", broken={f"queued-resources {what}": 99})
    done = here.call("run")
    assert done.code == 4 and f"could not be {what}d" in done.err
    assert here.verbs().count(f"queued-resources {what}") == 8


def test_what_cannot_be_created_at_first_is_told_at_once(cloud):
    here = cloud(broken={"queued-resources create": 1})
    done = here.call("run")
    assert done.code == 4 and "could not be created" in done.err


def test_a_failing_setup_ends_the_run(cloud):
    here = cloud(state="ACTIVE", workers=1)
    (here.folder / "uv").write_text("#!/bin/sh\necho no space; exit 1\n")
    done = here.call("run")
    assert done.code == 4 and "setup failed 3 times" in done.err and "no space" in done.out
    assert here.lines("runs") == []


def test_create_twice(cloud):
    here = cloud()
    assert here.call("create", "--on-demand").code == 0
    (call,) = [call for call in here.lines("calls") if call[3] == "create"]
    assert "--spot" not in call
    assert here.call("create").code == 0
    assert here.verbs() == ["queued-resources create"]


def test_status_stop_logs_and_taking_over(cloud):
    here = cloud(["wait"], state="ACTIVE")
    first = here.start("run")
    until = time.monotonic() + 20
    # Before, what it has started is in the foreground: without Ctrl-C of its own that ends first.
    while not any("follow" in str(call) for call in here.lines("calls")):
        assert time.monotonic() < until
        time.sleep(0.05)
    first.send_signal(signal.SIGINT)
    _, err = first.communicate(timeout=20)
    assert first.returncode == 130 and "the training goes on" in err
    done = here.call("status")
    assert done.err.splitlines() == ["tpu_vm.sh: bert: ACTIVE", "tpu_vm.sh: 2 worker(s): running"]
    second = here.start("run")
    while "following" not in (line := second.stderr.readline()):  # type: ignore[union-attr]
        assert line
    assert here.call("stop").code == 0
    _, err = second.communicate(timeout=20)
    assert second.returncode == 75 and "stopped; run goes on from gs://bucket/run" in err
    assert len(here.lines("runs")) == 2
    assert "2 worker(s): stopped with 75" in here.call("status").err
    assert "worker 1 attempt 0 trains" in here.call("logs", "--worker=1").out


def test_delete(cloud):
    here = cloud(state="ACTIVE", broken={"queued-resources delete": 1})
    done = here.call("delete")
    assert done.code == 4 and "may still cost money" in done.err
    assert here.call("delete").code == 0
    done = here.call("delete")
    assert done.code == 0 and "nothing costs" in done.err
    assert here.verbs() == ["queued-resources delete"] * 2


def test_a_cloud_that_does_not_answer(cloud):
    here = cloud(broken={"queued-resources list": 99})
    done = here.call("create")
    assert done.code == 4 and "check gcloud auth login" in done.err
    assert len(here.lines("calls")) == 1


def test_a_cloud_that_does_not_answer_for_a_while(cloud):
    here = cloud(["UNLISTED"], state="ACTIVE", workers=1)
    done = here.call("run", POLL_SECONDS="60")  # looks of its own would use the failures up
    assert done.code == 0 and "attempt 3 of 8" in done.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--workdir=/tmp/run"], "a spot machine's disk goes with it"),
        (["run", "--on-demand", "--workdir=runs/a"], "the worker's own /PATH"),
        (["run", "--workdir="], "run needs --workdir=gs://BUCKET/FOLDER"),
        (["run", "--config=configs/none.py"], "no such file"),
        (["run", "--config=/etc/passwd"], "expected one in"),
        (["run", "--config.seed=1"], "Overrides of the config stand after --"),
        (["run", "--restarts=many"], "whole numbers"),
        (["create", "--name=A b"], "expected lower-case letters"),
        (["create", "--name="], "--name=NAME or set TPU_NAME"),
        (["create", "--zone="], "--zone=ZONE or set ZONE"),
        (["creat"], "unknown command creat"),
    ],
)
def test_mistakes_cost_nothing(cloud, arguments, message):
    here = cloud()
    done = here.call(*arguments)
    assert done.code == 2 and message in done.err
    assert here.lines("calls") == []


def test_several_workers_share_no_disk(cloud):
    here = cloud(state="ACTIVE")
    done = here.call("run", "--workdir=/tmp/run", "--on-demand")
    assert done.code == 2 and "2 workers need one that all of them see" in done.err
    assert here.lines("runs") == []


def test_usage_and_nothing_is_traced():
    script = ROOT / "launch" / "tpu_vm.sh"
    for arguments in ([], ["--help"]):
        done = subprocess.run(["bash", script, *arguments], capture_output=True, text=True)
        assert done.returncode == 0 and "launch/tpu_vm.sh COMMAND" in done.stdout
    for path in (ROOT / "launch").iterdir():
        assert "set -x" not in path.read_text() and "xtrace" not in path.read_text()
