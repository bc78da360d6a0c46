"""Collectives between real processes, 1 KiB to 16 MiB a device, against NumPy bit by bit.

    python -m tests.soak.exchanges --iterations=1000 --output=tests/results/exchanges.json

Each case is one layout and one size: psum, psum_scatter, all_gather, all_to_all and ppermute, with
new numbers each time. The iterations of a layout are divided among the sizes.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from tests.hosts.several import started
from tests.soak.record import Record, command_line, workplace

LAYOUTS = {"1 x 4": (1, 4), "2 x 2": (2, 2), "4 x 1": (4, 1)}  # processes x devices
SIZES = tuple(2**n for n in range(10, 25, 2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--iterations", type=int, default=1000, help="of each layout")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    times = -(-arguments.iterations // len(SIZES))
    record = Record(arguments.output, __doc__.splitlines()[0], command_line("exchanges", arguments))
    with workplace() as folder:

        def case(name: str) -> dict[str, Any]:
            layout, _, size = name.partition(", ")
            count, devices = LAYOUTS[layout]
            output = folder / "found.json"
            command = [
                "-m",
                "tests.soak.exchanges",
                "--exchange",
                size.split()[0],
                times,
                output,
            ]
            begun = time.monotonic()
            with started(folder / "logs", count, devices, command) as run:
                assert run.codes(7200) == [0] * count, run.said()
            seconds = round(time.monotonic() - begun)
            return {"wrong": json.loads(output.read_text()), "seconds": seconds}

        record.run([f"{layout}, {size} bytes" for layout in LAYOUTS for size in SIZES], case)
    wrong = {name: case["wrong"] for name, case in record.cases.items() if case["wrong"]}
    record.finish(right=not wrong, iterations_of_each_layout=times * len(SIZES), wrong=wrong)


def exchange(size: int, times: int, output: str) -> None:
    from flaxbert.hosts.join import joined
    from flaxbert.shell.signals import install

    with joined(install(), lost_after=20) as group:
        from flaxbert.hosts.collectives import wrong_collectives

        found = group.all_gather(wrong_collectives((size,), times))
        if group.is_first:
            Path(output).write_text(json.dumps(sorted({name for names in found for name in names})))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--exchange"]:
        exchange(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
    else:
        main()
