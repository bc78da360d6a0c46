"""Trained models that answer: the public model classes, predictors, and prediction files."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flaxbert.inference.predictor import Predictor


def predictor_for(path_or_id: str | os.PathLike[str]) -> type[Predictor]:
    """Returns the class that answers with a trained model: the one of its head.

    Raises:
      ModelFileError: there is no such model.
    """
    from flaxbert.inference.classifier import Classifier
    from flaxbert.inference.token_classifier import TokenClassifier
    from flaxbert.weights.folder import read_config
    from flaxbert.weights.resolve import resolve_model

    config, _ = read_config(resolve_model(path_or_id)[0])
    classes = (Classifier, TokenClassifier)
    return next(c for c in classes if c.model_class.architecture == config.architecture)
