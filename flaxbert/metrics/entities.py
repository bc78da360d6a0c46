"""Scores of token classification, equal to seqeval's, and entities with their probabilities.

Note: there are two kinds of F1. The default is that of conlleval and seqeval, where an entity also
begins at an I- tag after O or after another type; "strict" (seqeval's mode="strict" with
the scheme) ignores every entity that does not follow the scheme.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from flaxbert.metrics import classification as scores
from flaxbert.metrics.tag_schemes import PLAIN, Entities, TagSet


def report(
    actual: Int[np.ndarray, " W"],
    predicted: Int[np.ndarray, " W"],
    sentences: Int[np.ndarray, " W"],
    names: Sequence[str],
    scheme: str = "IOB2",
) -> dict[str, Any]:
    """Returns the scores of all words W of a split; tags are numbers of `names`.

    Of entities {"labels": {type: scores}, "micro", "macro", "weighted", "strict": {the same four},
    "accuracy"}, over the types that occur or are predicted; of plain tags the scores of each tag,
    their means, the confusion matrix and "accuracy". The accuracy counts words, those of O too.
    """
    accuracy = scores.ratio(np.sum(actual == predicted), len(actual))
    if scheme == PLAIN:
        confusion = scores.confusion_matrix(actual, predicted, len(names))
        return {"accuracy": accuracy, **scores.label_report(confusion, names)}
    tag_set = TagSet.make(names, scheme)
    gold, found = tag_set.entities(actual, sentences), tag_set.entities(predicted, sentences)
    return {
        "accuracy": accuracy,
        **_entity_scores(gold, found, tag_set.types),
        "strict": _entity_scores(gold.strict(), found.strict(), tag_set.types),
    }


def scored_entities(
    probabilities: Float[np.ndarray, "W C"],
    tag_set: TagSet,
    characters: Sequence[tuple[int, int]] = (),
) -> list[dict[str, Any]]:
    """Returns {"type", "start", "end", "score"} of each entity in the words W of a text.

    start and end are words, the end exclusive; the score is the mean probability of the predicted
    tags of its words. With the character span of each word also "start_char" and "end_char".
    """
    best = np.append(probabilities.max(axis=-1).astype(np.float64), 0)  # the last end is an index
    sentences = np.zeros(len(probabilities), np.int64)
    found = tag_set.entities(probabilities.argmax(axis=-1), sentences)
    borders = np.stack([found.start, found.end], axis=-1)
    means = np.add.reduceat(best, borders.ravel())[::2] / (found.end - found.start)
    entities = []
    for kind, (start, end), score in zip(
        found.types, borders.tolist(), means.tolist(), strict=True
    ):
        entity = {"type": tag_set.types[kind], "start": start, "end": end, "score": score}
        if characters:
            entity["start_char"], entity["end_char"] = characters[start][0], characters[end - 1][1]
        entities.append(entity)
    return entities


def _entity_scores(actual: Entities, predicted: Entities, types: Sequence[str]) -> dict[str, Any]:
    """Returns scores of exact matches: type, first and last word must be right."""
    behind = max(actual.end.max(initial=0), predicted.end.max(initial=0)) + 1
    keys = [
        (each.start * behind + each.end) * len(types) + each.types for each in (actual, predicted)
    ]
    common = np.intersect1d(*keys, assume_unique=True)
    counts = [
        np.bincount(of, minlength=len(types)).tolist()
        for of in (common % len(types), predicted.types, actual.types)
    ]
    present = [i for i in range(len(types)) if any(column[i] for column in counts)]
    of_present = [[column[i] for i in present] for column in counts]
    return {
        **scores.count_report([types[i] for i in present], of_present),
        "micro": scores.label_scores(*map(sum, counts)),
    }
