"""The published loop, as its authors' code runs it for one prompt."""

import torch
from torch import Tensor, nn

from slot_vllm.optim.head import Head
from slot_vllm.optim.optimize import Prompt
from slot_vllm.optim.oracle import torchs_adamw


def published_delta(head: Head, prompt: Prompt) -> Tensor:
    """delta (d,) in the model's dtype: autograd and torch.optim.AdamW, 2 T full products.

    Line by line what the published model code does (maple-research-lab/SLOT, ``forward`` of the
    patched models): delta of shape (1, 1, d) in the model's dtype, h + delta rounded to it, logits
    of every position, the last one's dropped by a copy. W takes no gradient. Floor: 2 T products of
    2 n V d operations, and at least 6 passes over n x V logits per step.
    """
    params = prompt.params
    hidden = prompt.hidden.unsqueeze(0)
    tokens = prompt.tokens.unsqueeze(0)
    with torch.enable_grad():
        delta = nn.Parameter(torch.zeros(1, 1, head.hidden_size).to(hidden))
        optimizer = torchs_adamw(delta, params)
        for _ in range(params.steps):
            optimizer.zero_grad()
            logits = nn.functional.linear(hidden + delta, head.weight, head.bias)
            logits = head.activate(logits)
            shift_logits = logits[..., :-1, :].contiguous()
            shift_labels = tokens[..., 1:].contiguous()
            loss = nn.functional.cross_entropy(
                shift_logits.view(-1, head.vocabulary), shift_labels.view(-1)
            )
            loss.backward()
            optimizer.step()
    return delta.detach().view(-1)
