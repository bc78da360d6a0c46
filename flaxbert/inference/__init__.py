"""Trained models that answer: the public model classes, predictors, prediction files."""
