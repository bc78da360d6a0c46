"""The cost of a row of tokens for a model and a device, for the row planner in data/pack.py.

The planner counts in units of `Work`; their values follow from the model's sizes. Note: only ratios
matter, so a few sizes are enough and nothing is measured.
"""

from __future__ import annotations

import dataclasses

from flaxbert.data.pack import Work
from flaxbert.model.bert_config import BertConfig
from flaxbert.model.kernels.tpu_sizes import LANES, served_lengths
from flaxbert.model.matmul import is_half

# FLOPs of the linear layers that take a TPU as long as one attention logit without a kernel: by its
# compiler's estimate an update of MiniLM in rows of 80 tokens takes 2.4 times as long as in 128.
_LOGIT_FLOPS = 3200


def work_for(bert: BertConfig, platform: str, dtype: str, parts: int = 1) -> Work:
    """Returns the cost of keys and slots in units of a token's linear layers.

    In each layer a token's linear layers take 4 D (2 D + F) FLOPs, attention to one key 4 D. In the
    last layer a slot computes all but keys and values. Matrix units compute tiles of 128 keys. On
    CPUs the small products of attention, its softmax and its dropout take about four times as long
    as the same FLOPs of linear layers (benchmarks/NOTES.md). On TPUs some row lengths have an
    attention kernel; for others, softmax and dropout take longer than all products.

    Args:
      bert: the model's sizes.
      platform: cpu, gpu or tpu.
      dtype: the compute dtype.
      parts: devices that heads are split over.
    """
    hidden, heads = bert.hidden_size, bert.num_attention_heads
    width = 2 * hidden + bert.intermediate_size
    slot = (hidden + bert.intermediate_size) / (width * bert.num_hidden_layers)
    if platform == "cpu":
        return Work(key=4 / width, slot=slot, tile=8)
    work = Work(key=1 / width, slot=slot, tile=LANES)
    if platform != "tpu" or not is_half(dtype):
        return work
    lengths = served_lengths(hidden // parts, heads // parts)
    plain = _LOGIT_FLOPS * heads / (4 * hidden * width) if lengths else 0.0
    return dataclasses.replace(work, kernel_lengths=lengths, plain_key=plain)
