"""Kinds of target of a sequence classifier: losses, metrics and readable answers, a file each."""
