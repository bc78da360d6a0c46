"""The border between a shell and the package: command lines, signals, the terminal."""
