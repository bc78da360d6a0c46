"""The Hugging Face hub: a repository's data files -> a folder in the local cache.

Cache, endpoint, token and offline switch are `huggingface_hub`'s own (HF_HOME, HF_HUB_CACHE,
HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE). Note: once a revision is resolved, later requests name its
commit, so a warm cache answers without the hub.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flaxbert.errors import first_line

# NAME or OWNER/NAME, as the hub allows them.
_HUB_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)?")

_COMMIT = re.compile(r"[0-9a-f]{40}")

# A branch, tag or commit, as git allows them; it becomes a path in the cache.
_REVISION = re.compile(r"(?!.*(\.\.|//|/\.|\.lock$))[A-Za-z0-9_][A-Za-z0-9._/+@#=-]{0,199}")

CARD = "README.md"  # a repository's card: free text under a YAML header

_OFFLINE_ADVICE = (
    "Without a hub: name a local folder instead, or run the quickstart, which needs none "
    "(--config=configs/quickstart.py)."
)


class HubError(Exception):
    """Why a repository could not be fetched, in one readable line with what to do."""


def is_hub_id(name: str) -> bool:
    """Whether a name could be a repository on the hub."""
    return len(name) <= 200 and _HUB_ID.fullmatch(name) is not None


def fetch(kind: str, name: str, revision: str, patterns: Sequence[str]) -> Path:
    """Fetches files of a repository into the cache; returns their folder, named by the commit.

    Args:
      kind: "model" or "dataset".
      name: NAME or OWNER/NAME.
      revision: branch, tag or commit; "" = the default branch.
      patterns: shell patterns of the wanted files.

    Raises:
      HubError: no such repository or revision, no access, or no connection and not in the cache.
    """
    if revision and not _REVISION.fullmatch(revision):
        raise HubError(f"{revision[:80]!r} is no revision. Name a branch, a tag or a whole commit.")

    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub import utils as hub

    wanted: dict[str, Any] = {
        "repo_type": kind,
        "revision": revision or None,
        "allow_patterns": list(patterns),
    }
    unreachable: Exception | None = None
    verbosity = hub.logging.get_verbosity()
    hub.logging.set_verbosity_error()  # each retry twice on the screen; our message says it once
    try:
        if _COMMIT.fullmatch(revision):  # never changes: the cache needs no confirmation
            if _is_listed(kind, name, revision):
                with contextlib.suppress(hub.LocalEntryNotFoundError):
                    return Path(snapshot_download(name, local_files_only=True, **wanted))
            try:  # a missing hub is noticed here at once, not after every file's retries
                HfApi().repo_info(name, repo_type=kind, revision=revision)
            except (hub.RepositoryNotFoundError, hub.GatedRepoError, hub.RevisionNotFoundError):
                raise
            except Exception as error:
                unreachable = error
                wanted["local_files_only"] = True
        folder = snapshot_download(name, **wanted)
    except hub.GatedRepoError as error:
        raise HubError(
            f"access is granted by its owner only. Ask for it on the {kind}'s page, then set "
            "HF_TOKEN to your token (or run `hf auth login`)."
        ) from error
    except hub.RepositoryNotFoundError as error:
        raise HubError(
            f"there is no such {kind}, or it is private. Check the name; for a private one set "
            "HF_TOKEN (or run `hf auth login`)."
        ) from error
    except hub.RevisionNotFoundError as error:
        raise HubError(
            f"it has no revision {revision!r}. Name a branch, a tag or a whole commit."
        ) from error
    except hub.LocalEntryNotFoundError as error:
        raise HubError(
            f"it cannot be reached ({_reason(unreachable or error)}), and the cache has not all of "
            f"its files. Check the network, HF_ENDPOINT and HF_HUB_OFFLINE. {_OFFLINE_ADVICE}"
        ) from error
    except Exception as error:  # httpx's, and whatever a broken server makes the client raise
        if isinstance(error, OSError) and error.errno is not None and error.filename:
            raise  # the disk's: cli.py names it
        raise HubError(
            f"fetching failed ({_reason(error)}). Check the network, HF_ENDPOINT and "
            f"HF_HUB_OFFLINE. {_OFFLINE_ADVICE}"
        ) from error
    finally:
        hub.logging.set_verbosity(verbosity)
    return Path(folder)


def card_header(folder: Path) -> dict[str, Any]:
    """Returns the YAML header of a repository's card, {} without one that can be read."""
    from huggingface_hub import RepoCard

    if not (folder / CARD).is_file():
        return {}
    try:
        return RepoCard.load(folder / CARD, ignore_metadata_errors=True).data.to_dict()
    except Exception:  # free text: errors in it are ignored
        return {}


def _is_listed(kind: str, name: str, commit: str) -> bool:
    """Whether the cache has the list of a commit's files: without it, files that another program
    has not fetched could be missing unnoticed."""
    from huggingface_hub import constants

    repository = f"{kind}s--{name.replace('/', '--')}"
    return (Path(constants.HF_HUB_CACHE) / repository / "trees" / f"{commit}.json").is_file()


def _reason(error: BaseException) -> str:
    """Returns the first line of the cause: the outer message has advice of its own."""
    return first_line(error.__cause__ or error)
