"""The checks of `python -m flaxbert.doctor`: one file per subject; nothing is ever changed."""
