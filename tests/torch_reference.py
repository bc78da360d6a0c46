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
    updates = 20
    model = torch_model(config, arrays).to(getattr(torch, dtype)).train()
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
        optim.schedule, optimizer, warmup_steps(optim.warmup, updates), updates
    )
    losses = []
    for step in range(updates):
        indices = update_indices(len(data), batch_size, 1, step)
        width = int(data.tokens.lengths[indices].max())
        ids = np.zeros((3, len(indices), width), np.int64)
        for row, index in enumerate(indices):
            part = slice(data.tokens.offsets[index], data.tokens.offsets[index + 1])
            length = part.stop - part.start
            ids[0, row, :length] = data.tokens.input_ids[part]
            ids[1, row, :length] = 1
            ids[2, row, :length] = data.tokens.token_type_ids[part]
        input_ids, mask, types = map(torch.tensor, ids)
        logits = model(input_ids, attention_mask=mask, token_type_ids=types).logits
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(data.labels[indices]).long())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), optim.clip_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    end = {n: v.detach().double().numpy() for n, v in model.state_dict().items()}
    return np.array(losses), end


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
