"""Every command of README and docs/ works as written, page after page, in a folder like a user's.

Training commands are cut to two updates, and all models but the quickstart's are tiny; apart from
that the text between ```sh (or bash, python) and ``` is what runs.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import ROOT
from tests.glue_data import write_glue
from tests.hub_server import HubServer
from tests.inputs import write_trained
from tests.planning import golden

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(sh|bash|python)\n(.*?)^```", re.DOTALL | re.MULTILINE)

pytestmark = pytest.mark.slow


def _blocks(page: Path) -> list[tuple[str, str]]:
    return BLOCK.findall(page.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def hub(tiny_bert, tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    for name in ("bert-base-cased", "bert-base-uncased"):
        shutil.copytree(tiny_bert, root / "models" / "google-bert" / name)
    write_glue(root / "datasets" / "nyu-mll" / "glue")
    server = HubServer(root)
    yield server
    server.close()


@pytest.fixture(scope="module")
def environment(hub, tmp_path_factory):
    """The user's variables: a home of their own, and `python` with flaxbert."""
    home = tmp_path_factory.mktemp("home")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {
        "PATH": path,
        "PYTHONPATH": golden.environment()["PYTHONPATH"],  # the TPU's compiler too
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "1",
        "HF_HOME": str(home),
        "HF_ENDPOINT": hub.endpoint,
        "HF_HUB_OFFLINE": "0",
    }


def _run(command: str, folder: Path, environment: dict[str, str]) -> None:
    short = re.sub(r"(flaxbert\.train --config=\S+)", r"\1 --config.train.steps=2", command)
    # A command that names a model itself does so later, and that counts.
    own_data = r"(flaxbert\.\w+ --config=configs/(?:text|ner)\.py)"
    short = re.sub(own_data, r"\1 --config.model.path=bert-folder", short)
    done = subprocess.run(
        ["bash", "-euc", short], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def user_folder(environment, reviews, tiny_bert, hub, tmp_path_factory) -> Path:
    """What the pages speak of: own files, folders of models and data, a finished quickstart."""
    folder = tmp_path_factory.mktemp("user")
    for name in ("train", "dev"):
        shutil.copy(reviews[name], folder)
    for name in ("train", "dev"):
        sentence = "Angela B-PER\nMerkel I-PER\nvisits O\nParis B-LOC\n. O\n\n"
        (folder / f"{name}.conll").write_text(sentence * 8)
    (folder / "reviews.txt").write_text("a gripping, beautifully acted film\n")
    shutil.copytree(tiny_bert, folder / "bert-folder")
    shutil.copytree(hub.root / "datasets" / "nyu-mll" / "glue", folder / "glue")
    write_trained(folder / "made", names=("not_equivalent", "equivalent"), positions=128)
    convert = "python -m flaxbert.convert --from=made --to=old_model --format=flax"
    _run(convert, folder, environment)
    _run("python -m flaxbert.train --config=configs/quickstart.py", folder, environment)
    return folder


def _pages_with_code() -> list[Path]:
    return [page for page in PAGES if _blocks(page)]


@pytest.fixture(scope="module")
def ran() -> set[str]:
    """What has run already: a page may say again what another one says."""
    return set()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", _pages_with_code(), ids=lambda page: page.stem)
def test_commands_of_the_page(page, user_folder, environment, ran):
    """Every command is a process of its own, as it is for a reader: seconds each."""
    for kind, code in _blocks(page):
        if code in ran:
            continue
        ran.add(code)
        if kind == "python":
            (user_folder / "page.py").write_text(code, encoding="utf-8")
            code = "python page.py"
        _run(code, user_folder, environment)
