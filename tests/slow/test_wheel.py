"""The wheel is complete: built, installed and used from a folder that knows nothing of the clone.

Note: its environment holds the wheel alone and sees the libraries of the test environment through a
.pth file, so that nothing is downloaded. That path's own .pth files, and with them the editable
install of the clone, are not read.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from tests.commands import ROOT
from tests.wheels import build_wheel

pytestmark = [
    pytest.mark.slow,
    pytest.mark.both_lines,
    pytest.mark.timeout(900),
    pytest.mark.xdist_group("wheel"),
]


def run(*command: object, cwd: Path) -> str:
    """Runs a command outside of the clone; returns what it printed."""
    environment = {n: v for n, v in os.environ.items() if n != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env={**environment, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory) -> Path:
    """The interpreter of an environment with the wheel."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python)
    run(*pip, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    (site,) = folder.glob("lib/python*/site-packages")
    paths = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
    (site / "libraries.pth").write_text("\n".join(sorted(paths)) + "\n")
    return python


def test_what_is_inside(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (info,) = {name.split("/")[0] for name in names if ".dist-info/" in name}
        metadata = Parser().parsestr(archive.read(f"{info}/METADATA").decode())
        licence = archive.read(f"{info}/licenses/LICENSE").decode()
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "flaxbert").rglob("*.py")}
    configs = {f"flaxbert/configs/{path.name}" for path in (ROOT / "configs").glob("*.py")}
    package = {name for name in names if not name.startswith(info)}
    assert package == modules | configs | {"flaxbert/py.typed"}  # no tests, nothing forgotten
    assert licence == (ROOT / "LICENSE").read_text()
    assert (metadata["License-Expression"], metadata["Requires-Python"]) == ("Apache-2.0", ">=3.11")
    needed = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert any(line.startswith("jax") for line in needed)
    assert not any(line.startswith(("torch", "pytest")) for line in needed)


def test_importing_is_light_and_from_the_wheel(python, tmp_path):
    code = "import json, sys, flaxbert; print(json.dumps([flaxbert.__file__, *sys.modules]))"
    place, *modules = json.loads(run(python, "-c", code, cwd=tmp_path))
    assert Path(place).is_relative_to(python.parents[1])
    assert not {name.split(".")[0] for name in modules} & {"jax", "transformers", "flax", "numpy"}


def test_train_and_predict(python, minilm, tmp_path):
    run(
        python,
        *("-m", "flaxbert.train", "--config=configs/quickstart.py", "--workdir=run"),
        *("--config.train.steps=2", "--config.train.batch_size=8", "--config.data.max_length=32"),
        cwd=tmp_path,
    )
    results = json.loads((tmp_path / "run" / "eval_results.json").read_text())
    assert results["eval_samples"] == 854
    (tmp_path / "texts.txt").write_text("a triumph\nunwatchable\n")
    run(
        python,
        *("-m", "flaxbert.predict", "--model=run/model", "--input=texts.txt", "--output=out.jsonl"),
        cwd=tmp_path,
    )
    records = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(records) == 2
    assert all(record["label"] in record["probabilities"] for record in records)
