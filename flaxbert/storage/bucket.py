"""One bucket of Google Cloud Storage: objects listed, read, put, copied and deleted, by gcsfs.

Every call ends within a bounded time, reports when it has to wait, and fails with a one-line error.
gcsfs retries temporary errors itself (six times, half a minute in all).
Note: gcsfs's listings cache is off, since it misses what other processes write.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import importlib.util
import os
import re
import time
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any

from flaxbert.errors import ConfigError, StorageError
from flaxbert.shell.console import say

SCHEME = "gs://"
_URL = re.compile(r"gs://([a-z0-9][a-z0-9._-]{1,220}[a-z0-9])(?:/(.*))?", re.DOTALL)

# Seconds for a request with its retries (gcsfs waits 31 to 36 s between six attempts); transfers
# get more time, at the slowest speed of a usable connection in bytes/s.
_PATIENCE, _SLOWEST = 120.0, 2**20
_REPORT_AFTER, _REPORT_EVERY = 5.0, 20.0
_CHUNK = 2**26  # bytes of a large object that are in memory at once
_TOGETHER = 16  # requests under way at once
_SETTINGS = {"use_listings_cache": False, "requests_timeout": 60}  # of gcsfs


@dataclasses.dataclass(frozen=True)
class Listed:
    """An object as listed; its generation changes with its content."""

    size: int
    generation: str


def split_url(url: str) -> tuple[str, str]:
    """Returns bucket and object name of gs://bucket/name.

    Raises ConfigError if it is malformed, or has characters that clients treat differently.
    """
    matched = _URL.fullmatch(url)
    if matched is None:
        raise ConfigError(f"{url!r}: expected gs://bucket/folder, with the bucket in lower case.")
    name = (matched[2] or "").rstrip("/")
    wrong = sorted({c for c in name if c in "*?[]#\\" or not c.isprintable()})
    if wrong or any(part in ("", ".", "..") for part in name.split("/") if name):
        what = f"the characters {' '.join(map(repr, wrong))}" if wrong else "empty or dotted parts"
        raise ConfigError(f"{url!r}: folders in a bucket must not have {what}. Name another.")
    return matched[1], name


class Bucket:
    """A bucket; names are those of objects in it, without gs:// and without the bucket."""

    def __init__(self, name: str) -> None:
        """Raises ConfigError if gcsfs is not installed."""
        self.name = name
        self._fs = _filesystem()

    def list(self, prefix: str) -> dict[str, Listed]:
        """Returns every object below the folder `prefix`, by its name relative to it."""
        start = f"{self.name}/{prefix}/" if prefix else f"{self.name}/"

        # A listing of the bucket itself distinguishes a missing bucket from an empty folder.
        listing = self._fs._find(start.rstrip("/"), detail=True, update_cache=False)
        try:
            found = self._call(listing, f"listing {SCHEME}{start}")
        except FileNotFoundError as error:
            raise StorageError(f"{SCHEME}{self.name}: there is no such bucket.") from error
        # Names that end in "/" are empty folders that the web console made.
        return {
            name[len(start) :]: Listed(int(entry["size"]), str(entry.get("generation", "")))
            for name, entry in found.items()
            if name.startswith(start) and not name.endswith("/")
        }

    def size(self, name: str) -> int | None:
        """Returns the bytes of an object, None if there is none."""
        path = f"{self.name}/{name}"
        try:
            entry = self._call(self._fs._info(path), f"looking for {SCHEME}{path}")
        except FileNotFoundError:
            return None
        return int(entry["size"]) if entry["type"] == "file" else None

    def read(self, name: str) -> bytes:
        """Raises FileNotFoundError if there is no such object."""
        path = f"{self.name}/{name}"
        return self._call(self._fs._cat_file(path), f"reading {SCHEME}{path}")

    def chunks(self, name: str) -> Iterable[bytes]:
        """Yields an object piece by piece."""
        path, size = f"{self.name}/{name}", self.size(name)
        if size is None:
            raise FileNotFoundError(2, os.strerror(2), f"{SCHEME}{path}")
        for start in range(0, size, _CHUNK):
            end = min(start + _CHUNK, size)
            reading = self._fs._cat_file(path, start=start, end=end)
            yield self._call(reading, f"reading {SCHEME}{path}", end - start)

    def fetch(self, name: str, target: Path) -> None:
        """Copies an object to a local file."""
        with target.open("wb") as file:
            for chunk in self.chunks(name):
                file.write(chunk)

    def put(self, name: str, data: bytes) -> None:
        path = f"{self.name}/{name}"
        writing = self._fs._pipe_file(path, data, consistency="md5")
        self._call(writing, f"writing {SCHEME}{path}", len(data))

    def upload(self, name: str, source: Path) -> None:
        """Puts a local file."""
        path = f"{self.name}/{name}"
        writing = self._fs._put_file(str(source), path, consistency="md5")
        self._call(writing, f"writing {SCHEME}{path}", source.stat().st_size)

    def copy(self, names: dict[str, str], size: int = 0) -> None:
        """Copies objects inside the bucket, {from: to}, without downloading them."""
        self._all(
            [(f"{self.name}/{old}", f"{self.name}/{new}") for old, new in names.items()],
            lambda pair: self._fs._cp_file(*pair),
            "copying",
            size,
        )

    def delete(self, names: Iterable[str]) -> None:
        """Deletes objects; missing ones are ignored."""

        async def delete(path: str) -> None:
            with contextlib.suppress(FileNotFoundError):  # or deleted, and the answer was lost
                await self._fs._rm_file(path)

        self._all([f"{self.name}/{name}" for name in names], delete, "deleting")

    def _all(self, items: list[Any], make: Callable[[Any], Any], what: str, size: int = 0) -> None:
        async def together(some: list[Any]) -> None:
            # Wait for all: after an error nothing may change the bucket any more.
            done = await asyncio.gather(*map(make, some), return_exceptions=True)
            for failed in (result for result in done if isinstance(result, BaseException)):
                raise failed

        told = f"{what} {len(items)} objects in {SCHEME}{self.name}"
        for start in range(0, len(items), _TOGETHER):
            self._call(together(items[start : start + _TOGETHER]), told, size)

    def _call(self, coroutine: Coroutine[Any, Any, Any], what: str, size: int = 0) -> Any:
        """Runs a coroutine of gcsfs, within `_PATIENCE` and the time that `size` bytes take.

        Raises FileNotFoundError if there is no such object, StorageError if the store refuses or
        does not answer.
        """
        begun, given = time.monotonic(), _PATIENCE + size / _SLOWEST
        future = asyncio.run_coroutine_threadsafe(coroutine, self._fs.loop)
        wait = _REPORT_AFTER
        try:
            while True:
                try:
                    return future.result(timeout=wait)
                except concurrent.futures.TimeoutError:
                    if future.done():  # it was gcsfs's timeout
                        return future.result()
                passed, wait = time.monotonic() - begun, _REPORT_EVERY
                if passed > given:
                    raise StorageError(f"{what}: no answer within {passed:.0f} s.")
                say(
                    f"flaxbert: {what}: still waiting after {passed:.0f} s; temporary errors are "
                    f"retried, for {given:.0f} s at most",
                )
        except (StorageError, FileNotFoundError):
            raise
        except Exception as error:  # whatever gcsfs, aiohttp and google.auth raise
            raise StorageError(f"{what}: {reason_for(error)}") from error
        finally:
            future.cancel()


