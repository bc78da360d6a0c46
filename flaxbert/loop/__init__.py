"""Logits -> new weights: the mesh, the train step, evaluation, progress and its log lines."""
