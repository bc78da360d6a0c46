"""The manifest: size and SHA-256 of every file of a checkpoint, written last.

Orbax has no end-to-end checksum on array bytes, so a flipped bit would load as a wrong weight. A
checkpoint is valid when its manifest verifies; the walk refuses symlinks and anything that is not a
plain file before a byte is opened.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any

from flaxbert.storage.workdir import sync_directory, write_atomically

NAME = "manifest.json"
FORMAT = 1


class DamagedError(Exception):
    """Why a directory does not verify; callers decide what that means."""


def write_manifest(directory: Path) -> None:
    """Writes manifest.json over every other file below `directory`, after syncing them."""
    files = {}
    for name, path in files_in(directory).items():
        if name != NAME:
            files[name] = {"size": path.stat().st_size, "sha256": _sha256(path, sync=True)}
    for folder in {path.parent for path in files_in(directory).values()}:
        sync_directory(folder)
    body = {"format": FORMAT, "files": files}
    body["digest"] = _digest(body)
    write_atomically(directory / NAME, json.dumps(body, indent=1, sort_keys=True).encode())


def verify_manifest(directory: Path) -> None:
    """Reads every byte of the directory and compares it with the manifest.

    Raises:
      DamagedError: names the first difference.
    """
    present = files_in(directory)
    if NAME not in present:
        raise DamagedError(f"{NAME} is missing")
    try:
        body = json.loads(present.pop(NAME).read_bytes())
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
        actual = present[name].stat().st_size
        if actual != size:
            raise DamagedError(f"{name} has {actual} bytes, expected {size}")
        if _sha256(present[name]) != sha256:
            raise DamagedError(f"{name} has other content than was saved")


def files_in(directory: Path) -> dict[str, Path]:
    """Returns relative name -> path of every file, looking at entries without following them.

    Raises:
      DamagedError: a link, or anything else that is no plain file.
    """
    found: dict[str, Path] = {}
    pending = [directory]
    while pending:
        for entry in sorted(os.scandir(pending.pop()), key=lambda item: item.name):
            mode = entry.stat(follow_symlinks=False).st_mode
            path = Path(entry.path)
            if stat.S_ISDIR(mode):
                pending.append(path)
            elif stat.S_ISREG(mode):
                found[path.relative_to(directory).as_posix()] = path
            else:
                raise DamagedError(f"{path.name} is neither a plain file nor a directory")
    return found


def _sha256(path: Path, *, sync: bool = False) -> str:
    with path.open("rb") as file:
        if sync:
            os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
