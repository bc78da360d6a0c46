"""Ten times the data: does a run take ten times as long, and more memory?

    python benchmarks/growth.py [--rows=20000] [--rounds=3]

The real command, one epoch, on a model so small that reading, checking, tokenizing, planning and
packing are most of the work: what could grow faster than the data is the host's part. Sentences are
the movie reviews with a number each, so that no two rows are equal. Both sizes take turns. Writes
results/growth.json.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sides import ON_CPU, SideError, run
from speed import machine, sentences

RESULT = Path(__file__).parent / "results" / "growth.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    sizes = {"once": arguments.rows, "ten times": 10 * arguments.rows}
    with tempfile.TemporaryDirectory() as folder:
        # In a process of its own: what a child's peak memory is counted from is its parent's.
        writing = multiprocessing.get_context("spawn").Process(
            target=write_inputs, args=(Path(folder), sizes)
        )
        writing.start()
        writing.join()
        if writing.exitcode:
            raise SystemExit(writing.exitcode)
        train(Path(folder), "once")  # compiles what both need
        found: dict[str, list[dict[str, float]]] = {size: [] for size in sizes}
        for number in range(arguments.rounds):
            for size in sorted(sizes, reverse=bool(number % 2)):
                found[size].append(train(Path(folder), size))
                print(size, found[size][-1], flush=True)
    medians = {
        size: {name: round(statistics.median(r[name] for r in runs), 3) for name in runs[0]}
        for size, runs in found.items()
    }
    ratios = {
        name: round(medians["ten times"][name] / medians["once"][name], 3)
        for name in medians["once"]
    }
    record = {
        "what": "one epoch over a file and over one of ten times its rows, a tiny model",
        "command": f"python benchmarks/growth.py --rows={arguments.rows} "
        f"--rounds={arguments.rounds}",
        "machine": machine(),
        "versions": {name: version(name) for name in ("jax", "flax", "numpy", "transformers")},
        "rows": sizes,
        "medians": medians,
        "ratios": ratios,
        "rounds": found,
    }
    RESULT.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(ratios))


def write_inputs(folder: Path, sizes: dict[str, int]) -> None:
    """Writes a tiny model and a file of each size."""
    from flaxbert import BertConfig, FlaxBertForSequenceClassification
    from flaxbert.heads import init_params
    from flaxbert.storage.embedded import minilm_directory

    config = BertConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        id2label=("0", "1"),
    )
    model = FlaxBertForSequenceClassification(
        config, init_params(config, 0), source=minilm_directory()
    )
    model.save_pretrained(folder / "model")
    rows = sentences("minilm")
    for size, count in sizes.items():
        with (folder / f"{size}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("text", "label"))
            for number, row in zip(range(count), itertools.cycle(rows), strict=False):
                writer.writerow((f"{row['text']} {number}", row["label"]))


def train(folder: Path, size: str) -> dict[str, float]:
    """Runs the real command; returns its seconds, those before the first update, and MiB."""
    with tempfile.TemporaryDirectory() as workdir:
        command: list[Any] = [sys.executable, "-m", "flaxbert.train", "--config=configs/text.py"]
        command += [f"--workdir={workdir}/run", f"--config.model.path={folder / 'model'}"]
        command += [f"--config.data.train={folder / size}.csv", "--config.train.epochs=1.0"]
        command += ["--config.train.batch_size=256"]
        start = time.perf_counter()
        done, peak = run(command, ON_CPU)
        seconds = time.perf_counter() - start
        if done.returncode:
            raise SideError(done.stderr)
        results = json.loads(Path(workdir, "run", "train_results.json").read_text())
    return {
        "seconds": seconds,
        "samples_per_second": results["train_samples_per_second"],
        "peak_mib": peak,
    }


if __name__ == "__main__":
    main()
