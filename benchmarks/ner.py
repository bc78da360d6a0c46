"""Token classification on WNUT-17: entity scores seed by seed, and speed beside PyTorch.

    python benchmarks/ner.py --data=FOLDER --part=scores [--seeds=0,1,2]
    python benchmarks/ner.py --data=FOLDER --part=speed [--rounds=3]

FOLDER holds train.conll and test.conll (https://github.com/leondz/emerging_entities_17). The model
is the embedded MiniLM, the recipe that of configs/ner.py: AdamW 1e-4, warm-up 10 %, 32 sequences an
update, 5 epochs, 128 tokens; scores are those after the last update. Both parts are in one file,
benchmarks/results/wnut17.json. A seed takes minutes on two cores; while speed is measured nothing
else should run.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sides import ON_CPU, ROOT, Figures, figures_of, run, summary, take_turns

RESULT = Path(__file__).parent / "results" / "wnut17.json"
PYTORCH = Path(__file__).parent / "peers" / "pytorch.py"
MODES = ("dynamic-float32", "dynamic-bfloat16", "grouped-float32")
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "transformers")
BATCH, UPDATES = 32, 40


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--part", choices=("scores", "speed"), required=True)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prepare", type=Path, help="writes what the sides read, and ends")
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    data = arguments.data.resolve()
    if arguments.prepare:
        return prepare(data, arguments.prepare)
    command = f"python benchmarks/ner.py --data=FOLDER --part={arguments.part}"
    if arguments.part == "scores":
        found = scores(data, [int(seed) for seed in arguments.seeds.split(",")])
        command += f" --seeds={arguments.seeds}"
    else:
        found = speed(data, arguments.rounds)
        command += f" --rounds={arguments.rounds}"
    found = {
        "command": command,
        "machine": f"{platform.machine()}, {platform.system()} {platform.release()}",
        "versions": {name: version(name) for name in PACKAGES},
        **found,
    }
    both = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    both[arguments.part] = found
    arguments.output.write_text(json.dumps(both, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=2))


def command_for(workdir: Path, train: Path, *flags: str) -> list[str]:
    config = [
        f"--config={ROOT / 'configs' / 'ner.py'}",
        f"--workdir={workdir}",
        f"--config.data.train={train}",
    ]
    return [sys.executable, "-m", "flaxbert.train", *config, *flags]


# Scores


def scores(data: Path, seeds: list[int]) -> Figures:
    with tempfile.TemporaryDirectory() as folder:
        by_seed = {str(seed): trained(data, seed, Path(folder, str(seed))) for seed in seeds}
    return {
        "seeds": by_seed,
        "mean_f1_strict": statistics.mean(found["f1_strict"] for found in by_seed.values()),
    }


def trained(data: Path, seed: int, workdir: Path) -> Figures:
    """Trains with a seed; returns the scores after the last update."""
    command = command_for(
        workdir,
        data / "train.conll",
        f"--config.data.validation={data / 'test.conll'}",
        f"--config.seed={seed}",
    )
    subprocess.run(command, check=True, cwd=ROOT)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    last = {line["name"]: line["value"] for line in lines if line["split"] == "validation"}
    results = json.loads((workdir / "train_results.json").read_text())
    return {
        "f1_strict": last["f1_strict"],
        "f1": last["f1"],
        "accuracy": last["accuracy"],
        "updates": results["train_steps"],
    }


# Speed


def speed(data: Path, rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        # In a process of its own: what a child's peak memory is counted from is its parent's.
        prepared = [sys.executable, __file__, f"--data={data}", "--part=speed"]
        done, _ = run([*prepared, f"--prepare={folder}"], ON_CPU)
        if done.returncode:
            raise SystemExit(done.stderr)
        sides: dict[str, Any] = {"flaxbert float32": lambda: ours(data)}
        for mode in MODES:
            sides[f"pytorch {mode}"] = lambda mode=mode: peer(Path(folder), mode)
        *_, turns = take_turns("wnut17", sides, rounds)
    return {"batch": BATCH, "updates": UPDATES, **summary(turns)}


def prepare(data: Path, folder: Path) -> None:
    """Writes model/ and the training tokens with a label for each, as the others read them."""
    import numpy as np

    from flaxbert.config import make_config
    from flaxbert.data.checks import Known
    from flaxbert.data.sources.files import read_rows
    from flaxbert.data.tokenize import Tokenizer
    from flaxbert.heads import head_named
    from flaxbert.storage.embedded import minilm_directory

    head, config, source = head_named("token"), make_config({}), minilm_directory()
    rows = head.usable(read_rows(data / "train.conll", {"text": "tokens", "label": "tags"}), config)
    labels = head.learn_labels(rows, config, Known())
    tokenizer = Tokenizer(source, vocab_size=30522, pad_token_id=0, type_vocab_size=2)
    examples = head.split("training", rows, labels, tokenizer, 128, config).examples
    tokens = examples.tokens
    np.savez(
        folder / "tokens.npz",
        input_ids=tokens.input_ids,
        offsets=tokens.offsets,
        labels=examples.labels,
    )
    shutil.copytree(source, folder / "model")


def ours(data: Path) -> Figures:
    """Runs the real command, which has the speed of the steady state in its results."""
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder) / "run"
        flags = (f"--config.train.steps={UPDATES}", "--config.model.dtype=float32")
        done, peak = run(command_for(workdir, data / "train.conll", *flags), ON_CPU)
        if done.returncode:
            raise SystemExit(done.stderr)
        results = json.loads((workdir / "train_results.json").read_text())
    rate = results["train_samples_per_second"]
    return {
        "samples_per_second": rate,
        "seconds_per_update": BATCH / rate,
        "peak_mib": peak,
        "versions": {"jax": version("jax"), "flax": version("flax")},
    }


def peer(folder: Path, mode: str) -> Figures:
    command = [sys.executable, PYTORCH, f"--data={folder / 'tokens.npz'}"]
    command += [f"--model={folder / 'model'}", f"--mode={mode}"]
    return figures_of([*command, f"--batch={BATCH}", f"--updates={UPDATES}"], ON_CPU)


if __name__ == "__main__":
    main()
