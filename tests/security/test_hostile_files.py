"""Hostile models, tokenizers and workdirs through the real commands: nothing is run, nothing
outside of the named folders is written, or read but through a link; exit code, time and memory are
as promised."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.commands import ROOT
from tests.security.corpus import MODELS, RUNS, TOKENIZERS
from tests.security.guard import Guard

KINDS = {"models": MODELS, "tokenizers": TOKENIZERS, "runs": RUNS}
# A healthy case compiles a tiny model in about 50 MB; a bomb that goes off takes gigabytes.
MEMORY = 400 * 2**20
SECONDS = 60.0


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> dict[str, dict[str, Any]]:
    """Returns kind -> name -> what happened; runs each kind once, in a process of its own."""
    found = {}
    for kind in KINDS:
        root = tmp_path_factory.mktemp(kind)
        done = subprocess.run(
            [sys.executable, "-m", "tests.security.run", kind, str(root)],
            cwd=ROOT,
            env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=900,
        )
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        found[kind] = {line["name"]: line for line in lines}
        # A process that died names the case by the number of those before it.
        assert done.returncode == 0, f"after {len(lines)} cases: {done.stderr[-3000:]}"
    return found


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, cases in KINDS.items() for name in cases]
)
def test_a_hostile_file_does_nothing(seen, kind, name):
    case = seen[kind][name]
    codes = KINDS[kind][name][1]
    assert case["acts"] == []
    assert not case["leaked"]
    # TensorStore may complain of its own event loop, ours is never in it.
    assert "internal error" not in case["said"] and "/flaxbert/" not in case["said"], case["said"]
    assert case["code"] in codes, case["said"]
    assert "\x1b" not in case["said"]
    if case["code"]:
        assert "flaxbert: error: " in case["said"]
    assert case["memory"] < MEMORY and case["seconds"] < SECONDS, case


_ACTS = """
import os, shutil, socket, subprocess, sys
from pathlib import Path
from tests.security.guard import Guard
root = Path(sys.argv[1])
guard = Guard([root / "allowed"], [root / "secret"])
guard.watching = True
(root / "allowed" / "fine").write_text("x")
Path("/etc/hostname").exists() and Path("/etc/hostname").read_text()
assert guard.acts == [], guard.acts
def act(name):
    try:
        eval(name)
    except OSError:
        pass
    assert guard.acts, name
    print(guard.acts)
    guard.acts.clear()
for name in [
    "(root / 'secret').read_text()", "(root / 'other').write_text('x')",
    "(root / 'allowed' / 'link').read_text()", "os.mkdir(root / 'folder')",
    "os.symlink('a', root / 'link')", "os.rename(root / 'allowed' / 'fine', root / 'gone')",
    "os.remove(root / 'gone')", "subprocess.run(['true'])", "os.system('true')",
    "socket.create_connection(('127.0.0.1', 9), 1)", "shutil.rmtree(root / 'folder')",
    "os.open(root / 'other', os.O_RDWR)", "os.truncate(root / 'other', 0)",
]:
    act(name)
"""


def test_the_guard_sees_what_it_should(tmp_path):
    (tmp_path / "allowed").mkdir()
    (tmp_path / "secret").write_text("x")
    (tmp_path / "allowed" / "link").symlink_to(tmp_path / "secret")
    done = subprocess.run(
        [sys.executable, "-c", _ACTS, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 13


def test_the_corpus_is_as_large_as_it_should_be():
    assert sum(map(len, KINDS.values())) > 250
    assert Path(ROOT / "SECURITY.md").is_file() and Guard.__doc__
