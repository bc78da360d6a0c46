"""Accuracy of the quickstart over three seeds: runs the real command, writes one JSON file.

    python benchmarks/quickstart.py [--seeds=0,1,2] [--workdir=runs/quickstart-seeds]

The accuracy is that of the last update of three epochs (from metrics.jsonl), not of the best model.
A run that was interrupted goes on; a finished one is only read.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

RESULT = Path(__file__).parent / "results" / "quickstart.json"

# Hugging Face PyTorch (transformers 5.23, torch 2.13 CPU) on the same rows and recipe, bfloat16
# autocast, seeds 0, 1, 2. 854 validation rows: the standard error of one run is 1.2 points.
PYTORCH = {"accuracy": [0.8501, 0.8443, 0.8431], "mean": 0.8458}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--workdir", default="runs/quickstart-seeds")
    arguments = parser.parse_args()
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    runs = {seed: run(seed, Path(arguments.workdir) / str(seed)) for seed in seeds}
    last = [epochs[-1] for epochs in (r["accuracy_after_epoch_1_2_3"] for r in runs.values())]
    record = {
        "what": "validation accuracy of configs/quickstart.py after the last update of 3 epochs",
        "command": "python benchmarks/quickstart.py",
        "machine": {"cpu": cpu_name(), "cores": os.cpu_count(), "system": platform.system()},
        "runs": {f"seed {seed}": values for seed, values in runs.items()},
        "mean": round(statistics.mean(last), 4),
        "spread": round(statistics.stdev(last), 4) if len(last) > 1 else 0.0,
        "pytorch": PYTORCH,
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


def run(seed: int, workdir: Path) -> dict:
    """Trains one seed and returns its accuracies; no speed, which needs a quiet machine."""
    command = [sys.executable, "-m", "flaxbert.train", "--config=configs/quickstart.py"]
    command += [f"--workdir={workdir}", f"--config.seed={seed}"]
    subprocess.run(command, check=True)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    accuracies = [
        round(line["value"], 4)
        for line in lines
        if line["split"] == "validation" and line["name"] == "accuracy"
    ]
    results = json.loads((workdir / "all_results.json").read_text())
    newest = max((workdir / "checkpoints").iterdir(), key=lambda path: int(path.name))
    facts = json.loads((newest / "run.json").read_text())
    return {
        "accuracy_after_epoch_1_2_3": accuracies,
        "train_loss": round(results["train_loss"], 4),
        "dtype": facts["dtype"],
        "versions": facts["versions"],
    }


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


if __name__ == "__main__":
    main()
