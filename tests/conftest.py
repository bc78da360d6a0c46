"""Shared fixtures, and eight simulated CPU devices for the mesh tests: set before JAX starts."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.compiling import QUICKLY

# A shell that starts the tests in the background has them ignore Ctrl-C, and so would every process
# that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No test may reach past this machine; the embedded wheels were fetched before (`make test`).
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Compiled programs are shared by the tests of one session and by the processes that they start.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _cache = os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="flaxbert-test-")
    atexit.register(shutil.rmtree, _cache, ignore_errors=True)
# Compiling is most of the tests' time. `make test-next` sets XLA_FLAGS to nothing for the tests of
# numbers: those programs are compiled as a user's are.
os.environ.setdefault("XLA_FLAGS", QUICKLY)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax
import pytest

import tests.typecheck  # the plugin finds it as an attribute of `tests`
from tests.commands import train_flags, trained
from tests.inputs import write_reviews, write_tiny_bert

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture
def unchecked():
    """Runs a test without the check of annotations, to see our own error for wrong types."""
    with tests.typecheck.unchecked():
        yield


@pytest.fixture
def x64():
    """Runs a test with 64-bit types on."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The embedded checkpoint's folder (fetched once into the user's cache)."""
    from flaxbert.storage.embedded import minilm_directory

    return minilm_directory()


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """shared(name, write): the folder `name`, by `write(folder)` of whichever worker is first.

    Nobody may change what is in it: other tests, and other workers, read it too.
    """
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def made(name: str, write: Callable[[Path], object]) -> Path:
        folder, done = base / f"shared-{name}", base / f"shared-{name}.done"
        with (base / f"shared-{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)
                write(folder)
                done.touch()
        return folder

    return made


@pytest.fixture(scope="session")
def tiny_bert(minilm, shared) -> Path:
    """A checkpoint folder with the real tokenizer and a random 2-layer model of width 32."""
    return shared("tiny", write_tiny_bert)


@pytest.fixture(scope="session")
def reviews(shared) -> dict[str, Path]:
    """Real sentences as own files: train.csv (96 rows), dev.csv (40) and test.csv (24)."""
    folder = shared("reviews", write_reviews)
    return {name: folder / f"{name}.csv" for name in ("train", "dev", "test")}


@pytest.fixture(scope="session")
def finished(tiny_bert, reviews, shared) -> tuple[Path, list[str]]:
    """Workdir and flags of a finished run of 12 updates (2 epochs): to be read, not changed."""

    def flags_for(workdir: Path) -> list[str]:
        return train_flags(
            tiny_bert,
            reviews["train"],
            workdir,
            data__validation=reviews["dev"],
            data__test=reviews["test"],
            train__steps=12,
            train__accumulate=2,
        )

    workdir = shared("run", lambda folder: trained(flags_for(folder)))
    return workdir, flags_for(workdir)


@pytest.fixture(autouse=True)
def signal_handlers():
    """Puts back the handlers that a command installed in this process."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        with contextlib.suppress(ValueError):
            signal.signal(number, handler)
