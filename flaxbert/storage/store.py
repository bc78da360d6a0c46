"""Chooses the store of a path: the local disk, or an object store for gs:// URLs."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePath

from flaxbert.errors import ConfigError
from flaxbert.storage.interface import Store
from flaxbert.storage.local import LocalDisk

# Path makes one slash of two.
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/{1,3}(.+)")
_HUB_HOSTS = ("huggingface.co/", "www.huggingface.co/", "hf.co/")
_HUB = re.compile(
    r"(?:(?:www\.)?(?:huggingface\.co|hf\.co)/|hf:)"
    r"(datasets/)?([^/?#]+(?:/(?!tree/|blob/|resolve/)[^/?#@]+)?)"
)


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


def url_refusal(path: str | os.PathLike[str]) -> str:
    """Says what to name instead of a web address or another URL; "" for a local path.

    A run reads local files, and repositories of the hub by their names.
    """
    text = os.fspath(path)
    url = _URL.fullmatch(f"https://{text}" if text.startswith(_HUB_HOSTS) else text)
    if not url or os.path.exists(text):
        return ""
    scheme, rest = url[1].lower(), url[2]
    address = f"{scheme}://{rest}"
    if repository := _HUB.match(f"hf:{rest}" if scheme == "hf" else rest):
        name = repository[2]
        known = f"its name as the model, {name}"
        if repository[1]:
            known = f"config.data.dataset={name} to train on it, or download the file"
        return f"{address}: addresses of the hub are not read. Write {known}."
    if scheme in ("http", "https", "ftp"):
        return f"{address}: web addresses are not read. Download it first: curl -LO '{address}'"
    if scheme == "file":
        return f"{address}: write the path alone: /{rest}"
    return f"{address}: {scheme}:// is not read here. Copy it to this machine and name the copy."


def store_for(path: str | os.PathLike[str]) -> Store:
    """Returns the store that a path is in."""
    if is_url(path):
        from flaxbert.storage.bucket import split_url
        from flaxbert.storage.objects import object_store

        return object_store(split_url(os.fspath(path))[0])
    return LocalDisk()
