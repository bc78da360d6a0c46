"""A cloud in a folder: a stand-in `gcloud` with queued resources, and workers with a home each.

Every call is recorded as a JSON line. Commands for workers really run, by bash, each under the
worker's own HOME, with a stand-in pip, uv and training: so quoting and files are what they are on
a machine. A TPU that is taken away loses its processes and homes, and answers no ssh.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from tests.commands import ROOT, Done

_GCLOUD = """
import fcntl, json, os, sys
cloud = os.environ["CLOUD"]
arguments = sys.argv[1:]
flags = dict(a.partition("=")[::2] for a in arguments if a.startswith("--"))
words = [a for a in arguments if not a.startswith("--")]
with open(f"{cloud}/calls", "a") as file: file.write(json.dumps(arguments) + "\\n")
lock = open(f"{cloud}/lock", "w"); fcntl.flock(lock, fcntl.LOCK_EX)
with open(f"{cloud}/state") as file: state = json.load(file)
def save():
    with open(f"{cloud}/state.tmp", "w") as file: json.dump(state, file)
    os.rename(f"{cloud}/state.tmp", f"{cloud}/state")
def take_away():
    import shutil
    for index in range(state["workers"]):
        home = f"{cloud}/{index}"
        try:
            with open(f"{home}/flaxbert-launch/pid") as file: pid = int(file.read())
            os.killpg(os.getpgid(pid), 9)
        except (OSError, ProcessLookupError): pass
        shutil.rmtree(home, ignore_errors=True)
for happening in ("SUSPENDED", "GONE"):
    if os.path.exists(f"{cloud}/{happening}"):
        os.remove(f"{cloud}/{happening}")
        state["state"] = happening
        take_away(); save()
for happening, call, times in (
    ("UNLISTED", "queued-resources list", 3), ("UNREACHED", "tpu-vm ssh", 3)
):
    if os.path.exists(f"{cloud}/{happening}"):
        os.remove(f"{cloud}/{happening}")
        state["broken"][call] = times; save()
group, verb = words[2:4]
broken = state["broken"].get(f"{group} {verb}", 0)
if broken:
    state["broken"][f"{group} {verb}"] = broken - 1; save()
    sys.exit("ERROR: (gcloud) it is broken")
code = 0
if verb == "list":
    print("another-one\\tACTIVE")
    if state["state"] != "GONE": print(f"{state['name']}\\t{state['state']}")
    # A moment later it is there.
    later = {"WAITING_FOR_RESOURCES": "PROVISIONING", "PROVISIONING": "ACTIVE"}
    new = later.get(state["state"], state["state"])
    if new == "ACTIVE" != state["state"]:
        for index in range(state["workers"]): os.makedirs(f"{cloud}/{index}")
    state["state"] = new; save()
elif group == "queued-resources" and verb == "describe":
    print("no capacity")
elif verb == "create":
    if state["state"] != "GONE": sys.exit("ERROR: (gcloud) ALREADY_EXISTS")
    state |= {"state": "WAITING_FOR_RESOURCES", "name": words[4]}; save()
elif verb == "delete":
    take_away(); state |= {"state": "GONE", "health": "READY\tHEALTHY", "silent": []}; save()
elif state["state"] != "ACTIVE":
    sys.exit("ERROR: (gcloud) the node is not READY")
elif verb == "describe":
    print(state["health"] if "health" in flags["--format"] else state["workers"])
else:
    which = flags["--worker"]
    homes = [f"{cloud}/{i}" for i in range(state["workers"]) if which in ("all", str(i))]
    if verb == "scp":
        import shutil
        for home in homes:
            for source in words[4:-1]: shutil.copy2(source, f"{home}/{words[-1].partition(':')[2]}")
    else:
        import subprocess
        lock.close()
        path = f"{cloud}/remote:{os.environ['PATH']}"
        here = {"CLOUD": cloud, "PATH": path}  # nothing else of this machine is known there
        command = ["bash", "-c", flags["--command"]]
        answer = [home for home in homes if int(home.rpartition("/")[2]) not in state["silent"]]
        run = [subprocess.Popen(command, cwd=home, env={**here, "HOME": home}) for home in answer]
        codes = [process.wait() for process in run] + [255] * (len(homes) - len(answer))
        code = next((c for c in codes if c), 0)
