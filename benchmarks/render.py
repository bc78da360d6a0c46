"""Renders README.md of this folder from the files in results/.

    python benchmarks/render.py [--check]

Nothing in it is typed by hand: a figure that no file holds is not there.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
README = HERE / "README.md"

HEAD = """# Benchmarks

Made by `python benchmarks/render.py` from [results/](results); do not edit. `make bench` measures
anew on the machine at hand and renders it. What was tried, with prediction and outcome:
[NOTES.md](NOTES.md).

Each side is a process of its own and they take turns; figures are medians over the rounds, ratios
are taken round by round. The sides see the same tokens, update in the same recipe (AdamW, clipping,
dropout as the model's config says) and include all that a training loop does between updates.
"""

SIDES = """
`flaxbert` is the real command. `pytorch` is Hugging Face's model of transformers 5 in a plain
loop: `dynamic` pads each batch to its longest sequence (what the Trainer does), `grouped` makes
batches of like lengths (its `group_by_length`), `pad128` pads to 128. `flax4` is transformers 4's
Flax model with the step of its run_flax_glue.py.
"""

UNMEASURED = """
## GPU and TPU

Unmeasured: no result file from either exists yet.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit 1 if README.md is another")
    text = render()
    if parser.parse_args().check:
        raise SystemExit(0 if README.read_text(encoding="utf-8") == text else 1)
    README.write_text(text, encoding="utf-8")


def render() -> str:
    parts = [HEAD]
    for path in sorted((HERE / "results").glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        if "workloads" in record:
            parts.append(of_machine(path.name, record))
    return "".join([*parts, SIDES, UNMEASURED])


def of_machine(file: str, record: dict[str, Any]) -> str:
    machine = record["machine"]
    half = "multiplies bfloat16" if machine["bfloat16"] else "has no bfloat16 products"
    lines = [
        f"\n## {machine['cores']} cores of {machine['cpu']} ({machine['instructions']})\n",
        f"{machine['memory_gib']} GiB, {machine['system']}, Python {machine['python']}; the CPU "
        f"{half}. [results/{file}](results/{file})\n",
    ]
    for workload in record["workloads"].values():
        lines += of_workload(workload)
    return "\n".join(lines)


def of_workload(workload: dict[str, Any]) -> list[str]:
    sides, ratios = workload["sides"], workload["speed_ratios"]
    lines = [
        f"### {workload['what']}\n",
        f"{workload['shape']} shape, {workload['batch']} sequences an update, "
        f"{', '.join(f'{name} {number}' for name, number in workload['versions'].items())}.\n",
        "| side | sequences/s | s/update | real / computed tokens | peak MiB | "
        "flaxbert of that dtype is |",
        "|---|---|---|---|---|---|",
    ]
    for side in sorted(sides, key=lambda side: -sides[side]["samples_per_second"]):
        figures, dtype = sides[side], "bfloat16" if "bfloat16" in side else "float32"
        ratio = ratios.get(f"flaxbert {dtype} / {side}")
        told = ""
        if ratio:
            told = f"{ratio['median']:.2f}x ({ratio['least']:.2f} to {ratio['most']:.2f})"
        lines.append(
            f"| {side} | {figures['samples_per_second']:.1f} | "
            f"{figures['seconds_per_update']:.3f} | {figures['real_per_computed_token']:.2f} | "
            f"{figures['peak_mib']:.0f} | {told} |"
        )
    return [*lines, ""]


if __name__ == "__main__":
    main()
