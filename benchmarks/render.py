"""Renders README.md of this folder from the files in results/.

    python benchmarks/render.py [--check]

Nothing in it is typed by hand: a figure that no file holds is not there.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from details import SECTIONS

HERE = Path(__file__).parent
README = HERE / "README.md"

HEAD = """# Benchmarks

Made by `python benchmarks/render.py` from [results/](results); do not edit. `make bench` measures
anew on the CPU at hand and `make bench-gpu` on its GPU, and both render it. What was tried, with
prediction and outcome: [NOTES.md](NOTES.md).

`make bench-gpu` runs [gpu.py](gpu.py) on the first GPU: five cases of some minutes each,
`CASES=base-32` is one of them. It needs jax (its CUDA build), flax, optax and jaxtyping, and torch
and transformers there or in another environment (`GPU_PYTHON`, `TORCH_PYTHON`), but no tokenizer,
no weights and no data set. `python benchmarks/gpu.py --smoke` shows on a CPU that it runs.

Each side is a process of its own and they take turns; figures are medians over the rounds, ratios
are taken round by round. The sides see the same tokens, update in the same recipe (AdamW, clipping,
dropout as the model's config says) and include all that a training loop does between updates.
"""

ON_CPU = """
`flaxbert` is the real command. `pytorch` is Hugging Face's model of transformers 5 in a plain
loop: `dynamic` pads each batch to its longest sequence (what the Trainer does), `grouped` makes
batches of like lengths (its `group_by_length`), `pad128` pads to 128. `flax4` is transformers 4's
Flax model with the step of its run_flax_glue.py. All sides compute in huge pages
(`GLIBC_TUNABLES=glibc.malloc.hugetlb=1`).
"""

ON_GPU = """
Measured by [gpu.py](gpu.py) with random weights and tokens; the lengths of short sentences are
those of [histograms/](histograms). `flaxbert` is the run's own step, packer and queue without its
files. `pytorch` is Hugging Face's model in a plain loop with fused AdamW and SDPA: `pad128`,
`dynamic` and `grouped8` pad to 128, to the longest of the batch, and to a multiple of 8 in batches
of like lengths; `full` has no mask; `unpadded` computes the same weights on sequences end to end
with PyTorch's `varlen_attn`, which has no dropout in attention. `tf32` lets float32 products round
to TF32, `bfloat16` is autocast. `compile` is torch.compile of the model, `graphs` the same in its
mode "reduce-overhead", which replays CUDA graphs; clipping and the optimizer's step are not
compiled. Warm-up is compilation and the first 20 updates (compiled modes of padded batches first
take five of each width that is to come), and counts in nothing else. MFU is the model's own FLOPs
on real tokens as a share of the bfloat16 products that the same GPU did in the first turn.
"""

UNMEASURED = "\n## {}\n\nUnmeasured: [results/](results) has no such comparison from one yet.\n"

# A title, and what stands below it: (side, its figures) -> text.
Column = tuple[str, Callable[[str, dict[str, Any]], str]]

# The last column's title: ours of the side's own dtype, and on a GPU the one that there is.
CPU_RATIO, GPU_RATIO = "flaxbert of that dtype is", "flaxbert bfloat16 is"

CPU_COLUMNS: list[Column] = [
    ("side", lambda side, _: side),
    ("sequences/s", lambda _, figures: f"{figures['samples_per_second']:.1f}"),
    ("s/update", lambda _, figures: f"{figures['seconds_per_update']:.3f}"),
    ("real / computed tokens", lambda _, figures: f"{figures['real_per_computed_token']:.2f}"),
    ("peak MiB", lambda _, figures: f"{figures['peak_mib']:.0f}"),
]
GPU_COLUMNS: list[Column] = [
    ("side", lambda side, _: side),
    ("sequences/s", lambda _, figures: f"{figures['samples_per_second']:,.0f}"),
    ("middle half", lambda _, figures: between(figures.get("quartiles"))),
    ("ms/update", lambda _, figures: f"{1000 * figures['seconds_per_update']:.2f}"),
    ("real / computed tokens", lambda _, figures: f"{figures['real_per_computed_token']:.2f}"),
    ("MFU", lambda _, figures: f"{100 * figures['mfu']:.1f} %" if "mfu" in figures else ""),
    ("peak MiB", lambda _, figures: f"{figures['peak_mib']:,.0f}"),
    ("warm-up s", lambda _, figures: f"{figures['warmup_seconds']:.1f}"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit 1 if README.md is another")
    text = render()
    if parser.parse_args().check:
        raise SystemExit(0 if README.read_text(encoding="utf-8") == text else 1)
    README.write_text(text, encoding="utf-8")


def render() -> str:
    return page(read_records())


def read_records() -> dict[str, dict[str, Any]]:
    """Returns all records by their files' names."""
    paths = sorted((HERE / "results").glob("*.json"))
    return {path.name: json.loads(path.read_text(encoding="utf-8")) for path in paths}


def page(records: dict[str, dict[str, Any]]) -> str:
    on_cpu, on_gpu = [], []
    machines = {name: record for name, record in records.items() if "workloads" in record}
    for name, record in machines.items():
        gpu = "gpu" in record["machine"]
        (on_gpu if gpu else on_cpu).append(of_gpu(name, record) if gpu else of_cpu(name, record))
    parts = [HEAD]
    parts += [*on_cpu, ON_CPU] if on_cpu else [UNMEASURED.format("CPU")]
    parts += [*on_gpu, ON_GPU] if on_gpu else [UNMEASURED.format("GPU")]
    parts.append(UNMEASURED.format("TPU"))
    parts += [section(records[name]) for name, section in SECTIONS.items() if name in records]
    return "".join(parts)


def of_cpu(file: str, record: dict[str, Any]) -> str:
    machine = record["machine"]
    half = "multiplies bfloat16" if machine["bfloat16"] else "has no bfloat16 products"
    lines = [
        f"\n## {machine['cores']} cores of {machine['cpu']} ({machine['instructions']})\n",
        f"{machine['memory_gib']} GiB, {machine['system']}, Python {machine['python']}; the CPU "
        f"{half}. [results/{file}](results/{file})\n",
    ]
    for workload in record["workloads"].values():
        about = (
            f"{workload['shape']} shape, {workload['batch']} sequences an update, "
            f"{versions_of(workload['versions'])}."
        )
        lines += of_workload(workload, about, CPU_COLUMNS, CPU_RATIO)
    return "\n".join(lines)


def of_gpu(file: str, record: dict[str, Any]) -> str:
    machine = record["machine"]
    driver = ", ".join(f"{name} {value}" for name, value in machine["driver"].items())
    lines = [
        f"\n## {machine['gpu']}\n",
        f"{driver or 'driver unknown'}; {machine['cores']} cores of {machine['cpu']}, "
        f"{machine['system']}, Python {machine['python']}. [results/{file}](results/{file})\n",
    ]
    if note := record.get("note"):
        lines.append(f"{note}\n")
    for workload in record["workloads"].values():
        lines += of_workload(workload, about_on_gpu(workload), GPU_COLUMNS, GPU_RATIO)
    return "\n".join(lines)


def about_on_gpu(workload: dict[str, Any]) -> str:
    versions: dict[str, str] = {}
    for figures in workload["sides"].values():
        versions |= figures["versions"]
    about = [
        f"{workload['shape']} shape, {workload['batch']} sequences an update, "
        f"{versions_of(versions)}."
    ]
    if workload.get("shapes"):
        about.append(f"flaxbert's rows: {', '.join(workload['shapes'])} tokens.")
    if device := workload.get("device"):
        adamw = [
            f"{device[key]:.2f} ms {how}"
            for key, how in (("adamw_ms", "in one program"), ("adamw_sent_ms", "sent one by one"))
            if key in device
        ]
        about.append(
            f"bfloat16 products reach {device['matmul_tflops']:.0f} TFLOP/s here, updates of AdamW "
            f"alone take {' and '.join(adamw)}."
        )
    if workload.get("target"):
        about.append(f"Target: {workload['target']}.")
    return " ".join(about)


def of_workload(
    workload: dict[str, Any], about: str, columns: list[Column], ratio: str
) -> list[str]:
    sides, ratios = workload["sides"], workload["speed_ratios"]
    titles = [*(title for title, _ in columns), ratio]
    lines = [f"### {workload['what']}\n", f"{about}\n", f"| {' | '.join(titles)} |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for side in sorted(sides, key=lambda side: -sides[side]["samples_per_second"]):
        cells = [text(side, sides[side]) for _, text in columns]
        lines.append(f"| {' | '.join([*cells, told(side, sides, ratios)])} |")
    for side, figures in sides.items():
        if figures.get("compiled_while_timed"):
            lines.append(f"\n{side} was still compiling while it was timed.")
    if left_out := not_run(workload):
        lines.append(f"\nNot run: {', '.join(left_out)}.")
    for side, found in workload.get("failed", {}).items():
        lines.append(f"\n{side} {failed(found['rounds'])}: {code(found['reason'])}")
    return [*lines, ""]


def not_run(workload: dict[str, Any]) -> list[str]:
    """The modes of PyTorch that the case has and its record does not."""
    known = {*workload["sides"], *workload.get("failed", {})}
    return [mode for mode in workload.get("modes", ()) if f"pytorch {mode}" not in known]


def failed(rounds: list[float]) -> str:
    if not rounds:
        return "did not run"
    speeds = ", ".join(f"{speed:,.1f}" for speed in rounds)
    return f"failed in round {len(rounds) + 1}, after {speeds} sequences/s"


def code(text: str) -> str:
    """A span of code that any text can stand in: its fence is longer than what the text has."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence, space = "`" * (longest + 1), " " if longest else ""
    return f"{fence}{space}{text}{space}{fence}"


def told(side: str, sides: dict[str, Any], ratios: dict[str, Any]) -> str:
    """How many times as fast flaxbert is: in the same dtype, or in bfloat16 where that is all."""
    dtype = "bfloat16" if "bfloat16" in side or "flaxbert float32" not in sides else "float32"
    ratio = ratios.get(f"flaxbert {dtype} / {side}")
    if not ratio:
        return ""
    return f"{ratio['median']:.2f}x ({ratio['least']:.2f} to {ratio['most']:.2f})"


def between(bounds: list[float] | None) -> str:
    return f"{bounds[0]:,.0f} to {bounds[1]:,.0f}" if bounds else ""


def versions_of(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in versions.items())


if __name__ == "__main__":
    main()
