"""Runs the corpus through the real commands, each case under the guard; prints what happened.

    python -m tests.security.run models|tokenizers|runs FOLDER

A process of its own: its memory and what it does to the world are measured. One line of JSON a
case: {"name", "code", "said", "acts", "leaked", "seconds", "memory"}; memory is by how much the
peak of the whole process grew, in bytes.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import resource
import shutil
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from tests.security.corpus import MODELS, RUNS, SECRET, TOKENIZERS, write_outside
from tests.security.guard import Guard


def main() -> None:
    """Runs all cases of one kind."""
    kind, root = sys.argv[1], Path(sys.argv[2])
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # The cache of compiled programs and temporary files are the process's own.
    allowed = [root / "cases", root / "tmp", Path(os.environ["JAX_COMPILATION_CACHE_DIR"])]
    for folder in allowed:
        folder.mkdir(exist_ok=True, parents=True)
    os.environ["TMPDIR"] = str(root / "tmp")
    runner = {"models": _Models, "tokenizers": _Tokenizers, "runs": _Runs}[kind](root)
    guard = Guard(allowed, [root / "outside"])
    _peak()
    for number, name in enumerate(runner.cases):
        print(json.dumps(_look(runner, name, number, root, guard)), flush=True)


def _look(runner: Any, name: str, number: int, root: Path, guard: Guard) -> dict[str, Any]:
    outside = write_outside(root / "outside" / str(number))
    folder = root / "cases" / str(number)
    folder.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        command, arguments = runner.prepare(name, folder, outside)
    before, entries = _peak(), _entries(outside)
    guard.acts, start = [], time.perf_counter()
    guard.watching = True
    try:
        code, said = _call(command, arguments)
    finally:
        guard.watching = False
    seconds, memory = time.perf_counter() - start, _peak() - before
    acts = [act for act in guard.acts if not _follows_link(name, act)]
    acts += ["the outside was changed"] if _entries(outside) != entries else []
    copies = command == "convert" and name.startswith("link: ")  # the files that a folder has
    leaked = SECRET.decode() in said or (_holds_secret(folder) and not copies)
    shutil.rmtree(folder)
    return {
        "name": name, "code": code, "said": said, "acts": acts, "leaked": leaked,
        "seconds": seconds, "memory": memory,
    }  # fmt: skip


def _follows_link(name: str, act: str) -> bool:
    """Whether a case that puts a link reads what it points to, or uses what was moved there."""
    reads = act.startswith(("open ", "os.listdir ", "os.scandir ")) and "for writing" not in act
    return "link" in name and (reads or "/moved" in act)


class _Models:
    """Hostile folders through convert: config, weights, tokenizer files as they are."""

    cases = MODELS

    def __init__(self, root: Path) -> None:
        _call("convert", ["--help"])

    def prepare(self, name: str, folder: Path, outside: Path) -> tuple[str, list[str]]:
        MODELS[name][0](folder / "in", outside)
        return "convert", [f"--from={folder / 'in'}", f"--to={folder / 'out'}"]


class _Tokenizers:
    """Hostile tokenizer files of a good trained model through predict."""

    cases = TOKENIZERS

    def __init__(self, root: Path) -> None:
        from tests.inputs import write_trained

        self._model = write_trained(root / "trained")
        self._texts = root / "texts.txt"
        self._texts.write_text("a good film\n" + "a" * 40 + "b\n")
        _call("predict", self._arguments(self._model, root))  # imports, compiles

    def _arguments(self, model: Path, folder: Path) -> list[str]:
        output = f"--output={folder / 'answers.jsonl'}"
        return [f"--model={model}", f"--input={self._texts}", output]

    def prepare(self, name: str, folder: Path, outside: Path) -> tuple[str, list[str]]:
        shutil.copytree(self._model, folder / "model")
        TOKENIZERS[name][0](folder / "model", outside)
        return "predict", self._arguments(folder / "model", folder)


class _Runs:
    """Hostile workdirs through train: the same command again."""

    cases = RUNS

    def __init__(self, root: Path) -> None:
        from tests.inputs import write_reviews, write_tiny_bert

        model, reviews = write_tiny_bert(root / "tiny"), write_reviews(root / "reviews")
        self._root, self._flags = root, [model, reviews["train"], reviews["dev"]]
        self._run = root / "run"
        code, said = _call("train", self._arguments(self._run))
        assert code == 0, said
        for name in ("all_results.json", "train_results.json", "eval_results.json"):
            (self._run / name).unlink()  # as if it had been stopped after its last save

    def _arguments(self, run: Path) -> list[str]:
        from tests.commands import train_flags

        model, train, validation = self._flags
        fields = {"train__steps": 4, "checkpoint__every": 2, "data__validation": validation}
        return train_flags(model, train, run, log__every=1, **fields)

    def prepare(self, name: str, folder: Path, outside: Path) -> tuple[str, list[str]]:
        run = Path(shutil.copytree(self._run, folder / "run"))
        RUNS[name][0](run, outside)
        return "train", self._arguments(run)


def _call(command: str, arguments: list[str]) -> tuple[int, str]:
    """Runs a command in this process; returns its exit code and what it said."""
    module = importlib.import_module(f"flaxbert.{command}")
    before, said, code = sys.argv, io.StringIO(), 0
    sys.argv = [f"flaxbert.{command}", *arguments]
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            module.command()
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        sys.argv = before
    return code, said.getvalue()


def _entries(folder: Path) -> list[tuple[str, int, bytes]]:
    """Returns everything in a folder, to see whether it was changed."""
    return [
        (str(path), path.lstat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in sorted(folder.rglob("*"))
        if "moved" not in path.parts[-1]
    ]


def _holds_secret(folder: Path) -> bool:
    """Whether a file that the command wrote holds the secret; links lead to it anyway."""
    return any(
        SECRET in path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink() and path.stat().st_size < 2**30
    )


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