def _filesystem() -> Any:
    """Returns gcsfs without its cache."""
    # Otherwise it asks for the bucket's kind over gRPC, for features that are not used here.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    if importlib.util.find_spec("gcsfs") is None:
        raise ConfigError('gs:// needs gcsfs, which is not installed: pip install "flaxbert[gcs]"')
    import fsspec.config  # here: reading it takes a second, and few runs are in a bucket

    return fsspec.filesystem("gcs", **(_SETTINGS | fsspec.config.conf.get("gcs", {})))


def configure_clients() -> None:
    """Sets up the storage clients that Orbax uses, for the whole process.

    etils.epath takes gcsfs from fsspec's registry and passes no settings; TensorStore reads its own
    from the environment when it is first used.
    """
    import fsspec.config

    fsspec.config.conf["gcs"] = _SETTINGS | fsspec.config.conf.get("gcs", {})
    # Give up dead connections, then retry.
    os.environ.setdefault("TENSORSTORE_CURL_CONNECT_TIMEOUT_SECONDS", "20")
    os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS", "60")
    os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES", "1")


def reason_for(error: Exception) -> str:
    """Returns one line: what is wrong and, for refusals, what to do."""
    whole = str(error).strip()
    found = re.search(r"\[http_response_code='(\d+)'\]", whole)  # TensorStore's
    status = str(found[1] if found else getattr(error, "code", ""))
    code = int(status) if status.isdecimal() else 0
    # gcsfs has its message last; TensorStore's is followed by the answer in brackets.
    text = (whole or type(error).__name__).splitlines()[-1].split(" [")[0][:300]
    kind = type(error).__module__
    if isinstance(error, TimeoutError) and not whole:
        return "no answer in time."
    if code == 401 or kind.startswith("google.auth"):
        return (
            f"no valid credentials ({text}). Run `gcloud auth application-default login`, or set "
            "GOOGLE_APPLICATION_CREDENTIALS."
        )
    if whole.startswith("Forbidden") or code == 403:
        return f"permission denied ({text}). Ask for the role Storage Object User on the bucket."
    if kind.startswith("aiohttp"):
        return f"the store cannot be reached ({text})."
    if code in (408, 429) or code >= 500:
        return f"the store is busy or has failed ({text}). Run the same command again later."
    return f"{text}."
