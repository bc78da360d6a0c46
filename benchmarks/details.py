"""The parts of README.md that are no comparison of sides: an update's floor, packing, processes.

Each function takes the record of one file in results/ and returns its section.
"""

from __future__ import annotations

from typing import Any

Record = dict[str, Any]


def table(titles: list[str], rows: list[list[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def of_floor(record: Record) -> str:
    rows = [
        [
            name,
            f"{1000 * found['update_seconds']:.0f}",
            f"{1000 * found['linear_seconds']:.0f} ({found['linear_gflops']:.0f} GFLOP/s)",
            f"{1000 * found['adamw_seconds']:.0f}",
            f"{100 * found['floor / update']:.0f} %",
        ]
        for name, found in record.items()
    ]
    titles = ["run, dtype, CPU", "update ms", "linear layers ms", "AdamW ms", "floor / update"]
    return f"""
## How close an update comes to its floor

The floor is what an update cannot do without: the matrix products of all linear layers, forward and
backward, and one pass of AdamW, each timed alone in the same process, by turns with whole updates
([floor.py](floor.py)). Attention, norms, dropout and embeddings are not in it.

{table(titles, rows)}"""


def of_packing(record: Record) -> str:
    lengths, machine = record["lengths"], record["machine"]
    rows = [
        [
            case["costs of"],
            f"{case['batch']:,}",
            str(case["rows a multiple of"]),
            ", ".join(case["shapes"]),
            f"{case['real_per_computed_token']:.3f}",
            f"{case['packed_per_second']:,}",
        ]
        for case in record["cases"]
    ]
    about = (
        f"Short sentences ({lengths['count']:,}, mean {lengths['mean']}, median "
        f"{lengths['median']}, 95 % up to {lengths['p95']}, longest {lengths['longest']} tokens)"
    )
    titles = ["device", "batch", "devices", "rows", "real / computed", "packed sequences/s"]
    return f"""
## Packing

{about}: what the planner
chooses, how much padding is left ({record["padded to 128"]:.3f} when each is padded to 128), and
how fast one core of {machine["cpu"]} packs them ([packing.py](packing.py)).

{table(titles, rows)}"""


def of_growth(record: Record) -> str:
    medians, ratios, rows = record["medians"], record["ratios"], record["rows"]
    once, ten = medians["once"], medians["ten times"]
    named = {"seconds": "seconds of the whole command", "peak_mib": "peak MiB"}
    lines = [
        [title, f"{once[key]:,.1f}", f"{ten[key]:,.1f}", f"{ratios[key]:.2f}"]
        for key, title in named.items()
    ]
    titles = ["", f"{rows['once']:,} rows", f"{rows['ten times']:,} rows", "ratio"]
    return f"""
## Ten times the data

One epoch of a model so small that reading, checking, tokenizing, planning and packing are most of
the work, on {record["machine"]["cores"]} cores of {record["machine"]["cpu"]}
([growth.py](growth.py)).

{table(titles, lines)}"""


SECTIONS = {
    "floor.json": of_floor,
    "packing.json": of_packing,
    "growth.json": of_growth,
}
