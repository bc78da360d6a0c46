"""The README.md of an exported folder: a model card."""

from __future__ import annotations

from typing import Any

from flaxbert.model.bert_config import BertConfig
from flaxbert.shell.console import printable

_LABELS = 100  # that a card lists


def model_card(config: BertConfig, facts: dict[str, Any], results: dict[str, Any]) -> str:
    """Returns a model card; `facts` are name -> value, `results` metric -> number."""
    rows = "\n".join(f"| {_cell(name)} | {_cell(value)} |" for name, value in facts.items())
    scores = "\n".join(
        f"| {name} | {value:.4f} |" if isinstance(value, float) else f"| {name} | {value} |"
        for name, value in results.items()
    )
    listed = [f"{index} = {_cell(name)}" for index, name in enumerate(config.id2label)]
    more = f", and {len(listed) - _LABELS} more in config.json" if len(listed) > _LABELS else ""
    labels = ", ".join(listed[:_LABELS]) + more
    table = f"| | |\n|---|---|\n{rows}\n"
    scored = f"\n## Validation\n\n| metric | value |\n|---|---|\n{scores}\n" if scores else ""
    return f"""---
library_name: transformers
pipeline_tag: text-classification
tags: [bert, jax, flaxbert]
---

# BERT sequence classifier

Fine-tuned with flaxbert (JAX). PyTorch loads this folder as it is:

```python
from transformers import pipeline
classify = pipeline("text-classification", model="PATH_OF_THIS_FOLDER")
```

Labels: {labels}.

## Training

{table}{scored}"""


def _cell(value: Any) -> str:
    """Escapes line breaks and bars, so that any text stays in its cell."""
    return printable(" ".join(str(value).splitlines())).replace("|", "\\|")
