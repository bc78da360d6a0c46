"""Shares the tokenized data of one process with the others on its machine.

Arrays go through files that the others map into memory, so a machine holds them once. The files are
deleted as soon as all have opened them: the mappings stay valid.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flaxbert.data.batches import Examples
from flaxbert.data.tokenize import Tokens
from flaxbert.shell import signals

if TYPE_CHECKING:
    from flaxbert.hosts.group import SingleProcess

_DESCRIPTION = "prepared.json"


def hand_over(
    group: SingleProcess, sets: dict[str, Examples] | None, description: Any
) -> tuple[dict[str, Examples], Any]:
    """Returns the sets of examples and the description (JSON) of this machine's leader.

    All processes call it; the others pass None. One that cannot see the leader's files raises
    FileNotFoundError.
    """
    if max(group.all_gather(group.local_count)) == 1:
        return sets or {}, description
    folder = Path(group.on_leader(lambda: str(_write(sets or {}, description))))
    try:
        taken = (sets or {}, description) if group.is_leader else _read(folder)
        group.all_gather("taken")
    finally:
        if group.is_leader:
            shutil.rmtree(folder, ignore_errors=True)
    return taken


def _write(sets: dict[str, Examples], description: Any) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="flaxbert-"))
    signals.on_leaving(lambda: shutil.rmtree(folder, ignore_errors=True))
    described: dict[str, Any] = {}
    for number, (name, examples) in enumerate(sets.items()):
        parts = {
            "tokens": dataclasses.asdict(examples.tokens),
            "examples": {"labels": examples.labels, "layout": examples.layout},
            "extra": examples.extra,
        }
        described[name] = {part: {} for part in parts}
        for part, fields in parts.items():
            for field, value in fields.items():
                if isinstance(value, np.ndarray):
                    np.save(folder / f"{number}.{part}.{field}.npy", value)
                else:
                    described[name][part][field] = value
    text = json.dumps({"sets": described, "description": description})
    (folder / _DESCRIPTION).write_text(text, encoding="utf-8")
    return folder


def _read(folder: Path) -> tuple[dict[str, Examples], Any]:
    found = json.loads((folder / _DESCRIPTION).read_text(encoding="utf-8"))
    sets = {}
    for number, (name, plain) in enumerate(found["sets"].items()):
        for path in folder.glob(f"{number}.*.npy"):
            _, part, field, _ = path.name.split(".")
            plain[part][field] = np.load(path, mmap_mode="r")
        sets[name] = Examples(Tokens(**plain["tokens"]), **plain["examples"], extra=plain["extra"])
    return sets, found["description"]
