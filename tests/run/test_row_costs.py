"""What rows cost on each kind of device, and so which the planner takes."""

from __future__ import annotations

import numpy as np
import pytest

from flaxbert.data.batches import Examples, plan_inference, plan_training
from flaxbert.data.tokenize import Tokens
from flaxbert.model.bert_config import BertConfig
from flaxbert.run.row_costs import work_for

MINILM = BertConfig(
    hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
)
SMALL_HEADS = BertConfig(hidden_size=128, num_attention_heads=8, intermediate_size=512)


def test_a_row_without_a_kernel_costs_a_tpu_more():
    """The TPU compiler's estimates: MiniLM 2.4 times as long a token, bert-base 1.4 times."""
    for bert, times in ((MINILM, 2.4), (BertConfig(), 1.36)):
        work = work_for(bert, "tpu", "bfloat16")
        each = [work.of_row(length, 0) / length for length in (80, 128)]
        assert each[0] / each[1] == pytest.approx(times, rel=0.05)


@pytest.mark.parametrize(
    ("bert", "platform", "dtype", "parts", "lengths"),
    [
        (MINILM, "tpu", "bfloat16", 1, (128, 256, 384, 512)),
        (BertConfig(), "tpu", "bfloat16", 2, (128, 256, 384, 512)),
        (SMALL_HEADS, "tpu", "bfloat16", 1, (128, 256)),
        (MINILM, "tpu", "bfloat16", 2, ()),  # 192 features are no whole lanes
        (MINILM, "tpu", "float32", 1, ()),
        (MINILM, "gpu", "bfloat16", 1, ()),
        (MINILM, "cpu", "float32", 1, ()),
    ],
)
def test_where_rows_have_kernels(bert, platform, dtype, parts, lengths):
    work = work_for(bert, platform, dtype, parts)
    assert work.kernel_lengths == lengths
    assert (work.plain_key > 0) is bool(lengths)


def examples(shortest: int, longest: int) -> Examples:
    lengths = np.random.default_rng(0).integers(shortest, longest + 1, 2048)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.ones(offsets[-1], np.uint16)
    return Examples(Tokens(ids, ids, offsets, 0, 0.0), np.zeros(2048, np.int32))


@pytest.mark.parametrize("packing", ["pack", "pad"])
@pytest.mark.parametrize(("shortest", "longest"), [(10, 78), (280, 320), (400, 470)])
def test_a_tpu_has_rows_with_a_kernel(shortest, longest, packing):
    data, work = examples(shortest, longest), work_for(MINILM, "tpu", "bfloat16")
    plan = plan_training(data, batch_size=64, seed=0, steps=20, packing=packing, work=work)
    assert plan.row_length in work.kernel_lengths
    for each in plan_inference(data.tokens.lengths, row_multiple=1, packing=packing, work=work):
        assert each.row_length in work.kernel_lengths


def test_what_no_kernel_serves_is_not_padded_to_its_length():
    data = examples(10, 70)
    for work in (work_for(MINILM, "tpu", "float32"), work_for(MINILM, "cpu", "float32")):
        plan = plan_training(data, batch_size=64, seed=0, steps=20, packing="pad", work=work)
        assert plan.row_length == 72
