"""What a row of tokens costs on a model and a device, for the planner of rows.

It stands between two rooms that do not know each other: the planner counts in `Work`, and how much
that is follows from the model's sizes. Note: only ratios matter, so a few sizes say enough and
nothing is measured.
"""

from __future__ import annotations

import dataclasses

from flaxbert.data.pack import Work
from flaxbert.model.bert_config import BertConfig
from flaxbert.model.kernels.tpu_sizes import LANES, served_lengths
from flaxbert.model.matmul import is_half

# A logit takes a TPU without a kernel as long as so many FLOPs of the linear layers: by its
# compiler's estimate an update of MiniLM in rows of 80 tokens takes 2.4 times as long as in 128.
_LOGIT_FLOPS = 3200


def work_for(bert: BertConfig, platform: str, dtype: str, parts: int = 1) -> Work:
    """Returns what a row costs beside its tokens, by the matrix products of this model.

    A token's linear layers take 4 D (2 D + F) FLOPs in each layer, attending to one key 4 D. Of the
    last layer a slot computes all but keys and values. Matrix units compute tiles of 128 keys. On
    CPUs the small products of attention, its softmax and its dropout take about four times as long
    as such FLOPs of the linear layers (benchmarks/NOTES.md). On TPUs some row lengths have a kernel
    for attention; in others what is done with each logit takes longer than all products.

    Args:
      bert: the model's sizes.
      platform: cpu, gpu or tpu.
      dtype: in which it computes.
      parts: over how many devices heads are split.
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
