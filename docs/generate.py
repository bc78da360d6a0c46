"""Writes docs/config.md from the config classes: python docs/generate.py

A test compares the page with what this prints, so that it cannot fall behind.
"""

from __future__ import annotations

import ast
import dataclasses
import re
from pathlib import Path

from flaxbert import config, registry

PAGE = Path(__file__).parent / "config.md"

HEAD = """# Config fields

Made from `flaxbert/config.py` by `python docs/generate.py`; do not edit.

A config file sets some fields (`config.data.max_length = 64`), the command line overrides one
(`--config.data.max_length=64`), and all others have the default below. An unknown field or a value
out of range ends with exit code 2 before anything is read. `RUN/config.json` records all fields.
A resume may change only `mesh.*`, `checkpoint.*`, `log.*`, `processes.*`, and where its files are.

A section with a `name` has the options of every member that it can name, as `optim.sgd.momentum`.
Setting an option of a member that it does not name is an error.

"""

TITLES = {
    "": "Seed",
    "seeds": "Seeds",
    "model": "Model",
    "data": "Data",
    "head": "Head",
    "train": "Training",
    "method": "Method",
    "optim": "Optimizer",
    "loss": "Loss",
    "mesh": "Devices",
    "checkpoint": "Checkpoints",
    "log": "Log",
    "processes": "Several processes",
}

# Fields whose name says it in the code.
NAMED = {
    "seed": "seed of everything; `seeds.*` set one purpose alone",
    "mesh.data": "devices that the batch is split over; -1 = all remaining",
    "mesh.fsdp": "devices that batch and parameters are split over",
    "mesh.model": "devices that heads and feed-forward are split over",
}


def comments() -> dict[str, dict[str, str]]:
    """Returns {class: {field: comment at its line}} of config.py."""
    source = Path(config.__file__).read_text(encoding="utf-8")
    classes = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    return {node.name: registry.comments_in(source, node) for node in classes}


def allowed(path: str) -> str:
    if path in config._CHOICES:
        return ", ".join(f"`{choice}`" for choice in config._CHOICES[path])
    if path in config._RANGES:
        low, high, inclusive = config._RANGES[path]
        least = f"{'≥' if inclusive else '>'} {low:g}"
        return least if high >= 1_000_000 else f"{least}, ≤ {high:.10g}"
    return ""


def table(group: str, cls: type, said: dict[str, str]) -> str:
    rows = ["| field | default | allowed | meaning |", "|---|---|---|---|"]
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(field.default):
            continue
        path = f"{group}.{field.name}" if group else field.name
        meaning = NAMED.get(path) or said[field.name]
        assert meaning, f"{path} has no comment"
        default = '""' if field.default == "" else field.default
        cells = [f"`{path}`", f"`{default}`", allowed(path), meaning]
        rows.append("| " + " | ".join(re.sub(r"\s*\|\s*", " or ", cell) for cell in cells) + " |")
    return "\n".join(rows)


def page() -> str:
    parts, said = [HEAD], comments()
    groups = {field.name: type(field.default) for field in dataclasses.fields(config.Config)}
    classes = {"": config.Config} | {
        name: cls for name, cls in groups.items() if dataclasses.is_dataclass(cls)
    }
    for name, cls in classes.items():
        parts.append(f"## {TITLES[name]}\n\n{table(name, cls, said[cls.__name__])}\n")
        for field in dataclasses.fields(cls) if name else ():
            if dataclasses.is_dataclass(field.default):
                member = registry.declared(config.BY_NAME[name], field.name)
                rows = table(f"{name}.{field.name}", type(field.default), member.comments)
                parts.append(f"With `{name}.name={field.name}`:\n\n{rows}\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
