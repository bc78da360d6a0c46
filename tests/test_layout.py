"""Imports go one way between the rooms, and heavy libraries stay where they belong."""

from __future__ import annotations

import ast
import graphlib
import importlib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "flaxbert"

# What each room may import of the others. Entry points, the modules at the top, may import every
# room; config, registry, errors and the public names of __init__ are modules at the top as well.
BASE = {"errors", "config", "registry", "shell"}
MAY_IMPORT = {
    "shell": {"errors"},
    "model": {"errors"},
    "storage": BASE,
    "hosts": BASE,
    "metrics": {"errors"},
    "optim": BASE,
    "track": BASE | {"storage"},
    "data": BASE | {"storage"},
    "heads": BASE | {"model", "data", "metrics"},
    "methods": BASE | {"model"},
    "weights": BASE | {"model", "storage", "heads"},
    "loop": BASE | {"model", "data", "heads", "methods", "optim", "track", "storage"},
    "inference": BASE | {"model", "heads", "storage", "loop", "data", "weights"},
    "run": BASE
    | {
        "model",
        "heads",
        "methods",
        "optim",
        "track",
        "storage",
        "hosts",
        "loop",
        "data",
        "weights",
    },
    # What `plan` and `doctor` look at: no other room imports them.
    "planning": BASE | {"model", "heads", "methods", "loop", "data", "run"},
    "diagnose": BASE | {"model", "storage", "hosts", "loop"},
}
TOP = {
    "__init__.py": {"config", "inference", "model"},
    "config.py": {"errors", "registry"},
    "errors.py": set(),
    "registry.py": set(),
    "convert.py": BASE | {"model", "storage", "data", "weights"},
    "doctor.py": BASE | {"storage", "diagnose"},
    "evaluate.py": BASE | {"storage", "data", "loop", "inference", "run"},
    "plan.py": BASE | {"run", "planning", "storage"},
    "predict.py": BASE | {"storage", "data", "inference", "run"},
    "train.py": BASE | MAY_IMPORT["run"] | {"run"},
}
# The command line's own border: only entry points parse flags and exit.
EXCEPT = {"shell/cli.py": {"config", "hosts"}}

ONLY_IN = {
    "transformers": {"data/tokenizer_files.py"},
    "orbax": {"storage/checkpoint.py", "storage/parameters.py"},
    "gcsfs": set(),  # by fsspec's registry
    "fsspec": {"storage/bucket.py"},
    "tensorstore": {"storage/lease.py"},
    "etils": {"storage/objects.py"},
    "huggingface_hub": {"storage/hub.py", "shell/progress_bar.py"},
    "datasets": {"data/sources/hub_datasets.py"},
    "torch": set(),
    "tensorflow": set(),
    "pickle": {"weights/pickle_reader.py"},
    "pickletools": {"weights/pickle_reader.py"},
    "msgpack": {"weights/formats/flax_msgpack.py"},
}

FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def _imports(name: str) -> set[str]:
    """Returns every imported module, and `package.name` for each name imported from a package."""
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / name).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import"
            found.add(str(node.module))
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _module_of(name: str) -> str:
    return f"flaxbert/{name}".removesuffix(".py").removesuffix("/__init__").replace("/", ".")


@pytest.mark.parametrize("name", FILES)
def test_rooms_import_one_way(name):
    room = name.split("/")[0]
    allowed = MAY_IMPORT[room] if "/" in name else TOP[name]
    imports = {part for part in _imports(name) if part.startswith("flaxbert.")}
    rooms = {part.split(".")[1] for part in imports} - {room, "__version__"}
    assert rooms <= allowed | EXCEPT.get(name, set())
    if "/" in name:
        assert "flaxbert.shell.cli" not in imports, "only entry points use the command line"


def test_no_modules_import_each_other_in_a_circle():
    """Imports inside of functions and for type checkers count: a reader follows them too."""
    modules = {_module_of(name): name for name in FILES}
    graph = {module: _imports(name) & modules.keys() - {module} for module, name in modules.items()}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, with the circle


def test_every_module_can_be_imported():
    """Whatever another Python, jax or flax has taken away is told here by its name."""
    for name in FILES:
        module = f"flaxbert/{name}".removesuffix(".py").removesuffix("/__init__")
        importlib.import_module(module.replace("/", "."))


@pytest.mark.parametrize("name", FILES)
def test_heavy_libraries_stay_in_their_files(name):
    tops = {part.split(".")[0] for part in _imports(name)}
    for library, places in ONLY_IN.items():
        assert library not in tops or name in places, f"{name} imports {library}"


def test_no_two_files_have_names_that_a_reader_could_confuse():
    """A package's __init__ is named by its folder."""
    names = [name.removesuffix("/__init__.py").removesuffix(".py").split("/")[-1] for name in FILES]
    twins = {name for name in names if names.count(name) > 1}
    assert twins <= {"console", "formats", "jsonl"}
