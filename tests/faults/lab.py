"""A tiny run with everything on, its untouched twin, and the questions asked after a fault.

Dropout, accumulation, packing, evaluation and export of the best model are on; checkpoints at
updates 2, 4 and 6, one of them kept. Note: restoring a checkpoint is slow, so its arrays are
compared once per manifest; a manifest that verifies means the same bytes again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from flaxbert.errors import FlaxbertError
from flaxbert.storage.checkpoint import Checkpoints
from flaxbert.storage.workdir import Workdir, open_workdir
from tests.commands import Done, metrics_without_times, start, train_flags
from tests.faults import inject
from tests.soak.resume import compare

SAVED = (2, 4, 6)
_ORBAX = threading.Lock()  # soaks ask from several threads


class Lab:
    """Prepares the untouched run once; then answers whether a workdir is right."""

    def __init__(self, folder: Path, model: Path, files: dict[str, Path]) -> None:
        self.folder = folder
        self._model = model
        self._files = files
        self.library = inject.build(folder)
        self.whole = folder / "whole"
        done = self.command(self.whole, checkpoint__keep=100)
        if done.code:
            raise RuntimeError(done.err)
        self._states = {step: _arrays(self.whole / "checkpoints" / str(step)) for step in SAVED}
        self._metrics = metrics_without_times(self.whole)
        self._compared: dict[str, str] = {}

    def flags(self, workdir: Path, **changes: object) -> list[str]:
        fields: dict[str, object] = {
            "data__validation": self._files["dev"],
            "train__accumulate": 2,
            "train__eval_every": 2,
            "train__best_metric": "loss",  # best after 2 and again after 4: model/ is switched
            "checkpoint__every": 2,
            "checkpoint__keep": 1,
        }
        return train_flags(self._model, self._files["train"], workdir, **(fields | changes))

    def command(self, workdir: Path, timeout: float = 300.0, **changes: object) -> Done:
        """Runs the real command without faults."""
        process = start("train", *self.flags(workdir, **changes))
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise
        return Done(process.returncode, out, err)

    def faulty(self, workdir: Path, *faults: inject.Fault, keep: int = 1, **options: Any) -> Done:
        """Runs the real command with faults below the workdir; the log stands beside it."""
        return inject.run(
            "train",
            self.flags(workdir, checkpoint__keep=keep),
            library=self.library,
            root=workdir,
            log=log_of(workdir),
            faults=faults,
            **options,
        )

    def standing(self, workdir: Path) -> tuple[int, list[str]]:
        """Returns the newest valid step (0 = none yet) and everything that is wrong.

        Changes the workdir as a start does: litter goes, what is damaged is set aside.
        """
        try:
            opened = open_workdir(workdir)
            if not opened.started:
                return 0, []
            step = Checkpoints(opened.checkpoints, keep=1).newest_valid() or 0
        except FlaxbertError as error:
            return 0, [str(error)]
        if not step:
            return 0, []
        problems = [self._different_arrays(opened, step), self._lost_metrics(opened, step)]
        return step, [*filter(None, [*problems, _lost_model(opened, step)])]

    def finished(self, workdir: Path, says: str = "") -> list[str]:
        """Runs the same command to its end, which must say `says`; returns what differs from the
        untouched run."""
        done = self.command(workdir)
        if done.code:
            return [f"exit {done.code}: {done.err[-2000:]}"]
        problems = [] if says in done.err else [f"did not say {says!r}: {done.err[-2000:]}"]
        return problems + self.compared(workdir)

    def compared(self, workdir: Path) -> list[str]:
        """Returns what differs between a finished workdir and the untouched run."""
        litter = [path.name for path in workdir.rglob("*.tmp")]
        return [*compare(self.whole, workdir), *(f"litter {name}" for name in litter)]

    def _different_arrays(self, workdir: Workdir, step: int) -> str:
        folder = workdir.checkpoints / str(step)
        if step not in self._states:
            return f"a checkpoint {step} that was never saved"
        manifest = f"{step} {(folder / 'manifest.json').read_text()}"
        if manifest not in self._compared:
            with _ORBAX:
                self._compared[manifest] = different(self._states[step], _arrays(folder))
        return self._compared[manifest]

    def _lost_metrics(self, workdir: Workdir, step: int) -> str:
        """Lines up to the checkpoint's step must be there; later ones are cut back."""
        run = json.loads((workdir.checkpoints / str(step) / "run.json").read_text())
        expected = _seen_at(self._metrics, step, run["evaluated"])
        text = workdir.metrics.read_text().split("\n")[
            :-1
        ]  # what a kill cut off has no end of line
        found = [
            (line["step"], line["epoch"], line["split"], line["name"], line["value"])
            for line in map(json.loads, text)
            if not line["name"].endswith("_per_second")
        ]
        return (
            "" if _seen_at(found, step, run["evaluated"]) == expected else "lines of metrics.jsonl"
        )


def log_of(workdir: Path) -> Path:
    return workdir.with_name(f"{workdir.name}.calls")


def different(expected: dict[str, np.ndarray], actual: dict[str, np.ndarray]) -> str:
    """Returns the names of arrays that are not the same bits, "" if all are."""
    names = [
        name
        for name in sorted(expected.keys() | actual.keys())
        if name not in expected
        or name not in actual
        or expected[name].dtype != actual[name].dtype
        or expected[name].tobytes() != actual[name].tobytes()
    ]
    return f"{len(names)} arrays differ: {', '.join(names[:3])}" if names else ""


def copy_tree(source: Path, target: Path) -> Path:
    """Copies a workdir as it stands, links as links, over what an earlier case left."""
    shutil.rmtree(target, ignore_errors=True)
    if source.exists():
        shutil.copytree(source, target, symlinks=True)
    return target


def digest(folder: Path) -> str:
    """Returns a digest of every name and byte below a folder."""
    whole = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        whole.update(str(path.relative_to(folder)).encode() + b"\0")
        if path.is_symlink():
            whole.update(str(path.readlink()).encode())
        elif path.is_file():
            whole.update(sha256(path).encode())
    return whole.hexdigest()


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _arrays(checkpoint: Path) -> dict[str, np.ndarray]:
    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.restore((checkpoint / "state").absolute())
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _seen_at(lines: list[tuple], step: int, evaluated: int) -> list[tuple]:
    return [line for line in lines if line[0] <= (evaluated if line[2] == "validation" else step)]


def _lost_model(workdir: Workdir, step: int) -> str:
    """The best model that the checkpoint names must be model/ or the one kept beside it."""
    best = json.loads((workdir.checkpoints / str(step) / "run.json").read_text())["best"]
    if best is None:
        return ""
    kept = [p for p in workdir.root.glob("model.*.tmp") if not p.name.startswith("model.new")]
    for weights in (folder / "model.safetensors" for folder in (workdir.model, *kept)):
        if weights.is_file() and sha256(weights) == best["weights"]:
            return ""
    return f"the best model, of update {best['step']}"
