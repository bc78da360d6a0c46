"""The progress bar of prediction and evaluation, on standard error."""

from __future__ import annotations

import sys

from huggingface_hub.utils import tqdm

_EVERY = 30.0  # seconds between lines without a terminal: a bar would fill a log file


def progress_bar(total: int | None = None, unit: str = "rows") -> tqdm:
    """Returns tqdm's bar; silent if HF_HUB_DISABLE_PROGRESS_BARS is on."""
    every = 0.1 if sys.stderr.isatty() else _EVERY
    return tqdm(total=total, unit=f" {unit}", mininterval=every, file=sys.stderr)
