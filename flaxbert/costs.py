"""What a row of tokens costs on a model and a device, for the planner of rows.

It stands between two rooms that do not know each other: the planner counts in `Work`, and how much
that is follows from the model's sizes. The surprising thing: only ratios matter, so a few sizes say
enough and nothing is measured.
"""

from __future__ import annotations

from flaxbert.data.pack import Work
from flaxbert.model.config import BertConfig

# FLOPs of the linear layers in whose time a TPU computes a logit without a kernel. Its compiler's
# estimate of an update of MiniLM in rows of 80 tokens took 2.4 times as long as in rows of 128.
_LOGIT = 800


def work_for(bert: BertConfig, platform: str) -> Work:
    """Returns what a row costs beside its tokens, by the matrix products of this model.

    A token's linear layers take 4 D (2 D + F) FLOPs in each layer, attending to one key 4 D. Of the
    last layer a slot computes all but keys and values. Matrix units compute tiles of 128 keys. On
    CPUs the small products of attention, its softmax and its dropout take about four times as long
    as such FLOPs of the linear layers (benchmarks/NOTES.md). On TPUs rows of whole tiles have a
    kernel for attention; in others what is done with each logit takes longer than all products.
    """
    width = 2 * bert.hidden_size + bert.intermediate_size
    slot = (bert.hidden_size + bert.intermediate_size) / (width * bert.num_hidden_layers)
    if platform == "cpu":
        return Work(key=4 / width, slot=slot, tile=8)
    odd_key = 0.0
    if platform == "tpu":
        from flaxbert.model.kernels.tpu_attention import LANES, serves

        if serves(LANES, bert.hidden_size, bert.num_attention_heads):
            odd_key = _LOGIT * bert.num_attention_heads / (bert.hidden_size * width)
    return Work(key=1 / width, slot=slot, tile=128, odd_key=odd_key)
