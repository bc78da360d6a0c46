"""Runs the package's commands: in this process (fast) or as real processes."""

from __future__ import annotations

import dataclasses
import importlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent


@dataclasses.dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


def call(
    command: str, *arguments: object, capsys: pytest.CaptureFixture[str] | None = None
) -> Done:
    """Runs `python -m flaxbert.<command> arguments` inside this process.

    A fixture of more than one test has no `capsys`, and gets nothing of what was printed.
    """
    module = importlib.import_module(f"flaxbert.{command}")
    if capsys is not None:
        capsys.readouterr()
    before, code = sys.argv, 0
    sys.argv = [f"flaxbert.{command}", *map(str, arguments)]
    try:
        module.command()
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        sys.argv = before
    if capsys is None:
        return Done(code, "", "")
    captured = capsys.readouterr()
    return Done(code, captured.out, captured.err)


def trained(flags: list[str]) -> None:
    """Runs a training inside this process, for a fixture."""
    done = call("train", *flags)
    assert done.code == 0, done


def start(command: str, *arguments: object, **kwargs) -> subprocess.Popen:
    """Starts the real command as a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **kwargs.pop("env", {})}
    return subprocess.Popen(
        [sys.executable, "-m", f"flaxbert.{command}", *map(str, arguments)],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **kwargs,
    )


def train_flags(model: Path, train: Path, workdir: Path, **fields: object) -> list[str]:
    """Flags of a small run on own files; fields are config overrides, "." written as "__"."""
    values = {
        "model__path": model,
        "data__train": train,
        "data__row_length": 640,  # one row for most batches: one shape to compile
        "train__batch_size": 16,
        "train__steps": 6,
        "optim__learning_rate": 1e-3,
        "log__every": 2,
        "mesh__data": 1,
        **fields,
    }
    overrides = [f"--config.{name.replace('__', '.')}={value}" for name, value in values.items()]
    return ["--config=configs/text.py", f"--workdir={workdir}", *overrides]


def metrics_without_times(workdir: Path) -> list[tuple]:
    """Returns metrics.jsonl without what depends on the clock."""
    import json

    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [
        (line["step"], line["epoch"], line["split"], line["name"], line["value"])
        for line in lines
        if not line["name"].endswith("_per_second") and line["name"] != "mfu"
    ]


def final_state(workdir: Path) -> dict[str, np.ndarray]:
    """Returns every array of the newest checkpoint, by path."""
    import jax
    import orbax.checkpoint as ocp

    saved = [path for path in (workdir / "checkpoints").iterdir() if path.name.isdecimal()]
    newest = max(saved, key=lambda path: int(path.name))
    folder = (newest / "state").absolute()
    with ocp.PyTreeCheckpointer() as checkpointer:
        # As arrays of the host: the devices that it was saved from may not be here.
        stored = checkpointer.metadata(folder).item_metadata.tree
        plain = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), stored)
        tree = checkpointer.restore(folder, args=ocp.args.PyTreeRestore(restore_args=plain))
    return {
        "/".join(str(getattr(part, "key", part)) for part in path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
