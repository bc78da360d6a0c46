"""Imports go one way between the rooms, and heavy libraries stay where they belong."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "flaxbert"

# What each room may import of the others; errors, config, terminal and glibc are open to all.
MAY_IMPORT = {
    "config": set(),
    "errors": set(),
    "glibc": set(),
    "terminal": set(),
    "tasks": set(),
    "storage": {"child", "interrupt"},
    "processes": {"interrupt"},
    "handoff": {"data", "interrupt", "processes"},
    "together": {"interrupt", "loop", "processes", "storage"},
    "model": set(),
    "data": {"tasks", "storage"},
    "weights": {"model", "storage"},
    "loop": {"model", "tasks", "storage", "quiet"},
    "classifier": {"model", "weights", "data"},
    "costs": {"model", "data"},
    "interrupt": set(),
    "child": {"interrupt"},
    # whose kernels the canary checks, and whose processes it joins
    "diagnose": {"child", "interrupt", "loop", "model", "processes", "storage"},
    "planning": {"child", "data", "loop", "model", "prepare", "programs"},
    "quiet": set(),
    "cli": {"interrupt", "processes", "quiet"},
}

ONLY_IN = {
    "transformers": {"data/tokenize.py"},
    "orbax": {"storage/checkpoint.py", "storage/parameters.py"},
    "gcsfs": set(),  # by fsspec's registry
    "fsspec": {"storage/bucket.py"},
    "tensorstore": {"storage/lease.py"},
    "etils": {"storage/objects.py"},
    "huggingface_hub": {"storage/hub.py", "diagnose/caches.py"},
    "datasets": {"data/hub.py"},
    "torch": set(),
    "tensorflow": set(),
    "pickle": set(),
    "pickletools": set(),
    "msgpack": {"weights/flax_file.py"},
}

FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def _imports(name: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / name).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import"
            found.add(str(node.module))
            if node.module == "flaxbert":
                found |= {f"flaxbert.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("name", FILES)
def test_rooms_import_one_way(name):
    room = name.split("/")[0].removesuffix(".py")
    if room not in MAY_IMPORT or name == "__init__.py":
        return  # entry points may import everything
    rooms = {
        part.split(".")[1]
        for part in _imports(name)
        if part.startswith("flaxbert.") and len(part.split(".")) > 1
    }
    assert rooms - {room, "errors", "config", "glibc", "terminal"} <= MAY_IMPORT[room]


@pytest.mark.parametrize("name", FILES)
def test_heavy_libraries_stay_in_their_files(name):
    tops = {part.split(".")[0] for part in _imports(name)}
    for library, places in ONLY_IN.items():
        assert library not in tops or name in places, f"{name} imports {library}"


def test_every_room_is_listed():
    rooms = {name.split("/")[0] for name in FILES if "/" in name}
    assert rooms <= MAY_IMPORT.keys()
