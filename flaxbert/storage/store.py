"""Chooses the store of a path: the local disk, or an object store for gs:// URLs."""

from __future__ import annotations

import os
from pathlib import Path, PurePath

from flaxbert.errors import ConfigError
from flaxbert.storage.interface import Store
from flaxbert.storage.local import LocalDisk


def location(path: str | os.PathLike[str]) -> PurePath:
    """Returns the path of a local directory or a gs:// URL; ConfigError for any other URL."""
    text = os.fspath(path)
    if is_url(path):
        from flaxbert.storage.objects import url_path

        return url_path(text)
    if "://" in text:
        raise ConfigError(f"{text!r}: expected a local directory or gs://bucket/folder.")
    return Path(path)


def on_disk(path: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """Returns a local copy of the folder at a gs:// URL; any other path as it is.

    Raises ModelFileError if there is nothing at the URL.
    """
    return store_for(path).local_copy(location(path)) if is_url(path) else path


def is_url(path: str | os.PathLike[str]) -> bool:
    """Whether a path is in an object store."""
    return os.fspath(path).startswith("gs:")


def store_for(path: str | os.PathLike[str]) -> Store:
    """Returns the store that a path is in."""
    if is_url(path):
        from flaxbert.storage.bucket import split_url
        from flaxbert.storage.objects import object_store

        return object_store(split_url(os.fspath(path))[0])
    return LocalDisk()
