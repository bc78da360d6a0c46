"""The manifest: size and SHA-256 of every file of a checkpoint, written last.

Orbax has no end-to-end checksum on array bytes, so a flipped bit would load as a wrong weight. A
checkpoint is valid if its files match its manifest. Links and special files are refused before any
file is opened.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import PurePath
from typing import Any

from flaxbert.storage.interface import MANIFEST, DamagedError
from flaxbert.storage.store import store_for

NAME = MANIFEST
FORMAT = 1


def write_manifest(directory: PurePath) -> None:
    """Writes manifest.json over every other file below `directory`, after making them durable."""
    store = store_for(directory)
    store.settle(directory)
    files = {
        name: {"size": size, "sha256": store.sha256(directory / name)}
        for name, size in store.sizes(directory).items()
        if name != NAME
    }
    body = {"format": FORMAT, "files": files}
    body["digest"] = _digest(body)
    store.write(directory / NAME, json.dumps(body, indent=1, sort_keys=True).encode())


def verify_manifest(directory: PurePath) -> None:
    """Compares every byte of the directory with the manifest.

    Raises DamagedError, which names the first difference.
    """
    store = store_for(directory)
    present = store.sizes(directory)
    if NAME not in present:
        raise DamagedError(f"{NAME} is missing")
    del present[NAME]
    try:
        body = json.loads(store.read(directory / NAME))
        files, stated = body["files"], body.pop("digest")
        expected = {name: (entry["size"], entry["sha256"]) for name, entry in files.items()}
        valid = stated == _digest(body)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(f"{NAME} is not readable") from error
    if not valid:
        raise DamagedError(f"{NAME} does not match its own digest")
    if body.get("format") != FORMAT:
        raise DamagedError(f"{NAME} has format {body.get('format')!r}, this version reads {FORMAT}")
    for name in sorted(set(expected) ^ set(present)):
        state = "is missing" if name in expected else "is not in the manifest"
        raise DamagedError(f"{name} {state}")
    for name, (size, sha256) in expected.items():
        if present[name] != size:
            raise DamagedError(f"{name} has {present[name]} bytes, expected {size}")
        if store.sha256(directory / name) != sha256:
            raise DamagedError(f"{name} has other content than was saved")


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
