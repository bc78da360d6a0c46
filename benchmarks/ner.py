"""python benchmarks/ner.py --data=FOLDER [--seeds=0,1,2] [--output=FILE]

Entity scores of token classification on WNUT-17 after the last update, seed by seed: FOLDER holds
train.conll and test.conll (https://github.com/leondz/emerging_entities_17). The model is the
embedded MiniLM, the recipe that of configs/ner.py: AdamW 1e-4, warm-up 10 %, 32 sequences an
update, 5 epochs, 128 tokens. A seed takes minutes on two cores; nothing else should run.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent / "results" / "wnut17.json"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "transformers")


def trained(data: Path, seed: int, folder: Path) -> dict[str, Any]:
    """Trains with a seed; returns the scores after the last update, and the speed."""
    workdir = folder / f"seed-{seed}"
    command = [
        *(sys.executable, "-m", "flaxbert.train", "--config=configs/ner.py"),
        *(f"--workdir={workdir}", f"--config.seed={seed}"),
        *(f"--config.data.train={data / 'train.conll'}",),
        *(f"--config.data.validation={data / 'test.conll'}",),
    ]
    subprocess.run(command, check=True, cwd=Path(__file__).parent.parent)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    last = {line["name"]: line["value"] for line in lines if line["split"] == "validation"}
    results = json.loads((workdir / "train_results.json").read_text())
    return {
        "f1_strict": last["f1_strict"],
        "f1": last["f1"],
        "accuracy": last["accuracy"],
        "updates": results["train_steps"],
        "sequences_per_second": results["train_samples_per_second"],
        "seconds_in_the_loop": results["train_runtime"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    data, seeds = arguments.data.resolve(), [int(seed) for seed in arguments.seeds.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        by_seed = {str(seed): trained(data, seed, Path(folder)) for seed in seeds}
    scores = [found["f1_strict"] for found in by_seed.values()]
    result = {
        "command": "python benchmarks/ner.py --data=FOLDER",
        "machine": f"{platform.machine()}, {platform.system()} {platform.release()}",
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "seeds": by_seed,
        "mean_f1_strict": statistics.mean(scores),
    }
    arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
