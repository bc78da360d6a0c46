"""What the tests are worth: seeded faults in the rooms with mathematics, and which are found.

    python -m tests.mutants --output=tests/results/mutants.json

A mutant is one small change of one file: another comparison, operator, constant or branch, or a
statement left out. Each is drawn by the seed and runs against the tests of `make test` that cover
its file, those that tell soonest first. Tools that do this (mutmut, cosmic-ray) start a process
that imports JAX for each mutant, or select it at run time by wrappers, which a traced function and
an NNX class do not bear. Here a server of processes imports the libraries once and forks; a mutant
lives in its import system, and the files are left alone.

Note: a mutant may be as right as the original (a block size, an early return). `survivors` in the
result file are to be looked at, not only counted.
"""

from __future__ import annotations

import argparse
import ast
import copy
import dataclasses
import importlib.machinery
import io
import itertools
import multiprocessing
import multiprocessing.util
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.commands import ROOT
from tests.soak.record import Record, workplace

PACKAGE = ROOT / "flaxbert"

# Folder or file: the tests of its own, and those of what stands on it. The first prefix counts.
_RUNS = ("tests/loop/test_equivalence.py", "tests/loop/test_step.py", "tests/test_train.py")
COVERED_BY: dict[str, tuple[tuple[str, ...], ...]] = {
    "model/kernels/gpu": (("tests/model/kernels/test_gpu.py",),),
    "model/kernels": (("tests/model/kernels/test_tpu.py",), ("tests/model/kernels/test_gpu.py",)),
    "model": (
        ("tests/model/test_bert_config.py", "tests/model/test_dropout.py"),
        ("tests/model/test_matmul.py", "tests/model/test_fidelity.py"),
        ("tests/inference", "tests/weights", *_RUNS),
    ),
    "heads": (("tests/heads",), ("tests/test_evaluate.py", "tests/test_predict.py", *_RUNS)),
    "methods": (("tests/methods",), _RUNS),
    "optim": (("tests/optim",), _RUNS),
    "loop/step.py": (_RUNS, ("tests/optim", "tests/run")),
    "data/pack.py": (("tests/data/test_pack.py", "tests/data/test_batches.py"), _RUNS),
    "data/batches.py": (("tests/data/test_batches.py", "tests/loop/test_forward.py"), _RUNS),
    "weights/table.py": (("tests/weights",), ("tests/test_convert.py", "tests/model")),
}

_PRELOADED = ["jax", "jax.numpy", "flax.nnx", "optax", "numpy", "safetensors", "pytest"]
_SECONDS = 1200.0  # of one stage, ten times what it takes: a mutant that never ends is found
_MESSAGES = (ast.Raise, ast.JoinedStr, ast.Assert)

_OTHER: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Add,
    ast.Pow: ast.Mult,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitAnd,
}


@dataclasses.dataclass(frozen=True)
class Mutant:
    file: str  # below flaxbert/
    number: int  # of the file's places
    name: str

    @property
    def module(self) -> str:
        parts = Path("flaxbert", self.file).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    def stages(self) -> tuple[tuple[str, ...], ...]:
        """Returns the tests that cover it, the soonest first."""
        there = [
            tuple(test for test in stage if (ROOT / test).exists())
            for stage in COVERED_BY[_prefix(self.file)]
        ]
        return tuple(stage for stage in there if stage)

    def code(self) -> ast.Module:
        """Returns its file's syntax tree with the change made."""
        tree = ast.parse((PACKAGE / self.file).read_text(encoding="utf-8"))
        _, node, change = list(places(tree))[self.number]
        change(node)
        return ast.fix_missing_locations(tree)


def places(tree: ast.Module) -> Iterator[tuple[str, Any, Any]]:
    """Yields what could be changed: a name, a node, and a function that changes the node.

    Not what only people read: docstrings, annotations, texts of errors.
    """
    todo: list[ast.AST] = [tree]
    while todo:
        node = todo.pop()
        yield from _changes(node)
        for field, value in ast.iter_fields(node):
            if field in ("annotation", "returns", "type_params", "targets"):
                continue
            children = value if isinstance(value, list) else [value]
            todo += [
                child
                for child in reversed(children)
                if isinstance(child, ast.AST) and not isinstance(child, _MESSAGES)
            ]


def _changes(node: Any) -> Iterator[tuple[str, Any, Any]]:
    at = f"{getattr(node, 'lineno', 0)}:{getattr(node, 'col_offset', 0)}"
    if isinstance(node, ast.Compare):
        for number, operator in enumerate(node.ops):
            other = _OTHER[type(operator)]
            yield f"{at} {_names(operator, other)}", node, _put("ops", other(), number)
    elif isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign) and type(node.op) in _OTHER:
        other = _OTHER[type(node.op)]
        yield f"{at} {_names(node.op, other)}", node, _put("op", other())
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield f"{at} without not", node, _put("operand", ast.UnaryOp(ast.Not(), node.operand))
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield f"{at} without -", node, _put("op", ast.UAdd())
    elif isinstance(node, ast.Constant) and type(node.value) in (bool, int, float):
        other = _another(node.value)
        yield f"{at} {node.value} -> {other}", node, _put("value", other)
    elif isinstance(node, ast.If | ast.IfExp | ast.While):
        negated = ast.UnaryOp(ast.Not(), copy.copy(node.test))
        yield f"{at} {type(node).__name__} not", node, _put("test", negated)
    for field in ("body", "orelse"):
        statements = getattr(node, field, None)
        for number, statement in enumerate(statements if isinstance(statements, list) else ()):
            if isinstance(statement, ast.AugAssign) or (
                isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call)
            ):
                name = f"{statement.lineno}:{statement.col_offset} left out"
                yield name, node, _put(field, ast.Pass(), number)


