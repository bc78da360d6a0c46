"""Public model classes and their predictors, a file for each file of heads/.

A member defines a `FlaxBertFor...` and `PREDICTOR`, the `Predictor` of that class. The files of the
folder are the registry; flaxbert/__init__.py gives the public ones their short names.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flaxbert.inference.predictor import Predictor


def predictor_for(path_or_id: str | os.PathLike[str]) -> type[Predictor]:
    """Returns the predictor class for a trained model, by its head.

    Raises:
      ModelFileError: there is no such model.
    """
    from flaxbert.heads import head_of
    from flaxbert.registry import member, members
    from flaxbert.weights.folder import read_config
    from flaxbert.weights.resolve import resolve_model

    config, _ = read_config(resolve_model(path_or_id)[0])
    room = "inference/predictors"
    classes = [member(room, name).PREDICTOR for name in members(room)]
    architecture = head_of(config).architecture
    return next(c for c in classes if c.model_class.architecture == architecture)
