"""Devices: what JAX sees, what the machine has, and whether sums over all devices are right.

JAX runs in a child process with a time limit: a TPU that another process holds can make it wait,
and a broken driver can end the process.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flaxbert.diagnose.findings import FAILURE, OK, WARNING, Finding
from flaxbert.shell import subprocesses

SUBJECT = "devices"
SECONDS = 180.0  # a first start on a big TPU slice takes more than a minute
_GOOGLE = "0x1ae0"  # PCI vendor
_CANARY = (sys.executable, "-m", "flaxbert.diagnose.canary")


def has_nvidia() -> bool:
    """Whether the machine has an NVIDIA GPU, asked without JAX."""
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def has_tpu() -> bool:
    """Whether the machine has a TPU, asked without JAX: VFIO alone may be any other device."""
    if any(Path("/dev").glob("accel[0-9]*")):
        return True
    vendors = Path("/sys/bus/pci/devices").glob("*/vendor")
    return Path("/dev/vfio").exists() and any(_read(path) == _GOOGLE for path in vendors)


def check(
    *, gpu: bool, tpu: bool, command: tuple[str, ...] = _CANARY, seconds: float = SECONDS
) -> Iterator[Finding]:
    """Yields what the canary found; `gpu` and `tpu` say what the machine has."""
    found = look(command, seconds)
    if found["error"]:
        holder = "Another process may hold the TPU: `sudo lsof -w /dev/accel* /dev/vfio/*`."
        advice = holder if tpu else "See the versions above."
        yield Finding(SUBJECT, FAILURE, f"JAX cannot be used: {found['error']}", advice)
        return
    devices = found["devices"]
    first = devices[0]
    memory = f", {first['memory'] / 2**30:.1f} GiB each" if first["memory"] else ""
    yield Finding(
        SUBJECT,
        OK,
        f"{len(devices)} {first['kind']} ({first['platform']}){memory}",
        facts={"devices": devices},
    )
    if first["platform"] == "cpu" and (gpu or tpu):
        yield _unused("cuda12" if gpu else "tpu", "an NVIDIA GPU" if gpu else "a TPU")
    if found["wrong"]:
        said = f"wrong numbers: {', '.join(found['wrong'])}"
        advice = "Do not train here. Install another version of jax, and run this again."
        yield Finding(SUBJECT, FAILURE, said, advice, code=70, facts={"wrong": found["wrong"]})
    else:
        over = f", and over {len(devices)} devices" if found["collectives"] else ""
        yield Finding(SUBJECT, OK, f"products of matrices{over} are those of NumPy")


def look(command: tuple[str, ...], seconds: float) -> dict[str, Any]:
    """Runs the canary; returns what it printed, {"error": why} if it did not come to that."""
    try:
        done = subprocesses.run(command, seconds)
        # The last line: a plugin may print others.
        return {"error": "", **json.loads(done.stdout.strip().rpartition("\n")[2])}
    except subprocess.TimeoutExpired:
        return {"error": f"it gave no answer in {seconds:.0f} s"}
    except ValueError:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        return {"error": f"its process ended: {last[0][:300]}"}


def _unused(extra: str, what: str) -> Finding:
    asked = os.environ.get("JAX_PLATFORMS", "")
    if asked:
        said, do = f"JAX_PLATFORMS={asked} hides {what}", "Unset JAX_PLATFORMS to use it."
    else:
        said, do = f"JAX sees only a CPU, but there is {what}", f'pip install -U "jax[{extra}]"'
    return Finding(SUBJECT, WARNING, said, do)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""
