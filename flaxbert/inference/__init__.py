"""Inference with trained models: model classes, predictors, and prediction files."""
