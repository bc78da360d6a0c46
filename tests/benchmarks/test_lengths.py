"""The committed histogram is what its program makes, and drawing from it keeps its shares."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.benchmarks import load

lengths = load("lengths")
COMMITTED = json.loads(lengths.SHORT.read_text())


def test_the_committed_histogram_is_the_programs():
    assert lengths.simulated() == COMMITTED
    published = {"mean": 13.3, "median": 11, "p95": 30, "p99": 48, "longest": 66}
    found = COMMITTED["statistics"]
    assert {name: round(found[name], 1) for name in published} == published


@pytest.mark.parametrize("count", [10_000, 20_000, 67_349])
def test_any_number_of_lengths_has_its_shares(count):
    drawn = lengths.sentence_lengths(count)
    assert lengths.described(drawn) == COMMITTED["statistics"] | {"count": count}


def test_the_order_is_the_seeds():
    first, again, other = (lengths.sentence_lengths(500, seed) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert np.array_equal(np.sort(first), np.sort(other))
