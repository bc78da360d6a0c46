"""Checks of folders from other people: which of their links may be followed.

A link in a folder that was unpacked or cloned can point to any file of the user, which would then
be read as a vocabulary and copied into an export, or overwritten. Note: folders in the hub's cache
consist of links, and these must be followed.
"""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Collection
from pathlib import Path

from flaxbert.errors import ConfigError, ModelFileError


def refuse_links(root: Path) -> None:
    """Refuses a workdir that holds a link, a pipe or a device anywhere: flaxbert creates none.

    Raises ConfigError, which names the entry. The workdir itself may be a link: the user named it.
    """
    for folder, folders, files in os.walk(root):
        for path in (Path(folder, name) for name in (*folders, *files)):
            try:
                mode = path.lstat().st_mode
            except FileNotFoundError:  # deleted meanwhile
                continue
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                what = "a link" if stat.S_ISLNK(mode) else "no plain file"
                raise ConfigError(
                    f"--workdir: {path} is {what}. Nothing in a workdir may lead out of it: put "
                    "the files themselves there, or remove it."
                )


def refuse_outside(directory: Path, subfolders: Collection[str] = ()) -> None:
    """Refuses a model folder with a link to a file that is not in it.

    Links to folders are refused under the names in `subfolders`, the ones that will be opened.

    The hub's cache is made of links from snapshots/COMMIT/ and the folders in it to blobs/ beside
    snapshots/; these are followed. Raises ModelFileError, which names the link.
    """
    home = directory.resolve()
    inside = [home, *(folder.parent / "blobs" for folder in home.parents if _of_hub(folder))]
    with os.scandir(home) as entries:
        links = [entry for entry in entries if entry.is_symlink()]
    for entry in links:
        target = Path(os.path.realpath(entry.path))
        if target.is_dir() and entry.name not in subfolders:
            continue  # never opened
        if not any(target.is_relative_to(folder) for folder in inside):
            said = f"{directory}: {entry.name} is a link to {target}, outside of the folder."
            if target.parent.name == "blobs" and _of_hub(target.parent.with_name("snapshots")):
                copied = shlex.join(["cp", "-rL", str(directory), f"{home.name}-copy"])
                raise ModelFileError(
                    f"{said} Older versions of huggingface_hub made such folders by --local-dir: "
                    f"make one of plain files with `{copied}`, and name that."
                )
            raise ModelFileError(f"{said} Put a copy of the file there instead.")


def _of_hub(snapshots: Path) -> bool:
    """Whether this is the folder of snapshots of a model in the hub's cache."""
    return snapshots.name == "snapshots" and snapshots.parent.name.startswith("models--")
