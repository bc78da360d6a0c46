"""Prepared data, handed from one process of a machine to the others there: tokenized once.

Arrays go through files that the others map, so a machine holds them once, however many processes it
has. The surprising thing: the files are deleted as soon as all have opened them; a mapping outlives
its name.
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
    """Returns the sets of examples and the description (JSON) that this machine's leader has.

    All processes call it; those that do not lead have nothing to give. One that cannot see the
    leader's files raises FileNotFoundError.
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
    described = {}
    for number, (name, examples) in enumerate(sets.items()):
        fields = dataclasses.asdict(examples.tokens) | {"labels": examples.labels}
        plain = {}
        for field, value in fields.items():
            if isinstance(value, np.ndarray):
                np.save(folder / f"{number}.{field}.npy", value)
            else:
                plain[field] = value
        described[name] = plain
    text = json.dumps({"sets": described, "description": description})
    (folder / _DESCRIPTION).write_text(text, encoding="utf-8")
    return folder


def _read(folder: Path) -> tuple[dict[str, Examples], Any]:
    found = json.loads((folder / _DESCRIPTION).read_text(encoding="utf-8"))
    sets = {}
    for number, (name, plain) in enumerate(found["sets"].items()):
        arrays = {
            path.name.split(".")[1]: np.load(path, mmap_mode="r")
            for path in folder.glob(f"{number}.*.npy")
        }
        labels = arrays.pop("labels")
        sets[name] = Examples(Tokens(**plain, **arrays), labels)
    return sets, found["description"]
