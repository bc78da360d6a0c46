"""Shared fixtures, and eight simulated CPU devices for the mesh tests: set before JAX starts."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach past this machine
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import jax
import pytest

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture
def x64():
    """Runs a test with 64-bit types on."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def minilm():
    """The embedded checkpoint's folder (fetched once into the user's cache)."""
    from flaxbert.storage.embedded import minilm_directory

    return minilm_directory()
