"""python -m tests.planning.golden: the figures of plan that tests/planning/golden.json keeps.

Of three layers of width 256, 8 rows of 128 tokens on each chip, dropout 0.1, bfloat16: for a slice
of each chip and for parameters that are spread. A change that adds bytes, memory, time or an
exchange shows there.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import sys
import tempfile
from pathlib import Path

from tests.commands import ROOT, start
from tests.inputs import write_reviews, write_tiny_bert

FILE = Path(__file__).parent / "golden.json"
# `make test-slow` puts the TPU's compiler there, beside what is installed: a JAX that finds it
# looks for TPUs and warns.
COMPILER = Path(sys.prefix) / "tpu"
CASES = {
    "v4:2x2x1": (4, ()),
    "v5e:1x1": (1, ()),
    "v5e:2x2": (4, ()),
    "v5e:2x2 fsdp": (4, ("--config.mesh.data=1", "--config.mesh.fsdp=4")),
    "v5p:2x2x1": (4, ()),
    "v6e:2x4": (8, ()),
}


def is_there() -> bool:
    return COMPILER.is_dir() or importlib.util.find_spec("libtpu") is not None


def environment() -> dict[str, str]:
    return {"PYTHONPATH": os.pathsep.join([str(ROOT), str(COMPILER)])}


def requirement() -> str:
    """The libtpu that the installed JAX asks for."""
    needs = importlib.metadata.requires("jax") or []
    return next(line.split(";")[0].strip() for line in needs if line.startswith("libtpu"))


LAYERS, ROWS = 3, 8
SIZES = {
    "num_hidden_layers": LAYERS,
    "hidden_size": 256,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
}


def planned(case: str) -> dict:
    """Returns the JSON of plan for a case."""
    chips, flags = CASES[case]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        output, model = folder / "plan.json", write_tiny_bert(folder / "model", **SIZES)
        (folder / "data").mkdir()
        arguments = ["--config=configs/text.py", f"--config.model.path={model}"]
        arguments += [f"--config.data.train={write_reviews(folder / 'data')['train']}"]
        arguments += ["--config.data.packing=pad", "--config.data.row_length=128", *flags]
        arguments += [f"--config.train.batch_size={ROWS * chips}", f"--output={output}"]
        arguments.append(f"--topology={case.split()[0]}")
        process = start("plan", *arguments, cwd=ROOT, env=environment())
        _, err = process.communicate(timeout=500)
        assert process.returncode == 0, err
        # Of the data; nothing of the compiler's about a host that is none.
        assert all(line.startswith("training: ") for line in err.splitlines()), err
        return json.loads(output.read_text())


def figures(plan: dict) -> dict:
    program = plan["update"]["program"]
    return {
        "cycles": program["cycles"],
        "flops": program["flops"],
        "bytes_accessed": program["bytes_accessed"],
        "temporaries": program["memory"]["temporaries"],
        "needed": program["memory"]["needed"],
        "exchanges": {
            f"{found['kind']} over {' and '.join(found['axes'])}": [found["count"], found["bytes"]]
            for found in program["exchanges"]
        },
    }


def main() -> None:
    if len(sys.argv) > 1 and sys.argv[1] == "--requirement":
        print(requirement())
        return
    found = {case: figures(planned(case)) for case in CASES}
    FILE.write_text(json.dumps({"compiler": requirement(), "figures": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
