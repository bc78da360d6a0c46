"""Training speed on one GPU beside Hugging Face PyTorch, on the same tokens.

    python benchmarks/gpu.py [--cases=base-32,base-rows] [--rounds=5] [--pytorch=PYTHON]
    python benchmarks/gpu.py --at_once                      # compiles for all cases together
    python benchmarks/gpu.py --sides=flaxbert,compile       # some sides: prints, writes nothing
    python benchmarks/gpu.py --smoke                        # tiny, on the CPU: the same

Needs no tokenizer, no weights and no data set: lengths come from histograms/, ids and weights are
random. Every side is a process of its own: train_steps.py is ours, PyTorch's modes are those of
peers/pytorch.py. First ours compile, which times kernels to choose among them, then the others, and
then all sides of a case take turns on the GPU. Writes one file per GPU, after each round, so that a
command that is cut off leaves what it had. render.py makes README.md from it.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import platform
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))  # flaxbert need not be installed

from gpu_cases import CASES, SMOKE, Case
from lengths import sentence_lengths
from quickstart import cpu_name
from sides import (
    ON_CPU,
    OURS,
    ROOT,
    Figures,
    SideError,
    Standing,
    Turns,
    figures_of,
    summary,
    write_workload,
)

from flaxbert.loop.flops import model_flops

HERE = Path(__file__).parent
TRAIN_STEPS, PYTORCH = HERE / "train_steps.py", HERE / "peers" / "pytorch.py"
WHAT = "training speed on one GPU on the same tokens, one process a side, taking turns"


@dataclasses.dataclass(frozen=True)
class Setup:
    """How the sides are run."""

    pytorch: str  # interpreter
    device: str  # "gpu", or "cpu" in the smoke test
    sides: tuple[str, ...]  # words; a side whose name has none of them is left out
    rounds: int
    ready_seconds: float  # in which a side must have compiled
    warmup: int
    size: int  # of the dense products
    environment: dict[str, str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--sides", default="", help="those whose names have one of these words")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side")
    parser.add_argument("--at_once", action="store_true", help="compile for all cases together")
    parser.add_argument("--ready_seconds", type=float, default=1800, help="a side is out then")
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
            *_, (_, turns) = turns_of({"smoke": SMOKE}, setup)
            print(json.dumps(record_of(SMOKE, turns), indent=1))
            return
        machine = machine_with(setup)
        output = arguments.output
        if not output and not arguments.sides:
            output = HERE / "results" / f"{slug(machine['gpu'])}.json"
        for group in [names] if arguments.at_once else [[name] for name in names]:
            measured = {}
            for name, turns in turns_of({name: CASES[name] for name in group}, setup):
                measured[name] = record_of(CASES[name], turns)
                measured[name]["command"] = command_for(name, arguments)
                if output:
                    write_workload(output, WHAT, machine, name, measured[name])
            print(json.dumps(measured, indent=1), flush=True)


def command_for(name: str, arguments: argparse.Namespace) -> str:
    """What measures one case again, without the paths of this machine."""
    return (
        f"python benchmarks/gpu.py --cases={name} --rounds={arguments.rounds}"
        + (f" --sides={arguments.sides}" if arguments.sides else "")
        + (" --at_once" if arguments.at_once else "")
        + (" --pytorch=..." if arguments.pytorch else "")
        + (" --output=..." if arguments.output else "")
    )


def setup_for(arguments: argparse.Namespace, caches: Path) -> Setup:
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        "PYTHONPATH": os.pathsep.join(paths),
        # Nothing that was compiled before.
        "JAX_COMPILATION_CACHE_DIR": str(caches / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
        "TRITON_CACHE_DIR": str(caches / "triton"),
    }
    sides = tuple(word for word in arguments.sides.split(",") if word) or ("",)
    pytorch = arguments.pytorch or sys.executable
    if arguments.smoke:
        return Setup(pytorch, "cpu", sides, 2, 1800.0, 2, 256, environment | ON_CPU)
    # GPUs are counted as nvidia-smi counts them: CUDA's own order begins with the fastest.
    environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    environment["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # sides share the GPU's memory
    rounds, seconds = arguments.rounds, arguments.ready_seconds
    return Setup(pytorch, "gpu", sides, rounds, seconds, 20, 8192, environment)


def machine_with(setup: Setup) -> dict[str, Any]:
    """Describes this machine and its GPU.

    Raises:
      SystemExit: JAX has none.
    """
    try:
        found = figures_of([sys.executable, TRAIN_STEPS, "--describe"], setup.environment)
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


# Cases


def turns_of(cases: dict[str, Case], setup: Setup) -> Iterator[tuple[str, Turns]]:
    """Yields a case and its figures so far, after each round."""
    with contextlib.ExitStack() as ending:
        root = Path(ending.enter_context(tempfile.TemporaryDirectory()))
        for name, case in cases.items():
            write_inputs(case, root / name)
        standing: dict[str, dict[str, Standing]] = {name: {} for name in cases}
        turns = {name: Turns({}, {}) for name in cases}

        def stand(is_ours: bool) -> None:
            """Starts our sides, or the others, and waits until they are ready.

            One after the other, unless all are to be compiled at once.
            """
            started: list[tuple[str, str, Standing]] = []

            def wait() -> None:
                deadline = time.monotonic() + setup.ready_seconds
                for name, side, process in started:
                    with failing(turns[name], name, side):
                        process.wait_until_ready(deadline - time.monotonic())
                        standing[name][side], turns[name].runs[side] = process, []
                        print(f"{name} {side}: ready", flush=True)
                started.clear()

            for name, case in cases.items():
                for side, command in commands_of(case, root / name, setup).items():
                    chosen = any(word in side for word in setup.sides)
                    if chosen and side.startswith(OURS) == is_ours:
                        started.append((name, side, Standing(command, setup.environment)))
                        ending.callback(started[-1][-1].stop)
                        if len(cases) == 1:
                            wait()
            wait()

        stand(is_ours=True)
        stand(is_ours=False)
        for number in range(setup.rounds):
            for name in cases:
                # Back and forth, so that no side always comes after the same other.
                for side in sorted(turns[name].runs, reverse=bool(number % 2)):
                    with failing(turns[name], name, side):
                        found = of_last_turn(standing[name][side].turn())
                        turns[name].runs[side].append(found)
                        speed = found["samples_per_second"]
                        print(f"{name} {number} {side}: {speed:.1f}/s", flush=True)
                yield name, turns[name]


def of_last_turn(figures: Figures) -> Figures:
    """A side tells the medians of its turns so far: returns what they are of the last one."""
    speed = figures["repeats"][-1]
    faster = speed / figures["samples_per_second"]
    return figures | {
        "samples_per_second": speed,
        "repeats": [speed],
        "seconds_per_update": figures["seconds_per_update"] / faster,
        "real_tokens_per_second": figures["real_tokens_per_second"] * faster,
        "attended_keys_per_second": figures["attended_keys_per_second"] * faster,
    }


@contextlib.contextmanager
def failing(turns: Turns, case: str, side: str) -> Iterator[None]:
    """A peer that fails is out and the others go on.

    Raises:
      SystemExit: one of our own failed.
    """
    try:
        yield
    except SideError as error:
        if side.startswith(OURS):
            raise SystemExit(str(error)) from error
        turns.drop(side, error)
        print(f"{case} {side}: failed: {error}", flush=True)


def write_inputs(case: Case, folder: Path) -> None:
    """Writes tokens.npz and config.json: what the sides read."""
    folder.mkdir()
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


def commands_of(case: Case, inputs: Path, setup: Setup) -> dict[str, list[Any]]:
    """Returns what runs each side."""
    device = "cuda" if setup.device == "gpu" else "cpu"  # it must not take the CPU in silence

    def common(updates: int) -> list[str]:
        return [
            f"--data={inputs / 'tokens.npz'}",
            f"--model={inputs}",
            f"--batch={case.batch}",
            f"--updates={updates}",
            f"--repeats={setup.rounds}",
            f"--warmup={min(setup.warmup, updates)}",
            "--turns",
        ]

    ours = [sys.executable, TRAIN_STEPS, f"--platform={setup.device}", f"--size={setup.size}"]
    commands = {f"{OURS} bfloat16": [*ours, *common(case.updates)]}
    for mode in case.modes:
        updates = case.updates if "bfloat16" in mode else case.slow_updates
        peer = [setup.pytorch, PYTORCH, f"--mode={mode}", "--random_weights", f"--device={device}"]
        commands[f"pytorch {mode}"] = [*peer, *common(updates)]
    return commands


def record_of(case: Case, turns: Turns) -> dict[str, Any]:
    """Summarises a case; each side's MFU is against the products that the GPU did in our runs."""
    record = {name: value for name, value in dataclasses.asdict(case).items() if name != "bert"}
    record |= summary(turns)
    runs = turns.runs.get("flaxbert bfloat16")
    if not runs:
        return record
    peak = runs[0]["matmul_tflops"]  # measured once
    record["device"] = {
        "matmul_tflops": round(peak, 2),
        "adamw_ms": round(1000 * runs[0]["adamw_seconds"], 3),
        "adamw_sent_ms": round(1000 * runs[0]["adamw_sent_seconds"], 3),
        "under_load": runs[0]["under_load"],
    }
    record["shapes"], record["versions"] = runs[0]["shapes"], runs[0]["versions"]
    for figures in record["sides"].values():
        tokens, keys = figures["real_tokens_per_second"], figures["attended_keys_per_second"]
        flops = model_flops(case.bert, round(tokens), round(keys))
        figures["mfu"] = round(flops / (peak * 1e12), 4)
    return record


if __name__ == "__main__":
    main()
