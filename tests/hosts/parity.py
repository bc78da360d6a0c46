"""One update is one update, on however many processes: losses of each layout, from real processes.

`python -m tests.hosts.parity --mesh=DATA,FSDP,MODEL --output=FILE` is one process: it joins
the others, computes 50 updates in float32 and 5 in float64, and the first writes the losses.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

LAYOUTS = {"1 x 8": (1, 8), "2 x 4": (2, 4), "4 x 2": (4, 2)}  # processes x devices
MESHES = {"data 8": (8, 1, 1), "fsdp 8": (1, 8, 1), "2 x 2 x 2": (2, 2, 2)}
UPDATES = {"float32": 50, "float64": 5}
MOST = {"float32": 1e-6, "float64": 1e-12}  # relative differences of the loss


def losses(folder: Path, layout: str, mesh: str) -> dict[str, list[float]]:
    """Starts the processes of a layout; returns {dtype: mean loss of each update}."""
    from tests.hosts.several import started

    count, devices = LAYOUTS[layout]
    output = folder / "losses.json"
    sizes = ",".join(map(str, MESHES[mesh]))
    command = ["-m", "tests.hosts.parity", f"--mesh={sizes}", f"--output={output}"]
    as_usual = {"XLA_FLAGS": os.environ.get("XLA_FLAGS", "")}
    with started(folder, count, devices, command, env=as_usual) as run:
        assert run.codes(600) == [0] * count, run.said()
    return json.loads(output.read_text())


def computed(mesh: str) -> dict[str, list[float]]:
    """Returns the same for the processes that call it."""
    import jax

    from flaxbert.config import Mesh
    from tests.loop.harness import examples, means, run

    data, fsdp, model = map(int, mesh.split(","))
    found = {}
    for dtype, updates in UPDATES.items():
        with jax.enable_x64(dtype == "float64"):
            on = Mesh(data, fsdp, model)
            history, _ = run(examples(), updates=updates, dtype=dtype, mesh=on)
        found[dtype] = means(history).tolist()
    return found


def main(mesh: str, output: str) -> None:
    from flaxbert.hosts.join import joined
    from flaxbert.shell.signals import install

    with joined(install(), lost_after=20) as group:
        found = computed(mesh)
        if group.is_first:
            Path(output).write_text(json.dumps(found))


if __name__ == "__main__":
    main(**dict(part.removeprefix("--").split("=", 1) for part in sys.argv[1:]))
