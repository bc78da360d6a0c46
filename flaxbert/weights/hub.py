"""Where a model comes from: a folder, `embedded:minilm`, or a hub id -> a local folder.

The surprising thing: only data files are ever fetched. No remote code, no pickle.
"""

from __future__ import annotations

import os
from pathlib import Path

from flaxbert.errors import ConfigError, ModelFileError
from flaxbert.storage.embedded import minilm_directory

EMBEDDED = "embedded:minilm"

_FILES = (
    "config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
)


def resolve_model(path: str | os.PathLike[str], revision: str = "") -> tuple[Path, str]:
    """Returns the local folder of a model and its resolved revision ("" for a folder).

    Raises:
      ConfigError: a revision of something that is no hub id.
      ModelFileError: there is no such folder, and it is no hub id or the hub cannot be reached.
    """
    name = os.fspath(path)
    if revision and (name == EMBEDDED or os.path.exists(name)):
        raise ConfigError(f"a revision ({revision!r}) is for hub ids; {name} is a local folder.")
    if name == EMBEDDED:
        return minilm_directory(), EMBEDDED
    if name and os.path.exists(name):  # unlike Path.exists, False for a name that is too long
        return Path(name), ""
    # A hub id is NAME or OWNER/NAME; anything else can only have been meant as a folder.
    if name.startswith((".", "/", "~", "embedded:")) or name.count("/") > 1 or not name:
        raise ModelFileError(
            f"{name!r}: there is no such folder. Name a checkpoint folder, a hub id or {EMBEDDED}."
        )
    return _fetch(name, revision)


def _fetch(name: str, revision: str) -> tuple[Path, str]:
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            name, revision=revision or None, allow_patterns=list(_FILES), tqdm_class=None
        )
    except Exception as error:  # the hub's own, httpx's and the operating system's
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelFileError(
            f"{name!r}: there is no such folder, and it could not be fetched from the model hub: "
            f"{reason} Check the name and the network, or name a local folder or {EMBEDDED}."
        ) from error
    return Path(folder), Path(folder).name  # a snapshot folder is named by its commit
