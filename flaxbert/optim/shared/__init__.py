"""Shared by optimizers and the step: weight decay by name, gradient norm and clipping."""
