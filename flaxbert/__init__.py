"""flaxbert: fine-tune BERT in JAX, and hand the weights back to PyTorch.

Public names load on first use, so that `import flaxbert` costs nothing: the command line can parse
flags and install its signal handlers before JAX starts.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from flaxbert.config import Config, default_config
    from flaxbert.inference.models import ClassifierOutput
    from flaxbert.inference.predictors.classifier import (
        Classifier,
        FlaxBertForSequenceClassification,
    )
    from flaxbert.inference.predictors.token_classifier import (
        FlaxBertForTokenClassification,
        TokenClassifier,
    )
    from flaxbert.model.bert_config import BertConfig

_HOMES = {
    "Classifier": "flaxbert.inference.predictors.classifier",
    "TokenClassifier": "flaxbert.inference.predictors.token_classifier",
    "FlaxBertForSequenceClassification": "flaxbert.inference.predictors.classifier",
    "FlaxBertForTokenClassification": "flaxbert.inference.predictors.token_classifier",
    "ClassifierOutput": "flaxbert.inference.models",
    "BertConfig": "flaxbert.model.bert_config",
    "Config": "flaxbert.config",
    "default_config": "flaxbert.config",
}

__all__ = [
    "BertConfig",
    "Classifier",
    "ClassifierOutput",
    "Config",
    "FlaxBertForSequenceClassification",
    "FlaxBertForTokenClassification",
    "TokenClassifier",
    "__version__",
    "default_config",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'flaxbert' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
