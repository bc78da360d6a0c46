"""docs/from_transformers_v4.md: its commands work as written, and what it names exists."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from flaxbert.config import Config, flatten, to_dict
from tests.commands import ROOT
from tests.inputs import write_trained

PAGE = (ROOT / "docs" / "from_transformers_v4.md").read_text("utf-8")
SECTIONS = "seeds|model|data|train|optim|loss|mesh|checkpoint|log"
NO_FIELDS = {"model.params", "model.safetensors"}  # an attribute and a file


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def test_every_field_on_the_page_exists():
    named = set(re.findall(rf"(?:`|--config\.)((?:{SECTIONS})\.[a-z_0-9]+)", PAGE)) - NO_FIELDS
    fields = flatten(to_dict(Config())).keys()
    assert named <= fields
    # The reverse for what has a counterpart there: nothing of these is forgotten.
    theirs = ("optim.", "checkpoint.", "log.")
    # Options of one optimizer among several (optim.sgd.momentum) stand in docs/config.md.
    own = {name for name in fields if name.startswith(theirs) and name.count(".") == 1}
    assert own <= named


def test_every_defect_has_a_line_and_a_test():
    source = (ROOT / "tests" / "test_old_script_defects.py").read_text("utf-8")
    numbers = re.findall(r"^\| F(\d+) \|", PAGE, re.MULTILINE)
    assert numbers == [str(number) for number in range(1, 17)]
    assert [int(n) for n in re.findall(r"^def test_f(\d+)_", source, re.MULTILINE)] == [
        int(number) for number in numbers
    ]


@pytest.mark.slow
def test_the_commands_of_the_page(tmp_path):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}

    def run(*command: str) -> str:
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    write_trained(tmp_path / "made", names=("negative", "positive"))
    run(sys.executable, "-m", "flaxbert.convert", "--from=made", "--to=old_model", "--format=flax")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "old_model" / name).unlink(missing_ok=True)
    (commands,), (program,) = _blocks("bash"), _blocks("python")
    run("bash", "-euc", commands)
    old, back = (tmp_path / name / "flax_model.msgpack" for name in ("old_model", "for_v4"))
    assert old.read_bytes() == back.read_bytes()
    assert run(sys.executable, "-c", program + "print(output.logits.shape)").strip() == "(1, 2)"
