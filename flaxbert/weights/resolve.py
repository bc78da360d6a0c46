"""Finds a model: a folder, gs://, `embedded:minilm` or a hub id -> a local folder.

Of a repository only data files are fetched, and weights only in its safest format. No program of a
repository is fetched, and no format's reader can run code.
"""

from __future__ import annotations

import os
from pathlib import Path

from flaxbert.errors import ConfigError, ModelFileError
from flaxbert.storage.embedded import minilm_directory
from flaxbert.storage.hub import HubError, fetch, is_hub_id
from flaxbert.storage.store import is_url, on_disk, url_refusal
from flaxbert.weights.foreign import MARKERS
from flaxbert.weights.formats import hub_patterns

EMBEDDED = "embedded:minilm"

_FILES = (
    "config.json",
    "bert_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "config_sentence_transformers.json",
    *MARKERS,
)


def resolve_model(path: str | os.PathLike[str], revision: str = "") -> tuple[Path, str]:
    """Returns the local folder of a model and its resolved revision ("" for a folder).

    Raises ConfigError for a revision of anything but a hub id, ModelFileError if there is no such
    folder and it cannot be fetched from the hub.
    """
    if is_url(path) and not revision:
        path = on_disk(path)
    name = os.fspath(path)
    if revision and (name == EMBEDDED or is_url(name) or os.path.exists(name)):
        raise ConfigError(f"a revision ({revision!r}) is for hub ids; {name} is a folder.")
    if name == EMBEDDED:
        return minilm_directory(), EMBEDDED
    if name and os.path.exists(name):  # unlike Path.exists, False for a name that is too long
        return Path(name), ""
    if refusal := url_refusal(name):
        raise ModelFileError(refusal)
    if not is_hub_id(name):
        raise ModelFileError(
            f"{name!r}: there is no such folder. Name a checkpoint folder, a hub id or {EMBEDDED}."
        )
    return _fetch(name, revision)


def _fetch(name: str, revision: str) -> tuple[Path, str]:
    """Fetches small files first, to learn the commit, then the weights of one format."""
    try:
        folder = fetch("model", name, revision, _FILES)
        for patterns in hub_patterns():
            fetch("model", name, folder.name, (*_FILES, *patterns))
            if any(folder.glob(patterns[0])):
                break
    except HubError as error:
        raise ModelFileError(
            f"model {name!r}: there is no such folder; as a hub id: {error}"
        ) from error
    if not folder.is_dir():
        raise ModelFileError(
            f"model {name!r}: the repository has no config.json and no weights that can be read. "
            "Name that of the PyTorch model."
        )
    return folder, folder.name  # a snapshot folder is named by its commit
