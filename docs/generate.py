"""Writes docs/config.md from the config classes: python docs/generate.py

A test compares the page with what this prints, so that it cannot fall behind.
"""

from __future__ import annotations

import ast
import dataclasses
import re
from pathlib import Path

from flaxbert import config

PAGE = Path(__file__).parent / "config.md"

HEAD = """# Config fields

Made from `flaxbert/config.py` by `python docs/generate.py`; do not edit.

A config file sets what it chooses (`config.data.max_length = 64`), the command line overrides one
field (`--config.data.max_length=64`), and everything else has the default below. An unknown field
or a value out of range ends with exit code 2 before anything is read. `RUN/config.json` records all
fields of a run. In a resume only `mesh.*`, `checkpoint.*`, `log.*` and `processes.*` may differ.
"""

TITLES = {
    "": "Seed",
    "seeds": "Sources of chance",
    "model": "Model",
    "data": "Data",
    "head": "Head",
    "train": "Training",
    "optim": "Optimizer: AdamW",
    "loss": "Loss",
    "mesh": "Devices",
    "checkpoint": "Checkpoints",
    "log": "Log",
    "processes": "Several processes",
}

# Fields whose name says it in the code.
NAMED = {
    "seed": "seed of everything; `seeds.*` vary one source of chance alone",
    "optim.weight_decay": "decoupled decay, off biases and LayerNorm",
    "optim.b1": "decay of the first moment",
    "optim.b2": "decay of the second moment",
    "optim.eps": "added to the root of the second moment",
    "mesh.data": "devices that the batch is split over; -1 = all that are left",
    "mesh.fsdp": "devices that batch and parameters are split over",
    "mesh.model": "devices that heads and feed-forward are split over",
}


def comments() -> dict[tuple[str, str], str]:
    """Returns {(class, field): comment at its line} of config.py."""
    source = Path(config.__file__).read_text(encoding="utf-8")
    lines = source.splitlines()
    found = {}
    for node in ast.parse(source).body:
        for field in getattr(node, "body", []):
            if isinstance(node, ast.ClassDef) and isinstance(field, ast.AnnAssign):
                name = field.target.id  # type: ignore[union-attr]
                _, _, comment = lines[field.lineno - 1].partition("  # ")
                found[node.name, name] = comment
    return found


def allowed(path: str) -> str:
    if path in config._CHOICES:
        return ", ".join(f"`{choice}`" for choice in config._CHOICES[path])
    if path in config._RANGES:
        low, high, inclusive = config._RANGES[path]
        least = f"{'≥' if inclusive else '>'} {low:g}"
        return least if high >= 1_000_000 else f"{least}, ≤ {high:.10g}"
    return ""


def table(group: str, cls: type) -> str:
    said = comments()
    rows = ["| field | default | allowed | meaning |", "|---|---|---|---|"]
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(field.default):
            continue
        path = f"{group}.{field.name}" if group else field.name
        meaning = NAMED.get(path) or said[cls.__name__, field.name]
        assert meaning, f"{path} has no comment"
        default = '""' if field.default == "" else field.default
        cells = [f"`{path}`", f"`{default}`", allowed(path), meaning]
        rows.append("| " + " | ".join(re.sub(r"\s*\|\s*", " or ", cell) for cell in cells) + " |")
    return "\n".join(rows)


def page() -> str:
    parts = [HEAD]
    groups = {field.name: type(field.default) for field in dataclasses.fields(config.Config)}
    classes = {"": config.Config} | {
        name: cls for name, cls in groups.items() if dataclasses.is_dataclass(cls)
    }
    for name, cls in classes.items():
        parts.append(f"## {TITLES[name]}\n\n{table(name, cls)}\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
