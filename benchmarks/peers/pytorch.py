"""Hugging Face PyTorch on one workload in one mode: what its users run, from plain to tuned.

    python benchmarks/peers/pytorch.py --data=tokens.npz --model=FOLDER --mode=dynamic-float32

A plain loop with the Trainer's recipe (AdamW with decay off biases and norms, linear schedule,
clipping at 1, dropout as the config says), so without the Trainer's own overhead. One JSON object
on standard output. It shares nothing with flaxbert but the tokens.

Modes are PADDING-DTYPE[-compile]. Padding: pad128 (every batch to 128 tokens), dynamic (to its
longest), grouped (batches of like lengths, as the Trainer's group_by_length makes them).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import resource
import time

import numpy as np
import torch
import transformers
from transformers import AutoConfig, AutoModelForSequenceClassification

MEGA_BATCH = 50  # batches that the Trainer sorts at once


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--mode", required=True)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--random_weights", action="store_true")
    arguments = parser.parse_args()
    padding, dtype, *compiled = arguments.mode.split("-")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    model = load(arguments.model, arguments.random_weights).to(device).train()
    step = torch.compile(model) if compiled else model
    optimizer, schedule = optimizer_for(model, arguments.updates + arguments.warmup)
    autocast = (
        torch.autocast(device, torch.bfloat16) if dtype == "bfloat16" else contextlib.nullcontext()
    )
    batches = make_batches(dict(np.load(arguments.data)), padding, arguments.batch)
    samples = real = computed = 0
    losses = []
    for number in range(arguments.warmup + arguments.updates):
        if number == arguments.warmup:
            synchronize(device)
            start, samples, real, computed = time.perf_counter(), 0, 0, 0
        batch, tokens = next(batches)
        batch = {name: torch.from_numpy(array).to(device) for name, array in batch.items()}
        with autocast:
            loss = step(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
        samples += len(batch["labels"])
        real += tokens
        computed += batch["input_ids"].numel()
    synchronize(device)
    seconds = time.perf_counter() - start
    print(
        json.dumps(
            {
                "samples_per_second": samples / seconds,
                "seconds_per_update": seconds / arguments.updates,
                "real_tokens_per_second": real / seconds,
                "real_per_computed_token": real / computed,
                "peak_mib": peak_mib(device),
                "last_loss": float(losses[-1]),
                "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
            }
        )
    )


def load(folder: str, random_weights: bool) -> torch.nn.Module:
    if random_weights:
        config = AutoConfig.from_pretrained(folder, num_labels=2)
        return AutoModelForSequenceClassification.from_config(config)
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)


def optimizer_for(model: torch.nn.Module, total: int) -> tuple:
    plain = [p for name, p in model.named_parameters() if "bias" in name or "LayerNorm" in name]
    decayed = [
        p for name, p in model.named_parameters() if not ("bias" in name or "LayerNorm" in name)
    ]
    groups = [
        {"params": decayed, "weight_decay": 0.01},
        {"params": plain, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=5e-5, fused=True)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, total // 10, total)
    return optimizer, schedule


def make_batches(data, padding: str, size: int):
    """Yields (arrays, real tokens) without end."""
    offsets, lengths = data["offsets"], np.diff(data["offsets"])
    seed = 0
    while True:
        order = np.random.default_rng(seed).permutation(len(lengths))
        seed += 1
        order = order[: len(order) - len(order) % size]
        if padding == "grouped":
            mega = size * MEGA_BATCH
            parts = [order[i : i + mega] for i in range(0, len(order), mega)]
            parts = [part[np.argsort(-lengths[part], kind="stable")] for part in parts]
            batches = [p[i : i + size] for p in parts for i in range(0, len(p), size)]
            # The Trainer keeps them sorted; a short benchmark must see all lengths.
            random.Random(seed).shuffle(batches)
        else:
            batches = [order[i : i + size] for i in range(0, len(order), size)]
        for chosen in batches:
            width = 128 if padding == "pad128" else int(lengths[chosen].max())
            ids = np.zeros((len(chosen), width), np.int64)
            mask = np.zeros((len(chosen), width), np.int64)
            for row, index in enumerate(chosen):
                length = lengths[index]
                ids[row, :length] = data["input_ids"][offsets[index] : offsets[index] + length]
                mask[row, :length] = 1
            labels = data["labels"][chosen].astype(np.int64)
            arrays = {"input_ids": ids, "attention_mask": mask, "labels": labels}
            yield arrays, int(lengths[chosen].sum())


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def peak_mib(device: str) -> float:
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
