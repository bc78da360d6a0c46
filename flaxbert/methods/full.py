"""Full fine-tuning: every parameter is trained."""

from __future__ import annotations

from typing import Any

from flaxbert.methods import Method
from flaxbert.model.bert_config import BertConfig


def make(options: Any, bert: BertConfig) -> Method:
    return Method()
