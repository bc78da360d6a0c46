"""What rows cost on each kind of device, and so which the planner takes."""

from __future__ import annotations

import numpy as np
import pytest

from flaxbert.costs import work_for
from flaxbert.data.batches import Examples, plan_training
from flaxbert.data.tokenize import Tokens
from flaxbert.model.config import BertConfig

MINILM = BertConfig(
    hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
)


def test_a_row_without_a_kernel_costs_a_tpu_more():
    """The TPU compiler's estimates: MiniLM 2.4 times as long a token, bert-base 1.4 times."""
    for bert, times in ((MINILM, 2.4), (BertConfig(), 1.36)):
        work = work_for(bert, "tpu")
        each = [work.of_row(length, 0) / length for length in (80, 128)]
        assert each[0] / each[1] == pytest.approx(times, rel=0.05)
    assert work_for(MINILM, "gpu").odd_key == work_for(MINILM, "cpu").odd_key == 0


def test_heads_that_no_kernel_serves_cost_the_same_at_any_length():
    odd = BertConfig(hidden_size=312, num_attention_heads=12, intermediate_size=1200)
    assert work_for(odd, "tpu").odd_key == 0


def test_a_tpu_has_rows_of_whole_tiles():
    lengths = np.random.default_rng(0).integers(10, 79, 4096)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.ones(offsets[-1], np.uint16)
    examples = Examples(Tokens(ids, ids, offsets, 0, 0.0), np.zeros(4096, np.int32))
    plan = plan_training(
        examples,
        batch_size=64,
        seed=0,
        steps=100,
        packing="pack",
        work=work_for(MINILM, "tpu"),
    )
    assert plan.row_length % 128 == 0
