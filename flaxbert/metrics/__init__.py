"""Scores as pure functions of whole arrays and tag sequences; a leaf that imports no other room."""
