"""Devices: those that JAX sees, those of the machine, and whether they compute right.

JAX runs in a child process with a time limit: a TPU that another process holds can block it, and a
broken driver can end the process.
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
    """Whether the machine has an NVIDIA GPU, without asking JAX."""
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def has_tpu() -> bool:
    """Whether the machine has a TPU, without asking JAX; VFIO devices need not be TPUs."""
    if any(Path("/dev").glob("accel[0-9]*")):
        return True
    vendors = Path("/sys/bus/pci/devices").glob("*/vendor")
    return Path("/dev/vfio").exists() and any(_read(path) == _GOOGLE for path in vendors)


def check(
    *, gpu: bool, tpu: bool, command: tuple[str, ...] = _CANARY, seconds: float = SECONDS
) -> Iterator[Finding]:
    """Yields the canary's findings; `gpu` and `tpu` say what the machine has."""
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
        what, extra = ("an NVIDIA GPU", "cuda12") if gpu else ("a TPU", "tpu")
        said, do = f"JAX sees only a CPU, but there is {what}", f'pip install -U "jax[{extra}]"'
        if asked := os.environ.get("JAX_PLATFORMS", ""):
            said, do = f"JAX_PLATFORMS={asked} hides {what}", "Unset JAX_PLATFORMS to use it."
        yield Finding(SUBJECT, WARNING, said, do)
    if found["wrong"]:
        said = f"wrong numbers: {', '.join(found['wrong'])}"
        advice = "Do not train here. Install another version of jax, and run this again."
        yield Finding(SUBJECT, FAILURE, said, advice, code=70, facts={"wrong": found["wrong"]})
    else:
        over = f", and over {len(devices)} devices" if found["collectives"] else ""
        yield Finding(SUBJECT, OK, f"products of matrices{over} are those of NumPy")


def look(command: tuple[str, ...], seconds: float) -> dict[str, Any]:
    """Runs the canary; returns what it printed, or {"error": why}."""
    try:
        done = subprocesses.run(command, seconds)
        # The last line: a plugin may print other lines.
        return {"error": "", **json.loads(done.stdout.strip().rpartition("\n")[2])}
    except subprocess.TimeoutExpired:
        return {"error": f"no answer within {seconds:.0f} s"}
    except ValueError:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        return {"error": f"its process ended: {last[0][:300]}"}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""
