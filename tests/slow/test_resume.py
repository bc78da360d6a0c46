"""SIGKILL on real processes: the same command goes on to the same bits.

Three kills of one workdir here; `make soak` does a hundred and writes tests/results/resume.json.
"""

from __future__ import annotations

import pytest

from tests.soak.resume import soak


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_sigkill_at_random_moments(tiny_bert, reviews, tmp_path):
    outcomes = soak(tiny_bert, reviews["train"], reviews["dev"], tmp_path, kills=3, seed=1)
    assert [outcome.differences for outcome in outcomes] == [[], [], []]
    assert [outcome.committed_steps_lost for outcome in outcomes] == [0, 0, 0]
    assert len({outcome.newest_checkpoint_at_kill for outcome in outcomes}) > 1
