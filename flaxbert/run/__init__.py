"""One run, built from a config: its inputs, compiled programs and results."""
