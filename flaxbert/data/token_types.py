"""Token type 0 for both texts of a pair, where transformers feeds no types to a model."""

from __future__ import annotations

import json
from typing import Any


def set_type_zero(backend: Any) -> None:
    """Changes a tokenizer of the tokenizers library so that all tokens have type 0.

    What reads its tokenizer.json alone then gives a model the types of training.
    """
    import tokenizers

    if backend.post_processor is None:
        return
    state = _type_zero(json.loads(backend.post_processor.__getstate__()))
    model = {"type": "WordLevel", "vocab": {}, "unk_token": ""}
    carrier = {"model": model, "added_tokens": [], "post_processor": state}
    backend.post_processor = tokenizers.Tokenizer.from_str(json.dumps(carrier)).post_processor


def _type_zero(state: dict[str, Any]) -> dict[str, Any]:
    """Returns a post-processor, in the form of tokenizer.json, that gives type 0 alone."""
    if state["type"] == "Sequence":
        return state | {"processors": [_type_zero(part) for part in state["processors"]]}
    if state["type"] == "BertProcessing":  # its types are fixed; the same as a template
        state = _template(state["cls"], state["sep"])
    if state["type"] != "TemplateProcessing":
        return state  # RoBERTa's has type 0, the others have no types
    return state | {
        layout: [
            {kind: part | {"type_id": 0} for kind, part in piece.items()} for piece in state[layout]
        ]
        for layout in ("single", "pair")
    }


def _template(cls: list[Any], sep: list[Any]) -> dict[str, Any]:
    """Returns [CLS] A [SEP] and [CLS] A [SEP] B [SEP]; each token comes with its id."""
    first, end = ({"SpecialToken": {"id": token, "type_id": 0}} for token, _ in (cls, sep))
    text, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    return {
        "type": "TemplateProcessing",
        "single": [first, text, end],
        "pair": [first, text, end, second, end],
        "special_tokens": {
            token: {"id": token, "ids": [number], "tokens": [token]} for token, number in (cls, sep)
        },
    }
