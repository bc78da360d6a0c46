"""Signals in the phases of a real run, stops after single updates, and poisoned ones.

A few of each here; `make soak` does all and writes tests/results/{interrupt,resume_points}.json.
"""

from __future__ import annotations

import signal

import pytest

from tests.soak import interrupt, resume_points

pytestmark = pytest.mark.slow


@pytest.mark.timeout(900)
def test_signals_in_the_phases_of_a_run(tiny_bert, reviews, tmp_path):
    cases = [
        ("importing", signal.SIGINT),
        ("compiling", signal.SIGTERM),
        ("training", signal.SIGTERM),
        ("evaluating", signal.SIGINT),
        ("saving", signal.SIGTERM),
        ("resuming", signal.SIGTERM),
    ]
    outcomes = interrupt.soak(tiny_bert, reviews, tmp_path, cases, seed=1)
    assert [outcome.problems for outcome in outcomes] == [[] for _ in cases]
    assert {outcome.code for outcome in outcomes} == {75}


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("dtype", "points"),
    # The first and the last update, edges of epochs, an evaluation, a checkpoint, and beside them.
    [("float32", (1, 6, 15, 18, 37, 59)), ("bfloat16", (1, 30, 59))],
)
def test_stops_after_single_updates(tiny_bert, reviews, tmp_path, dtype, points):
    outcomes = resume_points.stop_everywhere(tiny_bert, reviews, tmp_path, dtype, points)
    assert outcomes == {point: [] for point in points}


@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore:invalid value encountered in multiply:RuntimeWarning")
def test_poisoned_updates():
    points = (1, 2, 17, 30, 59, 60)
    outcomes = resume_points.poison_everywhere(points)
    assert len(outcomes) == len(points) * len(resume_points.KINDS)
    assert not any(outcomes.values())
