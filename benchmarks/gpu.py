"""Training speed on one GPU beside Hugging Face PyTorch, on the same tokens.

    python benchmarks/gpu.py [--cases=base-32,base-rows] [--rounds=2] [--pytorch=PYTHON]
    python benchmarks/gpu.py --sides=flaxbert,compile       # some sides: prints, writes nothing
    python benchmarks/gpu.py --smoke                        # tiny, on the CPU: the same

Needs no tokenizer, no weights and no data set: lengths come from histograms/, ids and weights are
random. Every side is a process of its own and they take turns: train_steps.py is ours, PyTorch's
modes are those of peers/pytorch.py. Writes one file per GPU, after each round of each case, so that
a command that is cut off leaves what it had. render.py makes README.md from it.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import platform
import re
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))  # flaxbert need not be installed

from gpu_cases import CASES, SMOKE, Case
from lengths import sentence_lengths
from quickstart import cpu_name
from sides import (
    ON_CPU,
    ROOT,
    Figures,
    SideError,
    Turns,
    figures_of,
    summary,
    take_turns,
    write_workload,
)

from flaxbert.loop.flops import model_flops

HERE = Path(__file__).parent
OURS, PYTORCH = HERE / "train_steps.py", HERE / "peers" / "pytorch.py"
WHAT = "training speed on one GPU on the same tokens, one process a side, taking turns"


@dataclasses.dataclass(frozen=True)
class Setup:
    """How the sides are run."""

    pytorch: str  # interpreter
    device: str  # "gpu", or "cpu" in the smoke test
    sides: tuple[str, ...]  # words; a side whose name has none of them is left out
    rounds: int
    repeats: int  # in each process
    warmup: int
    size: int  # of the dense products
    environment: dict[str, str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--sides", default="", help="those whose names have one of these words")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3, help="of the updates, in each round")
    parser.add_argument(
        "--pytorch", default="", help="python with torch, transformers; default: this one"
    )
    parser.add_argument("--output", type=Path, default=None)
    parser.add_argument("--smoke", action="store_true")
    arguments = parser.parse_args()
    names = [name for name in arguments.cases.split(",") if name]
    if unknown := set(names) - CASES.keys():
        parser.error(f"--cases: expected some of {', '.join(CASES)}, got {', '.join(unknown)}")
    with tempfile.TemporaryDirectory() as caches:
        setup = setup_for(arguments, Path(caches))
        if arguments.smoke:
            *_, turns = turns_of("smoke", SMOKE, setup)
            print(json.dumps(record_of(SMOKE, turns), indent=1))
            return
        machine = machine_with(setup)
        output = arguments.output
        if not output and not arguments.sides:
            output = HERE / "results" / f"{slug(machine['gpu'])}.json"
        for name in names:
            measured = {}
            for turns in turns_of(name, CASES[name], setup):
                measured = record_of(CASES[name], turns)
                measured["command"] = command_for(name, arguments)
                if output:
                    write_workload(output, WHAT, machine, name, measured)
            print(json.dumps(measured, indent=1), flush=True)


def command_for(name: str, arguments: argparse.Namespace) -> str:
    """What measures one case again, without the paths of this machine."""
    return (
        f"python benchmarks/gpu.py --cases={name} --rounds={arguments.rounds} "
        f"--repeats={arguments.repeats}"
        + (f" --sides={arguments.sides}" if arguments.sides else "")
        + (" --pytorch=..." if arguments.pytorch else "")
    )


def setup_for(arguments: argparse.Namespace, caches: Path) -> Setup:
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        "PYTHONPATH": os.pathsep.join(paths),
        # Programs compiled in the first round are there in the next; nothing older is.
        "JAX_COMPILATION_CACHE_DIR": str(caches / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
        "TRITON_CACHE_DIR": str(caches / "triton"),
    }
    sides = tuple(word for word in arguments.sides.split(",") if word) or ("",)
    pytorch = arguments.pytorch or sys.executable
    if arguments.smoke:
        return Setup(pytorch, "cpu", sides, 1, 1, 2, 256, environment | ON_CPU)
    # GPUs are counted as nvidia-smi counts them: CUDA's own order begins with the fastest.
    environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    environment["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    rounds, repeats = arguments.rounds, arguments.repeats
    return Setup(pytorch, "gpu", sides, rounds, repeats, 20, 8192, environment)


def machine_with(setup: Setup) -> dict[str, Any]:
    """Describes this machine and its GPU.

    Raises:
      SystemExit: JAX has none.
    """
    try:
        found = figures_of([sys.executable, OURS, "--describe"], setup.environment)
    except SideError as error:
        raise SystemExit(f"JAX does not start here:\n{error}") from error
    if found["platform"] != "gpu":
        raise SystemExit(
            f"expected a GPU, JAX has {found['kind']} ({found['platform']}). Install the CUDA "
            'build of jax (pip install "jax[cuda13]", or "jax[cuda12]" for an older driver), or '
            "try the program with --smoke."
        )
    return {
        "gpu": found["kind"],
        "driver": {name: found[name] for name in found if "." in name or "_version" in name},
        "jax_memory_gib": found["limit_gib"],
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


# One case


def turns_of(name: str, case: Case, setup: Setup) -> Iterator[Turns]:
    """Yields the figures so far after each round."""
    with tempfile.TemporaryDirectory() as folder:
        write_inputs(case, Path(folder))
        sides: dict[str, Callable[[], Figures]] = {
            "flaxbert bfloat16": functools.partial(ours, case, Path(folder), setup)
        }
        for mode in case.modes:
            sides[f"pytorch {mode}"] = functools.partial(peer, case, Path(folder), setup, mode)
        chosen = {side: sides[side] for side in sides if any(word in side for word in setup.sides)}
        try:
            yield from take_turns(name, chosen, setup.rounds)
        except SideError as error:
            raise SystemExit(str(error)) from error


def write_inputs(case: Case, folder: Path) -> None:
    """Writes tokens.npz and config.json: what the sides read."""
    random = np.random.default_rng(0)
    count = case.batch * max(100, 20_000 // case.batch)
    lengths = np.full(count, case.length) if case.length else sentence_lengths(count)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = random.integers(1000, case.bert.vocab_size, offsets[-1], np.int32)
    # As in real text, all sequences share two words: their gradients fall on the same rows.
    ids[offsets[:-1]], ids[offsets[1:] - 1] = 101, 102
    labels = random.integers(0, 2, count, np.int32)
    np.savez(folder / "tokens.npz", input_ids=ids, offsets=offsets, labels=labels)
    (folder / "config.json").write_text(json.dumps(case.bert.to_dict()))


def ours(case: Case, inputs: Path, setup: Setup) -> Figures:
    command = [sys.executable, OURS, f"--platform={setup.device}", f"--size={setup.size}"]
    return side(command, case, inputs, setup, case.updates)


def peer(case: Case, inputs: Path, setup: Setup, mode: str) -> Figures:
    updates = case.updates if "bfloat16" in mode else case.slow_updates
    command = [setup.pytorch, PYTORCH, f"--mode={mode}", "--random_weights"]
    # It must not take the CPU in silence.
    command.append("--device=cuda" if setup.device == "gpu" else "--device=cpu")
    return side(command, case, inputs, setup, updates)


def side(command: list[Any], case: Case, inputs: Path, setup: Setup, updates: int) -> Figures:
    command += [f"--data={inputs / 'tokens.npz'}", f"--model={inputs}", f"--batch={case.batch}"]
    command += [f"--updates={updates}", f"--repeats={setup.repeats}"]
    command += [f"--warmup={min(setup.warmup, updates)}"]
    return figures_of(command, setup.environment)


def record_of(case: Case, turns: Turns) -> dict[str, Any]:
    """Summarises a case; each side's MFU is against the products that the GPU did in our runs."""
    record = {name: value for name, value in dataclasses.asdict(case).items() if name != "bert"}
    record |= summary(turns)
    for side, found in turns.runs.items():
        # Later rounds find compiled programs in the cache.
        record["sides"][side]["warmup_seconds"] = round(found[0]["warmup_seconds"], 2)
    runs = turns.runs.get("flaxbert bfloat16")
    if not runs:
        return record
    peak = statistics.median(run["matmul_tflops"] for run in runs)
    record["device"] = {
        "matmul_tflops": round(peak, 2),
        "adamw_ms": round(1000 * statistics.median(run["adamw_seconds"] for run in runs), 3),
        "under_load": [run["under_load"] for run in runs],
    }
    record["shapes"], record["versions"] = runs[0]["shapes"], runs[0]["versions"]
    for figures in record["sides"].values():
        tokens, keys = figures["real_tokens_per_second"], figures["attended_keys_per_second"]
        flops = model_flops(case.bert, round(tokens), round(keys))
        figures["mfu"] = round(flops / (peak * 1e12), 4)
    return record


if __name__ == "__main__":
    main()
