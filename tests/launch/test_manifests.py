"""The manifests: against their published schemas, and rule by rule against the exit codes."""

from __future__ import annotations

import copy
import json
import os
import subprocess

import jsonschema
import pytest
import yaml

from tests.commands import ROOT
from tests.launch import schemas
from tests.launch.cloud import write_program

SKYPILOT = yaml.safe_load((ROOT / "launch" / "skypilot.yaml").read_text())
JOBSET = yaml.safe_load((ROOT / "launch" / "gke_jobset.yaml").read_text())
PUBLISHED = [
    pytest.mark.slow,
    pytest.mark.skipif(not schemas.is_there(), reason="make test-slow fetches the schemas"),
]


def _published(test):
    for mark in PUBLISHED:
        test = mark(test)
    return test


def _lost(asked, kept, where="") -> list[str]:
    """Returns what a model did not take over: it drops names that it does not know."""
    if isinstance(asked, dict) and isinstance(kept, dict):
        lost = [f"{where}.{name}" for name in asked.keys() - kept.keys()]
        for name in asked.keys() & kept.keys():
            lost += _lost(asked[name], kept[name], f"{where}.{name}")
        return lost
    if isinstance(asked, list) and isinstance(kept, list) and len(asked) == len(kept):
        return [
            name
            for index, pair in enumerate(zip(asked, kept, strict=True))
            for name in _lost(*pair, f"{where}[{index}]")
        ]
    return [] if asked == kept else [where]


def _job(manifest) -> dict:
    (replicated,) = manifest["spec"]["replicatedJobs"]
    return replicated["template"]["spec"]


@_published
def test_the_jobset_is_what_is_published():
    model = schemas.jobset_model()
    assert _lost(JOBSET, model.from_dict(copy.deepcopy(JOBSET)).to_dict()) == []
    wrong = copy.deepcopy(JOBSET)
    pod = _job(wrong)["template"]["spec"]
    pod["terminationGracePeriodSecond"] = 3
    lost = _lost(wrong, model.from_dict(copy.deepcopy(wrong)).to_dict())
    assert [name.rpartition(".")[2] for name in lost] == ["terminationGracePeriodSecond"]
    wrong = copy.deepcopy(JOBSET)
    _job(wrong)["podFailurePolicy"]["rules"][0]["action"] = "Fail"
    with pytest.raises(ValueError, match="FailJob"):
        model.from_dict(wrong)


@_published
def test_the_task_is_what_skypilot_takes():
    published = schemas.skypilot()
    jsonschema.validate(SKYPILOT, published["task"])
    jsonschema.validate(SKYPILOT["resources"], published["resources"])
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**SKYPILOT, "nodes": 2}, published["task"])
    wrong = copy.deepcopy(SKYPILOT["resources"])
    wrong["job_recovery"]["recover_on_exit_codes"] = [75, 300]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, published["resources"])


