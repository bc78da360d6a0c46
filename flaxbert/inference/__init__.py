"""Trained models that answer: model classes, predictors, and prediction files."""
