"""The bucket of the tests: one server a process, for TensorStore reads its URL only once."""

from __future__ import annotations

from pathlib import PurePath

import pytest

from flaxbert.storage.store import location
from tests.gcs_server import BUCKET, shared_server


@pytest.fixture
def gcs():
    server = shared_server()
    server.reset()
    yield server
    server.reset()


@pytest.fixture
def root(gcs) -> PurePath:
    return location(f"gs://{BUCKET}/runs/one")
