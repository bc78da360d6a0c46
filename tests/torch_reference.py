"""PyTorch BERT as the live reference; needs PyTorch, so Python 3.11."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transformers

from flaxbert.config import Optim
from flaxbert.data.batches import Examples, update_indices
from flaxbert.model.bert_config import BertConfig
from flaxbert.optim.schedules import warmup_steps
from tests.reference import (
    Arrays,
    Outcome,
    Sentences,
    config_for,
    float32_errors,
    random_arrays,
)


def torch_config(config: BertConfig) -> transformers.BertConfig:
    theirs = transformers.BertConfig.from_dict(config.to_dict())
    theirs._attn_implementation = "eager"
    return theirs


def torch_model(
    config: BertConfig | None = None, arrays: Arrays | None = None, **changes: Any
) -> transformers.BertForSequenceClassification:
    """A model in float64 whose values float32 files hold exactly."""
    config = config or config_for(**changes)
    model = transformers.BertForSequenceClassification(torch_config(config)).double()
    arrays = random_arrays(config) if arrays is None else arrays
    model.load_state_dict({name: torch.tensor(array) for name, array in arrays.items()})
    return model.eval()


def torch_inputs(batch: Sentences) -> dict[str, torch.Tensor]:
    names = ("input_ids", "attention_mask", "token_type_ids")
    return {name: torch.tensor(getattr(batch, name)).long() for name in names}


def outcome(config: BertConfig, arrays: Arrays, batch: Sentences, dtype: torch.dtype) -> Outcome:
    """What PyTorch computes in a dtype; the loss is the mean over the batch."""
    model = torch_model(config, arrays).to(dtype)
    out = model(**torch_inputs(batch), output_hidden_states=True)
    labels = torch.tensor(batch.labels)
    if config.num_labels == 1:
        loss = torch.nn.functional.mse_loss(out.logits[:, 0], labels.to(dtype))
    else:
        loss = torch.nn.functional.cross_entropy(out.logits, labels.long())
    loss.backward()
    gradients = {name: p.grad.double().numpy() for name, p in model.named_parameters()}
    real = batch.attention_mask.astype(bool)
    states = [state.detach().double().numpy()[real] for state in out.hidden_states]
    return Outcome(states, out.logits.detach().double().numpy(), gradients)


def outcome_and_errors(
    config: BertConfig, arrays: Arrays, batch: Sentences, *, lengths: list[int] | None = None
) -> tuple[Outcome, np.ndarray]:
    """PyTorch's float64 outcome, and how far its own float32 is from it; sampled if asked.

    The errors of a sampled outcome's states are those of all tokens, as where nothing is sampled.
    Of the few first tokens they are a matter of the CPU: in one layer PyTorch's float32 was 1.0e-6
    off on a CPU with AVX-512 and is 2.9e-6 off on one with AVX2 (of all tokens there, 5.2e-6).
    """
    exact = outcome(config, arrays, batch, torch.float64)
    rounded = outcome(config, arrays, batch, torch.float32)
    errors = float32_errors(rounded, exact)
    if lengths is None:
        return exact, errors
    exact, rounded = exact.sampled(lengths), rounded.sampled(lengths)
    of_states = len(exact.states)
    return exact, np.append(errors[:of_states], float32_errors(rounded, exact)[of_states:])


def torch_run(
    config: BertConfig, arrays: Arrays, data: Examples, optim: Optim, batch_size: int, dtype: str
) -> tuple[np.ndarray, Arrays]:
    """20 updates in PyTorch: padded batches, AdamW, clipping and schedule of transformers.

    Returns each update's loss and the arrays after.
    """
    model = torch_model(config, arrays).to(getattr(torch, dtype)).train()
    batches = [_padded(data, update_indices(len(data), batch_size, 1, step)) for step in range(20)]
    losses, _ = train_on(model, batches, optim)
    return losses, {n: v.detach().double().numpy() for n, v in model.state_dict().items()}


def train_on(
    model: Any, batches: list[dict[str, torch.Tensor]], optim: Optim
) -> tuple[np.ndarray, Arrays]:
    """Trains on each batch once; returns each loss, and the first gradient before clipping."""
    spared = [p for n, p in model.named_parameters() if n.endswith("bias") or "LayerNorm" in n]
    rest = [p for n, p in model.named_parameters() if not (n.endswith("bias") or "LayerNorm" in n)]
    optimizer = torch.optim.AdamW(
        [
            {"params": rest, "weight_decay": optim.weight_decay},
            {"params": spared, "weight_decay": 0},
        ],
        lr=optim.learning_rate,
        betas=(optim.b1, optim.b2),
        eps=optim.eps,
    )
    schedule = transformers.get_scheduler(
        optim.schedule, optimizer, warmup_steps(optim.warmup, len(batches)), len(batches)
    )
    losses, first = [], {}
    for batch in batches:
        loss = model(**batch).loss
        loss.backward()
        if not first:
            first = {n: p.grad.double().numpy().copy() for n, p in model.named_parameters()}
        torch.nn.utils.clip_grad_norm_(model.parameters(), optim.clip_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return np.array(losses), first


def learning_rates(optim: Optim, total: int) -> np.ndarray:
    """The rates of transformers' schedule, one per update."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=optim.learning_rate)
    name = "constant_with_warmup" if optim.schedule == "constant" else optim.schedule
    schedule = transformers.get_scheduler(name, optimizer, warmup_steps(optim.warmup, total), total)
    rates = []
    for _ in range(total):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return np.array(rates)


def head_updates(
    config: BertConfig, arrays: Arrays, data: Examples, optim: Optim, batch_size: int
) -> tuple[np.ndarray, Arrays, Arrays]:
    """20 float64 updates of the PyTorch class that the config states, with the loss of its own.

    Returns each update's loss, the first gradient, and the parameters after.
    """
    model = getattr(transformers, config.architecture)(torch_config(config)).double()
    model.load_state_dict({name: torch.tensor(array) for name, array in arrays.items()})
    batches = [_padded(data, update_indices(len(data), batch_size, 1, step)) for step in range(20)]
    losses, first = train_on(model.train(), batches, optim)
    end = {n: v.detach().numpy() for n, v in model.state_dict().items()}
    return losses, first, end


def _padded(data: Examples, indices: np.ndarray) -> dict[str, torch.Tensor]:
    """A batch as transformers' classes take it: padded rows, -100 where there is no label."""
    width = int(data.tokens.lengths[indices].max())
    batch = {
        name: np.zeros((len(indices), width), np.int64)
        for name in ("input_ids", "attention_mask", "token_type_ids")
    }
    by_token = np.full((len(indices), width), -100, np.int64)
    for row, index in enumerate(indices):
        part = slice(data.tokens.offsets[index], data.tokens.offsets[index + 1])
        length = part.stop - part.start
        batch["input_ids"][row, :length] = data.tokens.input_ids[part]
        batch["attention_mask"][row, :length] = 1
        batch["token_type_ids"][row, :length] = data.tokens.token_type_ids[part]
        if data.layout == "token":
            own = data.labels[part]
            by_token[row, :length] = np.where(own < 0, -100, own)
    labels = by_token if data.layout == "token" else data.labels[indices]
    floats = np.issubdtype(labels.dtype, np.floating)
    tensors = {name: torch.tensor(array) for name, array in batch.items()}
    return tensors | {"labels": torch.tensor(labels).to(torch.float64 if floats else torch.int64)}