def test_what_the_jobset_does_with_each_code():
    job = _job(JOBSET)
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"] == {
        "containerName": "train",
        "operator": "In",
        "values": [2, 3, 4, 5],
    }
    # Any other failure of a pod ends the Job, and with it all other pods; no pod is replaced alone.
    assert job["backoffLimit"] == 0
    assert job["template"]["spec"]["restartPolicy"] == "Never"  # a podFailurePolicy asks for it
    policy = JOBSET["spec"]["failurePolicy"]
    (rule,) = policy["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    assert 0 < policy["maxRestarts"] <= 1000


def test_the_pods_of_a_slice():
    job = _job(JOBSET)
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    selector = pod["nodeSelector"]
    chips = eval(selector["cloud.google.com/gke-tpu-topology"].replace("x", "*"))
    assert job["completions"] == job["parallelism"]
    assert job["completions"] * container["resources"]["limits"]["google.com/tpu"] == chips
    assert job["completionMode"] == "Indexed"  # a pod knows its number
    assert container["name"] == "train"
    assert container["command"][:3] == ["python", "-m", "flaxbert.train"]  # no shell before it
    flags = dict(flag.split("=") for flag in container["command"][3:])
    assert flags["--workdir"].startswith("gs://")
    assert (ROOT / flags["--config"]).is_file()
    assert pod["terminationGracePeriodSeconds"] >= 60  # longest update and save: under 30
    assert JOBSET["spec"]["network"] == {"enableDNSHostnames": True, "subdomain": "flaxbert"}
    assert {port["containerPort"] for port in container["ports"]} == {8471, 8482}


def test_the_coordinator_port_is_jaxs():
    from jax._src.clusters import cloud_tpu_cluster

    (container,) = _job(JOBSET)["template"]["spec"]["containers"]
    port = int(cloud_tpu_cluster.coordinator_port)
    assert port in [one["containerPort"] for one in container["ports"]]


def test_the_image_holds_what_the_wheel_is_made_of():
    lines = [line.split() for line in (ROOT / "launch" / "Dockerfile").read_text().splitlines()]
    copied = {word for line in lines if line[0] == "COPY" for word in line[1:-1]}
    assert copied >= {"pyproject.toml", "README.md", "LICENSE", "flaxbert", "configs"}
    assert all((ROOT / name).exists() for name in copied)


def test_when_skypilot_starts_again():
    resources = SKYPILOT["resources"]
    assert resources["use_spot"] is True
    assert resources["job_recovery"] == {
        "max_restarts_on_errors": 0,
        "recover_on_exit_codes": [71, 75],
    }
    assert SKYPILOT["envs"]["WORKDIR"] is None  # it must be given
    assert SKYPILOT["num_nodes"] > 1


_TRAIN = """
import json, os, sys
told = {name: os.environ.get(name) for name in (
    "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "HF_TOKEN")}
print(json.dumps([sys.argv[1:], told]))
sys.exit(int(os.environ["CODE"]))
"""


def _run_on_a_node(home, code=0, **environment) -> subprocess.CompletedProcess:
    write_program(home / "flaxbert-venv" / "bin" / "python", _TRAIN)
    write_program(home / "bin" / "sleep", '#!/bin/sh\necho "$@" >>"$HOME/slept"\n')
    return subprocess.run(
        ["bash", "-c", SKYPILOT["run"]],
        env={
            **{name: value or "" for name, value in SKYPILOT["envs"].items()},
            **SKYPILOT["secrets"],
            "PATH": f"{home / 'bin'}:{os.environ['PATH']}",
            "HOME": str(home),
            "WORKDIR": "gs://bucket/run",
            "SKYPILOT_NODE_IPS": "10.0.0.7\n10.0.0.8",
            "SKYPILOT_NODE_RANK": "1",
            "SKYPILOT_NUM_NODES": "2",
            "CODE": str(code),
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_what_a_node_of_skypilot_runs(tmp_path):
    done = _run_on_a_node(tmp_path, OVERRIDES="--config.seed=1 --config.log.every=2")
    assert done.returncode == 0, done.stderr
    arguments, told = json.loads(done.stdout)
    assert arguments == [
        *["-m", "flaxbert.train", "--config=configs/sst2.py", "--workdir=gs://bucket/run"],
        *["--config.seed=1", "--config.log.every=2"],
    ]
    assert told == {
        "JAX_COORDINATOR_ADDRESS": "10.0.0.7:8476",
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": "1",
        "HF_TOKEN": None,
    }
    assert json.loads(_run_on_a_node(tmp_path, HF_TOKEN="hf_a").stdout)[1]["HF_TOKEN"] == "hf_a"
    done = _run_on_a_node(tmp_path, WORKDIR="/mnt/run")
    assert done.returncode == 2 and "expected gs://BUCKET/FOLDER" in done.stderr


@pytest.mark.parametrize(("code", "lingers"), [(3, False), (70, False), (71, True), (75, True)])
def test_a_node_that_saved_or_lost_a_peer_lets_others_end_first(tmp_path, code, lingers):
    assert _run_on_a_node(tmp_path, code).returncode == code
    slept = tmp_path / "slept"
    assert (slept.read_text() if slept.exists() else "") == ("30\n" if lingers else "")


def test_a_signal_to_a_nodes_group(tmp_path):
    program = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
os.killpg(0, signal.SIGTERM)
time.sleep(9)
"""
    write_program(tmp_path / "flaxbert-venv" / "bin" / "python", program)
    done = subprocess.run(
        ["bash", "-c", SKYPILOT["run"]],
        env={
            **{"PATH": os.environ["PATH"], "HOME": str(tmp_path), "WORKDIR": "gs://b/r"},
            **{"CONFIG": "c.py", "OVERRIDES": "", "LINGER_SECONDS": "0"},
            **{"SKYPILOT_NODE_IPS": "a", "SKYPILOT_NODE_RANK": "0", "SKYPILOT_NUM_NODES": "1"},
        },
        start_new_session=True,
        capture_output=True,
        timeout=30,
    )
    assert done.returncode == 75
