"""The reference of the optimizer tests: the same updates in PyTorch."""

from __future__ import annotations

import numpy as np


def tiny_torch(config):
    """A random PyTorch model of one of our configs, without dropout, in float32."""
    import torch
    from transformers import BertForSequenceClassification

    from tests.reference import torch_config

    torch.manual_seed(0)
    return BertForSequenceClassification(
        torch_config(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_attention_heads=config.num_attention_heads,
            intermediate_size=config.intermediate_size,
            max_position_embeddings=config.max_position_embeddings,
            initializer_range=config.initializer_range,
            labels=config.num_labels,
        )
    )


def torch_run(model, data, optim, updates, batch_size, dtype):
    """The same updates in PyTorch: padded batches, AdamW, clipping and schedule of transformers.

    Returns the arrays before (as the model has them), each update's loss, and the arrays after.
    """
    import torch
    from transformers import get_scheduler

    from flaxbert.data.batches import update_indices
    from flaxbert.loop.optim import warmup_steps

    start = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    model = model.to(dtype).train()
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
    schedule = get_scheduler(
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
    return start, np.array(losses), end
