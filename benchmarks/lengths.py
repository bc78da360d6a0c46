"""Sentence lengths for benchmarks that need no text: drawn from a committed histogram.

    python benchmarks/lengths.py        # writes histograms/short_sentences.json again

Note: drawing leaves nothing to chance but the order. Any number of lengths has the histogram's own
shares, so that figures of different runs differ by what was measured alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

SHORT = Path(__file__).parent / "histograms" / "short_sentences.json"

# 2 special tokens and a log-normal number of word pieces.
_COUNT, _SPECIAL, _MEDIAN, _SIGMA, _LEAST, _MOST = 10_000, 2, 8.8, 0.71, 3, 66


def main() -> None:
    SHORT.parent.mkdir(exist_ok=True)
    SHORT.write_text(json.dumps(simulated(), indent=1) + "\n")


def sentence_lengths(count: int, seed: int = 0) -> np.ndarray:
    """Returns `count` lengths of short sentences in an order that the seed decides."""
    counts = json.loads(SHORT.read_text())["sequences_of_length"]
    each = np.repeat([int(length) for length in counts], list(counts.values()))
    places = (np.arange(count) + 0.5) / count * len(each)
    return np.random.default_rng(seed).permutation(each[places.astype(int)])


def simulated() -> dict[str, Any]:
    shares = [(number + 0.5) / _COUNT for number in range(_COUNT)]
    drawn = _SPECIAL + _MEDIAN * np.exp(_SIGMA * np.array([*map(NormalDist().inv_cdf, shares)]))
    lengths = np.clip(np.round(drawn), _LEAST, _MOST).astype(int)
    values, counts = np.unique(lengths, return_counts=True)
    return {
        "what": "lengths of short sentences in tokens, [CLS] and [SEP] included, like SST-2's "
        "training set",
        "how": "simulated, not counted: no sentence was read. The quantiles of "
        f"{_SPECIAL} + {_MEDIAN} exp({_SIGMA} z), z normal, rounded, from {_LEAST} to {_MOST}, "
        "chosen to meet summary statistics of SST-2's lengths: mean 13.3, median 11, 95 % up to "
        "30, 99 % up to 48, longest 66",
        "command": "python benchmarks/lengths.py",
        "statistics": described(lengths),
        "sequences_of_length": {str(v): int(c) for v, c in zip(values, counts, strict=True)},
    }


def described(lengths: np.ndarray) -> dict[str, float]:
    return {
        "count": len(lengths),
        "mean": round(float(lengths.mean()), 2),
        "median": int(np.median(lengths)),
        "p95": int(np.percentile(lengths, 95)),
        "p99": int(np.percentile(lengths, 99)),
        "longest": int(lengths.max()),
    }


if __name__ == "__main__":
    main()
