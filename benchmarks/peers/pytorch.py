"""Hugging Face PyTorch on one workload in one mode: what its users run, from plain to tuned.

    python benchmarks/peers/pytorch.py --data=tokens.npz --model=FOLDER --mode=dynamic-float32

A plain loop with the Trainer's recipe (AdamW with decay off biases and norms, linear schedule,
clipping at 1, dropout as the config says), so without the Trainer's own overhead, and with more
than its defaults: fused AdamW, SDPA, batches laid out without a loop, pinned memory. One JSON
object on standard output, or one a turn. It shares nothing with flaxbert but the tokens.

Modes are PADDING-DTYPE[-compile|-graphs]. Padding: pad128 (every batch to 128 tokens), dynamic (to
its longest), grouped (batches of like lengths, as the Trainer's group_by_length makes them),
grouped8 (the same, to a multiple of 8), full (sequences of one length, no mask), unpadded (the same
weights without padding, by varlen_attn, which has no dropout in attention). Dtype: float32, tf32
(float32 whose products may round to TF32 on a GPU), bfloat16 (autocast). compile is torch.compile
of the model; graphs also replays forward and backward as CUDA graphs ("reduce-overhead"), one for
each width; clipping and AdamW are compiled in none. Note: on padded batches these two begin with
updates of every width that the timed ones will have.

Labels in the data are one of each sequence, or one of each token (-1 = none): then it is a
BertForTokenClassification.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import random
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)
from transformers.modeling_outputs import SequenceClassifierOutput

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:
    varlen_attn: Any = None

MEGA_BATCH = 50  # batches that the Trainer sorts at once
PADDINGS = ("pad128", "dynamic", "grouped", "grouped8", "full", "unpadded")
DTYPES = ("float32", "tf32", "bfloat16")
COMPILERS = {"compile": None, "graphs": "reduce-overhead"}  # modes of torch.compile
# Of each width. The first is compiled for itself, the second for all of them, so the first begins
# anew; a CUDA graph runs as a program once, is recorded the second time and replayed from then on.
PASSES = 5

Batch = dict[str, np.ndarray]
Counted = tuple[Batch, int, int]  # arrays, real tokens, keys that these attend to


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--mode", required=True)
    parser.add_argument("--device", default="", help="cuda or cpu; default: cuda if it is there")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--updates", type=int, default=20, help="of each repeat")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--turns", action="store_true", help="each repeat waits for a line")
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--random_weights", action="store_true")
    arguments = parser.parse_args()
    padding, dtype, compiler = [*arguments.mode.split("-", 2), "", ""][:3]
    if padding not in PADDINGS or dtype not in DTYPES or compiler not in ("", *COMPILERS):
        parser.error(f"--mode: expected PADDING-DTYPE[-compile|-graphs], got {arguments.mode}")
    device = device_for(arguments.device, padding, compiler)
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")
    data = dict(np.load(arguments.data))
    by_token = len(data["labels"]) == len(data["input_ids"])
    if by_token and padding == "unpadded":
        parser.error("--mode: unpadded is for one label a sequence")
    classes = AutoModelForTokenClassification if by_token else AutoModelForSequenceClassification
    count = max(2, int(data["labels"].max()) + 1)
    model = load(classes, arguments.model, count, arguments.random_weights).to(device).train()
    longest = int(np.diff(data["offsets"]).max())
    module = Unpadded(model, longest) if padding == "unpadded" else model
    total = arguments.warmup + arguments.repeats * arguments.updates
    widths: list[Counted] = []
    if compiler and padding != "unpadded":  # whose lengths differ every time
        widths = of_each_width(data, padding, arguments.batch, total)
    warmup = PASSES * len(widths) + arguments.warmup
    update = Update(module, compiler, dtype, device, PASSES * len(widths) + total)
    batches = itertools.chain(PASSES * widths, make_batches(data, padding, arguments.batch))
    warmup_seconds, _ = timed(update, batches, warmup, device)
    compiled = update.compiled()
    found: list[tuple[float, dict[str, int]]] = []
    figures: dict[str, Any] = {}
    for _ in turns(arguments):
        found.append(timed(update, batches, arguments.updates, device))
        last_loss = float(update.loss)
        if not math.isfinite(last_loss):  # once one is not, neither are weights and later losses
            raise SystemExit(f"the last loss was {last_loss}: the speed means nothing")
        sums = {key: sum(counts[key] for _, counts in found) for key in found[0][1]}
        speeds = [counts["samples"] / seconds for seconds, counts in found]
        speed = statistics.median(speeds)
        figures = {
            "samples_per_second": speed,
            "seconds_per_update": arguments.batch / speed,
            "real_tokens_per_second": speed * sums["real"] / sums["samples"],
            "attended_keys_per_second": speed * sums["attended"] / sums["samples"],
            "real_per_computed_token": sums["real"] / sums["computed"],
            "peak_mib": peak_mib(device),
            "warmup_seconds": warmup_seconds,  # compilation included
            "warmup_updates": warmup,
            "widths_warmed_up": len(widths),
            "compiled_while_timed": update.compiled() - compiled,
            "last_loss": last_loss,
            "repeats": speeds,
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        }
        if arguments.turns:
            give_back(device)
            print(json.dumps(figures), flush=True)
    if not arguments.turns:
        print(json.dumps(figures))


def turns(arguments: argparse.Namespace) -> Iterator[Any]:
    """As many as asked for; with --turns whenever a line comes in, until there are no more."""
    if not arguments.turns:
        return iter(range(arguments.repeats))
    give_back(arguments.device)
    print("ready", flush=True)
    return itertools.islice(sys.stdin, arguments.repeats)


def give_back(device: str) -> None:
    """Other sides wait on the same GPU."""
    if device == "cuda":
        torch.cuda.empty_cache()


def device_for(asked: str, padding: str, compiler: str) -> str:
    """Returns the device.

    Raises:
      SystemExit: the mode cannot run on it; no other is taken in silence.
    """
    there = torch.cuda.is_available()
    device = asked or ("cuda" if there else "cpu")
    if device == "cuda" and not there:
        raise SystemExit(f"PyTorch {torch.__version__} finds no CUDA device here")
    if device == "cuda" and padding == "unpadded" and not varlen_attn:
        raise SystemExit(f"unpadded needs PyTorch 2.10 or later, this is {torch.__version__}")
    if compiler == "graphs" and (device != "cuda" or padding == "unpadded"):
        raise SystemExit("graphs need a CUDA device and padded batches")
    return device


def timed(
    update: Update, batches: Iterator[Counted], count: int, device: str
) -> tuple[float, dict[str, int]]:
    """Runs updates; returns their seconds, and how many samples and tokens they had."""
    counts = {"samples": 0, "real": 0, "attended": 0, "computed": 0}
    synchronize(device)
    start = time.perf_counter()
    for _ in range(count):
        batch, real, attended = next(batches)
        update(batch)
        counts["samples"] += len(batch["labels"])
        counts["real"] += real
        counts["attended"] += attended
        counts["computed"] += batch["input_ids"].size
    synchronize(device)
    return time.perf_counter() - start, counts


class Update:
    """One step of AdamW on one batch of arrays."""

    def __init__(
        self, model: torch.nn.Module, compiler: str, dtype: str, device: str, total: int
    ) -> None:
        self.model, self.compiler, self.device = model, compiler, device
        half = dtype == "bfloat16"
        self.cast = torch.autocast(device, torch.bfloat16) if half else contextlib.nullcontext()
        self.step = torch.compile(model, mode=COMPILERS[compiler]) if compiler else model
        self.optimizer, self.schedule = optimizer_for(model, total)
        self.loss = torch.zeros(())

    def __call__(self, batch: Batch) -> None:
        inputs = {name: self.sent(array) for name, array in batch.items()}
        graphs = self.compiler == "graphs"
        if graphs:
            torch.compiler.cudagraph_mark_step_begin()
        with self.cast:
            loss = self.step(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        # The next update writes over what a graph returned.
        self.loss = loss.detach().clone() if graphs else loss.detach()

    def compiled(self) -> int:
        """Counts what has been compiled and recorded so far, to see whether more follows.

        Raises:
          SystemExit: PyTorch skipped CUDA graphs, which it does with no more than a warning.
        """
        if not self.compiler:
            return 0
        from torch._dynamo.utils import counters

        inductor = counters["inductor"]
        if self.compiler == "graphs" and inductor["cudagraph_skips"]:
            raise SystemExit("PyTorch skipped CUDA graphs: the speed would be that of compile")
        # Of recorded graphs it counts the inputs.
        return counters["stats"]["unique_graphs"] + inductor["cudagraph_recorded_non_static_inputs"]

    def sent(self, array: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        if self.device == "cpu":
            return tensor
        return tensor.pin_memory().to(self.device, non_blocking=True)


class Unpadded(torch.nn.Module):
    """The modules of a BertForSequenceClassification on sequences end to end: [T] tokens.

    The head reads the first token of each sequence. `longest` bounds the lengths, whatever the
    batch, so that a compiled program need not know them.
    """

    def __init__(self, model: Any, longest: int) -> None:
        super().__init__()
        self.model, self.longest = model, longest

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        bounds: torch.Tensor,
        labels: torch.Tensor,
    ) -> SequenceClassifierOutput:
        """`bounds` [B + 1], int32: where sequences start, and the end of the last."""
        bert, config = self.model.bert, self.model.config
        x = bert.embeddings(input_ids=input_ids[None], position_ids=position_ids[None])[0]
        for layer in bert.encoder.layer:
            own = layer.attention.self
            heads = (config.num_attention_heads, config.hidden_size // config.num_attention_heads)
            q, k, v = (part(x).unflatten(-1, heads) for part in (own.query, own.key, own.value))
            attended = attend(q, k, v, bounds, self.longest).flatten(1)
            x = layer.attention.output(attended, x)
            x = layer.output(layer.intermediate(x), x)
        first = x[bounds[:-1].long()]
        pooled = bert.pooler(first[:, None])  # it takes token 0 of each
        logits = self.model.classifier(self.model.dropout(pooled))
        loss = torch.nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bounds: torch.Tensor, longest: int
) -> torch.Tensor:
    """Attention [T, N, H] within sequences; by a mask where there is no kernel (CPUs)."""
    if q.is_cuda:
        attended: Any = varlen_attn(q, k, v, bounds, bounds, longest, longest)
        return attended
    places = torch.arange(len(q), dtype=bounds.dtype, device=q.device)
    own = torch.searchsorted(bounds, places, right=True)
    q, k, v = (part.transpose(0, 1)[None] for part in (q, k, v))
    mask = own[:, None] == own[None, :]
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out[0].transpose(0, 1)


def load(classes: Any, folder: str, labels: int, random_weights: bool) -> torch.nn.Module:
    if random_weights:
        return classes.from_config(AutoConfig.from_pretrained(folder, num_labels=labels))
    return classes.from_pretrained(folder, num_labels=labels, ignore_mismatched_sizes=True)


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


def of_each_width(data: Batch, padding: str, size: int, count: int) -> list[Counted]:
    """Returns one batch of each width among the first `count`, the widest first."""
    found: dict[int, Counted] = {}
    for counted in itertools.islice(make_batches(data, padding, size), count):
        found.setdefault(counted[0]["input_ids"].shape[1], counted)
    return [found[width] for width in sorted(found, reverse=True)]


def make_batches(data: Batch, padding: str, size: int) -> Iterator[Counted]:
    """Yields batches without end."""
    lengths = np.diff(data["offsets"])
    seed = 0
    while True:
        order = np.random.default_rng(seed).permutation(len(lengths))
        seed += 1
        order = order[: len(order) - len(order) % size]
        if padding.startswith("grouped"):
            mega = size * MEGA_BATCH
            parts = [order[i : i + mega] for i in range(0, len(order), mega)]
            parts = [part[np.argsort(-lengths[part], kind="stable")] for part in parts]
            batches = [p[i : i + size] for p in parts for i in range(0, len(p), size)]
            # The Trainer keeps them sorted; a short benchmark must see all lengths.
            random.Random(seed).shuffle(batches)
        else:
            batches = [order[i : i + size] for i in range(0, len(order), size)]
        for chosen in batches:
            arrays = lay_out(data, chosen, padding)
            yield arrays, int(lengths[chosen].sum()), int(np.square(lengths[chosen]).sum())


def lay_out(data: Batch, chosen: np.ndarray, padding: str) -> Batch:
    """Returns the arrays of one batch: padded rows, or sequences end to end."""
    lengths = np.diff(data["offsets"])[chosen]
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    inside = np.arange(bounds[-1]) - np.repeat(bounds[:-1], lengths)
    places = np.repeat(data["offsets"][chosen], lengths) + inside
    by_token = len(data["labels"]) == len(data["input_ids"])
    tokens = data["input_ids"][places].astype(np.int64)
    labels = data["labels"][places if by_token else chosen].astype(np.int64)
    if padding == "unpadded":
        where = {"position_ids": inside, "bounds": bounds.astype(np.int32)}
        return {"input_ids": tokens, **where, "labels": labels}
    if padding == "full":
        return {"input_ids": tokens.reshape(len(chosen), -1), "labels": labels}
    width = int(lengths.max())
    if padding == "pad128":
        width = 128
    elif padding == "grouped8":
        width = -(-width // 8) * 8
    mask = np.arange(width) < lengths[:, None]
    ids = np.zeros(mask.shape, np.int64)
    ids[mask] = tokens  # row by row, as they stand
    if by_token:
        flat, labels = np.where(labels < 0, -100, labels), np.full(mask.shape, -100, np.int64)
        labels[mask] = flat
    return {"input_ids": ids, "attention_mask": mask.astype(np.int64), "labels": labels}


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def peak_mib(device: str) -> float:
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
