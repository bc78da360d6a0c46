"""Writes what PyTorch computes, for the Python lines on which it is not installed.

    python3.11 -m tests.golden.make_torch

Each function below is one .npz file here, and `folders` are model folders as transformers saves
them. Deterministic: weights and inputs come from seeds (tests/reference.py). To be run again when
those change; tests/golden/test_golden.py compares the files with live PyTorch on Python 3.11.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import transformers

from tests import folders as our_folders
from tests.heads.targets import slots
from tests.loop.cases import EMBEDDED_UPDATES, SCHEDULE_STEPS, SCHEDULES, UPDATES, embedded_examples
from tests.loop.harness import examples, without_dropout
from tests.reference import (
    EMBEDDED_LENGTHS,
    GOLDEN,
    GRID,
    LENGTHS,
    Arrays,
    config_for,
    digest,
    embedded_arrays,
    embedded_config,
    pack_outcome,
    random_arrays,
    sample,
    sentences,
)
from tests.torch_reference import (
    learning_rates,
    outcome_and_errors,
    torch_config,
    torch_inputs,
    torch_model,
    torch_run,
)


def grid() -> Arrays:
    """Hidden states, logits and every gradient of the grid in float64; float32's own errors."""
    golden: Arrays = {}
    for name, changes in GRID.items():
        config = config_for(**changes)
        arrays, batch = random_arrays(config), sentences(config, LENGTHS)
        inputs = digest(arrays, *vars(batch).values())
        golden |= pack_outcome(name, *outcome_and_errors(config, arrays, batch), inputs)
    return golden


def embedded() -> Arrays:
    """The same of the embedded checkpoint, sampled."""
    config, arrays = embedded_config(), embedded_arrays()
    batch = sentences(config, EMBEDDED_LENGTHS)
    found = outcome_and_errors(config, arrays, batch, lengths=EMBEDDED_LENGTHS)
    return pack_outcome("embedded", *found, digest(arrays, *vars(batch).values()))


def updates() -> Arrays:
    """Losses of 20 updates in both precisions, and every parameter after those in float64."""
    config, data = without_dropout(), examples()
    arrays = random_arrays(config)
    losses, end = torch_run(config, arrays, data, UPDATES, 16, "float64")
    rounded, _ = torch_run(config, arrays, data, UPDATES, 16, "float32")
    return {
        "inputs": np.array(digest(arrays, data.tokens.input_ids, data.tokens.offsets, data.labels)),
        "losses": losses,
        "float32_losses": rounded,
        **{f"end/{name}": array for name, array in end.items()},
    }


def embedded_updates() -> Arrays:
    """The same of the embedded checkpoint, sampled."""
    config, arrays = embedded_config(), embedded_arrays()
    data = embedded_examples()
    losses, end = torch_run(config, arrays, data, EMBEDDED_UPDATES, 8, "float64")
    rounded, _ = torch_run(config, arrays, data, EMBEDDED_UPDATES, 8, "float32")
    return {
        "inputs": np.array(digest(arrays, data.tokens.input_ids, data.tokens.offsets, data.labels)),
        "losses": losses,
        "float32_losses": rounded,
        **{f"end/{name}": sample(array) for name, array in end.items()},
    }


def schedules() -> Arrays:
    """Learning rates of transformers' schedules."""
    return {name: learning_rates(optim, SCHEDULE_STEPS) for name, optim in SCHEDULES.items()}


def losses() -> Arrays:
    """Losses of torch.nn for the targets of tests/heads."""
    golden: Arrays = {}
    for case in slots.SINGLE_LABEL:
        classes, smoothing, weighted = case
        logits, labels, weights = slots.single_label(classes=classes)
        real = weights > 0
        chosen = slots.class_weights(classes, weighted)
        golden[f"single_label/{case}"] = np.array(
            [
                torch.nn.CrossEntropyLoss(
                    weight=torch.tensor(chosen, dtype=torch.float64) if weighted else None,
                    label_smoothing=smoothing,
                    reduction=reduction,
                )(torch.tensor(logits[real]), torch.tensor(labels[real])).item()
                for reduction in ("sum", "mean")
            ]
        )
    for case in slots.MULTI_LABEL:
        classes, smoothing, weighted = case
        logits, labels, weights = slots.multi_label(classes=classes)
        real = weights > 0
        chosen = slots.class_weights(classes, weighted)
        # torch has no smoothing here: its targets are moved towards 1/2 instead.
        targets = torch.tensor(labels[real]) * (1 - smoothing) + smoothing / 2
        loss = torch.nn.BCEWithLogitsLoss(
            pos_weight=torch.tensor(chosen, dtype=torch.float64) if weighted else None
        )(torch.tensor(logits[real]), targets)
        golden[f"multi_label/{case}"] = np.array(loss.item())
    for seed in slots.REGRESSION:
        logits, labels, weights = slots.regression(seed)
        real = weights > 0
        loss = torch.nn.MSELoss()(torch.tensor(logits[real][:, 0]), torch.tensor(labels[real]))
        golden[f"regression/{seed}"] = np.array(loss.item())
    return golden


def scores() -> Arrays:
    """Scores of transformers' text-classification pipeline on folders that flaxbert wrote."""
    golden: Arrays = {}
    for name, case in our_folders.PIPELINES.items():
        with our_folders.temporary() as folder:
            our_folders.write_folder_for_sentences(folder / "model", case)
            golden[name] = pipeline_scores(folder / "model", case)
    return golden


def pipeline_scores(folder: Path, case: our_folders.Pipeline) -> np.ndarray:
    """Returns the pipeline's score of each sentence and label, labels in the case's order."""
    classify = transformers.pipeline("text-classification", model=str(folder), device="cpu")
    answers = classify(our_folders.SENTENCES, top_k=None, **case.options)
    by_label = [{item["label"]: item["score"] for item in answer} for answer in answers]
    return np.array([[scores_of[label] for label in case.labels] for scores_of in by_label])


def write_folders(target: Path) -> None:
    """Saves tiny models the ways in which transformers saves them."""
    config = config_for(**our_folders.SAVED)
    model = torch_model(config)
    model.to(torch.float32).save_pretrained(target / "classifier")
    with torch.no_grad():
        batch = sentences(config, our_folders.SAVED_LENGTHS)
        logits = model(**torch_inputs(batch)).logits.numpy()
    (target / "classifier" / "logits.json").write_text(json.dumps(logits.tolist()))
    torch_model(config).to(torch.float16).save_pretrained(target / "float16")
    torch_model(config).to(torch.bfloat16).save_pretrained(
        target / "bfloat16", max_shard_size="2KB"
    )
    arrays = {name: torch.tensor(array) for name, array in random_arrays(config).items()}
    for kind in our_folders.OTHER_HEADS:
        torch.manual_seed(0)  # for the heads that a classifier does not have
        other = getattr(transformers, kind)(torch_config(config))
        ours = {
            name.removeprefix("bert.") if kind == "BertModel" else name: array
            for name, array in arrays.items()
        }
        other.load_state_dict(ours, strict=False)
        other.save_pretrained(target / kind)


FILES: tuple[Callable[[], Arrays], ...] = (
    grid,
    embedded,
    updates,
    embedded_updates,
    schedules,
    losses,
    scores,
)


def main() -> None:
    for function in FILES:
        np.savez_compressed(GOLDEN / f"{function.__name__}.npz", **function())
        print(f"{function.__name__}.npz")
    shutil.rmtree(GOLDEN / "folders", ignore_errors=True)
    write_folders(GOLDEN / "folders")


if __name__ == "__main__":
    main()