def _another(value: bool | int | float) -> bool | int | float:
    if isinstance(value, bool):
        return not value
    return value + 1 if value in (0, 1) else 2 * value


def _names(operator: ast.AST, other: type[ast.AST]) -> str:
    return f"{type(operator).__name__} -> {other.__name__}"


def _put(field: str, value: Any, number: int | None = None) -> Any:
    def change(node: Any) -> None:
        if number is None:
            setattr(node, field, value)
        else:
            getattr(node, field)[number] = value

    return change


def drawn(count: int, seed: int) -> list[Mutant]:
    """Returns `count` mutants, as many of each covered room or file as of the others."""
    files = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
    of_each: dict[str, list[Mutant]] = {prefix: [] for prefix in COVERED_BY}
    for file in filter(_prefix, files):
        tree = ast.parse((PACKAGE / file).read_text(encoding="utf-8"))
        of_each[_prefix(file)] += [
            Mutant(file, number, f"{file}:{name}")
            for number, (name, _, _) in enumerate(places(tree))
        ]
    chance = random.Random(seed)
    for mutants in of_each.values():
        chance.shuffle(mutants)
    turns = itertools.chain(*itertools.zip_longest(*of_each.values()))
    return [mutant for mutant in turns if mutant][:count]


def _prefix(file: str) -> str:
    """Returns what of COVERED_BY a file is, "" if nothing."""
    return next((prefix for prefix in COVERED_BY if file.startswith(prefix)), "")


# --- one mutant, in a process of its own --------------------------------------------------------


class _Finder:
    """Finds one module mutated; all others are found as ever."""

    def __init__(self, mutant: Mutant) -> None:
        self._mutant = mutant

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != self._mutant.module:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        assert spec and spec.origin
        spec.loader = _Loader(name, spec.origin, self._mutant)
        return spec


class _Loader(importlib.machinery.SourceFileLoader):
    def __init__(self, name: str, path: str, mutant: Mutant) -> None:
        super().__init__(name, path)
        self._mutant = mutant

    def get_code(self, fullname: str) -> Any:
        return compile(self._mutant.code(), self.path, "exec")


class _First:
    """pytest's plugin: the first test that fails, or what else went wrong."""

    found = ""

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and not self.found:
            self.found = report.nodeid

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed and not self.found:
            self.found = f"import of {report.nodeid}"


def _in_process(mutant: Mutant | None, tests: tuple[str, ...], answer: Connection) -> None:
    os.setsid()
    os.chdir(ROOT)
    if mutant is not None:
        sys.meta_path.insert(0, _Finder(mutant))
    import pytest

    first = _First()
    options = ["-x", "-q", "-m", "not slow", "-p", "no:cacheprovider"]
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        code = pytest.main([*tests, *options], plugins=[first])
    answer.send(first.found or ("" if code == 0 else f"exit code {int(code)}"))
    answer.close()
    os._exit(0)


def _run(mutant: Mutant | None, tests: tuple[str, ...]) -> str:
    """Returns the test that found the mutant, "" if none did."""
    context = multiprocessing.get_context("forkserver")
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=_in_process, args=(mutant, tests, writer))
    process.start()
    writer.close()
    try:
        return reader.recv() if reader.poll(_SECONDS) else "no end"
    except EOFError:
        return "the process died"
    finally:
        try:
            os.killpg(process.pid or 0, signal.SIGKILL)
        except ProcessLookupError:
            process.kill()
        process.join()
        reader.close()


def _case(mutant: Mutant) -> dict[str, Any]:
    begun, found = time.monotonic(), ""
    for tests in mutant.stages():
        found = _run(mutant, tests)
        if found:
            break
    return {"found": found, "seconds": round(time.monotonic() - begun, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--count", type=int, default=250)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2, help="at a time: one a core")
    arguments = parser.parse_args()
    command = f"python -m tests.mutants --count={arguments.count} --seed={arguments.seed}"
    record = Record(arguments.output, __doc__.splitlines()[0], command)
    multiprocessing.util.get_temp_dir()  # outside of a folder that goes before it
    with workplace():
        os.environ["PYTHONPATH"] = str(ROOT)
        # JAX reads these as it is imported. Programs that a mutant does not change are kept.
        os.environ |= {
            "JAX_COMPILATION_CACHE_DIR": tempfile.mkdtemp(),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        multiprocessing.set_start_method("forkserver")
        multiprocessing.set_forkserver_preload(_PRELOADED)
        chosen = {mutant.name: mutant for mutant in drawn(arguments.count, arguments.seed)}
        # Tests that fail as it is would find everything.
        for tests in sorted({tests for mutant in chosen.values() for tests in mutant.stages()}):
            wrong = _run(None, tests)
            if wrong:
                raise SystemExit(f"without any mutant {wrong} fails")
        record.run(chosen, lambda name: _case(chosen[name]), jobs=arguments.jobs)
    survivors = [name for name, outcome in record.cases.items() if not outcome["found"]]
    count = len(record.cases)
    record.finish(
        right=len(survivors) <= 0.1 * count,
        mutants=count,
        found=count - len(survivors),
        share=round(1 - len(survivors) / count, 3),
        survivors=survivors,
    )


if __name__ == "__main__":
    main()
