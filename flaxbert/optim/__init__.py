"""Optimizers as optax transformations, and learning-rate schedules."""
