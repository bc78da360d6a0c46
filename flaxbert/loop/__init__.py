"""Logits -> new weights: the step, the optimizer, the mesh, evaluation and run control."""
