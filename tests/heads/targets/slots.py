"""Batches of slots for the loss tests, and the options that they are compared under.

A third of the slots are empty but full of garbage.
"""

from __future__ import annotations

import itertools

import numpy as np

# (classes, label smoothing, with class weights)
SINGLE_LABEL = list(itertools.product([2, 3, 7], [0.0, 0.1, 0.7], [False, True]))
MULTI_LABEL = list(itertools.product([1, 3, 7], [0.0, 0.2], [False, True]))
REGRESSION = range(3)  # seeds

Batch = tuple[np.ndarray, np.ndarray, np.ndarray]


def single_label(seed: int = 0, shape: tuple[int, ...] = (2, 5, 4), classes: int = 3) -> Batch:
    """Returns logits, labels and weights."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(*shape, classes)) * 3
    labels = generator.integers(0, classes, shape)
    weights = (generator.random(shape) < 0.66).astype(np.float64)
    logits[weights == 0] *= 100
    return logits, labels, weights


def multi_label(seed: int = 0, shape: tuple[int, ...] = (2, 5, 4), classes: int = 3) -> Batch:
    """Returns logits, labels and weights."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(*shape, classes)) * 3
    labels = generator.integers(0, 2, (*shape, classes)).astype(np.float64)
    weights = (generator.random(shape) < 0.66).astype(np.float64)
    logits[weights == 0] *= 100
    return logits, labels, weights


def regression(seed: int = 0, shape: tuple[int, ...] = (2, 5, 4)) -> Batch:
    """Returns logits, labels and weights."""
    generator = np.random.default_rng(seed)
    logits, labels = generator.normal(size=(*shape, 1)), generator.normal(size=shape)
    weights = (generator.random(shape) < 0.66).astype(np.float64)
    logits[weights == 0] *= 1e6
    return logits, labels, weights


def class_weights(classes: int, weighted: bool) -> tuple[float, ...]:
    return tuple(np.linspace(0.3, 2.1, classes)) if weighted else ()
