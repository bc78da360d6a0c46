"""The planner and the packer on sentence lengths: padding left, shapes compiled, sequences/s.

    python benchmarks/packing.py

64,000 lengths like those of SST-2's phrases (histograms/short_sentences.json), for a model of
bert-base's shape. One core, no device.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from pathlib import Path

import numpy as np
from lengths import described, sentence_lengths
from quickstart import cpu_name

from flaxbert.data.pack import make_plan, pack
from flaxbert.model.bert_config import BertConfig
from flaxbert.run.row_costs import work_for

RESULT = Path(__file__).parent / "results" / "packing.json"
DTYPES = {"cpu": "float32", "tpu": "bfloat16"}
COUNT, REPEATS = 64_000, 7
CASES = ((32, 1), (128, 1), (512, 1), (2048, 1), (32, 8), (512, 8), (2048, 8))


def main() -> None:
    lengths = sentence_lengths(COUNT)
    cases = []
    for platform_name in DTYPES:
        for batch_size, row_multiple in CASES:
            cases.append(case(lengths, platform_name, batch_size, row_multiple))
            print(cases[-1], flush=True)
    record = {
        "what": "real / computed tokens of planned updates, and the packer's speed on one core",
        "command": "python benchmarks/packing.py",
        "machine": {
            "cpu": cpu_name(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
        },
        "lengths": described(lengths),
        "padded to 128": round(float(lengths.mean()) / 128, 3),
        "cases": cases,
    }
    RESULT.write_text(json.dumps(record, indent=1) + "\n")


def case(lengths: np.ndarray, platform_name: str, batch_size: int, row_multiple: int) -> dict:
    order = np.random.default_rng(1).permutation(len(lengths))
    updates = [order[i : i + batch_size] for i in range(0, len(order) - batch_size + 1, batch_size)]
    start = time.perf_counter()
    plan = make_plan(
        lengths,
        updates,
        complete=True,
        packing="pack",
        batch_size=batch_size,
        row_multiple=row_multiple,
        work=work_for(BertConfig(), platform_name, DTYPES[platform_name]),
    )
    planning = time.perf_counter() - start
    speeds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        for update in updates:
            pack(lengths[update], plan.row_length, plan.slots)
        speeds.append(len(updates) * batch_size / (time.perf_counter() - start))
    return {
        "costs of": platform_name,
        "batch": batch_size,
        "rows a multiple of": row_multiple,
        "shapes": [f"{rows} x {plan.row_length}" for rows in plan.row_counts],
        "slots": plan.slots,
        "real_per_computed_token": round(plan.efficiency, 3),
        "planning_seconds": round(planning, 2),
        "packed_per_second": round(statistics.median(speeds)),
    }


if __name__ == "__main__":
    main()