sys.exit(code)
"""

# What each attempt of each worker does stands in the plan: a code to end with, or what happens to
# the TPU while it trains. After the last entry it ends with 0.
_TRAIN = """
import json, os, signal, sys, time
cloud, home = os.environ["CLOUD"], os.environ["HOME"]
index = int(home.rpartition("/")[2])
tally = f"{cloud}/attempts-{index}"
attempt = os.path.getsize(tally) if os.path.exists(tally) else 0
with open(tally, "a") as file: file.write("x")
record = {"worker": index, "arguments": sys.argv[1:], "token": os.environ.get("HF_TOKEN")}
with open(f"{cloud}/runs", "a") as file: file.write(json.dumps(record) + "\\n")
with open(f"{cloud}/plan") as file: plan = json.load(file)
does = plan[attempt] if attempt < len(plan) else 0
does = does[index] if isinstance(does, list) else does
print(f"worker {index} attempt {attempt} trains", flush=True)
if isinstance(does, str):
    signal.signal(signal.SIGTERM, lambda *_: os._exit(75))
    if index == 0 and does != "wait":
        open(f"{cloud}/{does}", "w").close()
    if does in ("UNLISTED", "UNREACHED"):
        sys.exit(71)
    time.sleep(60)
sys.exit(does)
"""

_PYTHON3 = """#!/bin/sh
echo "python3 $*" >>"$CLOUD/installs"
case "$*" in *--target=tools*) mkdir -p tools/bin && cp "$CLOUD/uv" tools/bin/uv ;; esac
"""

_UV = """#!/bin/sh
echo "uv $*" >>"$CLOUD/installs"
case "$1" in
  venv) mkdir -p venv/bin && cp "$CLOUD/train" venv/bin/python ;;
  pip) cd source && [ -f pyproject.toml ] && [ -f configs/sst2.py ] && [ -f flaxbert/train.py ] ;;
esac
"""


_SENT = (
    *("flaxbert/train.py", "configs/sst2.py", "configs/glue.py"),
    *("pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE"),
)


def write_program(path: Path, text: str) -> None:
    """Writes an executable; Python without a line that says otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text if text.startswith("#!") else f"#!{sys.executable} -SE\n{text}")
    path.chmod(0o755)


@dataclasses.dataclass
class Cloud:
    """The folder, and what stands in it."""

    folder: Path
    plan: list
    workers: int = 2
    state: str = "GONE"
    broken: dict[str, int] = dataclasses.field(default_factory=dict)
    health: str = "READY\tHEALTHY"
    silent: list[int] = dataclasses.field(default_factory=list)  # workers that do not answer
    clone: Path | None = None  # a small one with the same scripts, unless one is given

    def __post_init__(self):
        self.folder.mkdir()
        if self.clone is None:
            self.clone = self.folder / "clone"
            shutil.copytree(ROOT / "launch", self.clone / "launch")
            for name in _SENT:
                (self.clone / name).parent.mkdir(exist_ok=True)
                (self.clone / name).touch()
        write_program(self.folder / "bin" / "gcloud", _GCLOUD)
        write_program(self.folder / "remote" / "python3", _PYTHON3)
        write_program(self.folder / "uv", _UV)
        write_program(self.folder / "train", _TRAIN)
        state = {"name": "bert"} | {
            name: getattr(self, name) for name in ("state", "workers", "broken", "health", "silent")
        }
        (self.folder / "state").write_text(json.dumps(state))
        (self.folder / "plan").write_text(json.dumps(self.plan))
        if self.state == "ACTIVE":
            for index in range(self.workers):
                (self.folder / str(index)).mkdir()

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen:
        """Starts tpu_vm.sh, without any pause."""
        return subprocess.Popen(
            ["bash", f"{self.clone}/launch/tpu_vm.sh", *arguments],
            env={
                "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
                "HOME": str(self.folder),
                "CLOUD": str(self.folder),
                "POLL_SECONDS": "0.1",
                "PAUSE_SECONDS": "0",
                "PATIENCE_SECONDS": "1",
                "TPU_NAME": "bert",
                "ZONE": "us-west4-a",
                "WORKDIR": "gs://bucket/run",
                **environment,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def call(self, *arguments: str, **environment: str) -> Done:
        """Runs tpu_vm.sh to its end."""
        process = self.start(*arguments, **environment)
        out, err = process.communicate(timeout=60)
        return Done(process.returncode, out, err)

    def lines(self, name: str) -> list:
        """Returns what was recorded: calls, or runs."""
        path = self.folder / name
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def verbs(self) -> list[str]:
        """Returns what gcloud was asked to do, without looks at the list."""
        calls = [" ".join(call[2:4]) for call in self.lines("calls")]
        return [call for call in calls if not call.endswith(" list")]

    def close(self) -> None:
        """Ends what still trains."""
        for path in self.folder.glob("*/flaxbert-launch/pid"):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(os.getpgid(int(path.read_text())), signal.SIGKILL)
