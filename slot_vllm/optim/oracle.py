"""SLOT by autograd, step by step as the paper writes it: what the fast form is compared with."""

import torch
import torch.nn.functional as F
from torch import Tensor

from slot_vllm.optim.head import Head
from slot_vllm.optim.optimize import Learned, Prompt


def oracle(head: Head, prompt: Prompt) -> Learned:
    """The exact answer: torch.optim.AdamW on autograd gradients, all in float64."""
    return _autograd(head, prompt, torch.float64)


def published(head: Head, prompt: Prompt) -> Learned:
    """The published per-prompt loop: the same in the model's dtype, delta included.

    h + delta is rounded to that dtype in every step, as it is by the published code, which takes
    2 T full products with W for T steps.
    """
    return _autograd(head, prompt, head.weight.dtype)


def _autograd(head: Head, prompt: Prompt, dtype: torch.dtype) -> Learned:
    params = prompt.params
    hidden, weight = prompt.hidden.to(dtype), head.weight.to(dtype)
    bias = None if head.bias is None else head.bias.to(dtype)
    delta = torch.zeros(head.hidden_size, dtype=dtype, device=weight.device, requires_grad=True)
    if not prompt.rows or not params.steps:
        return Learned(delta.detach(), delta.detach()[:0], torch.tensor(True))
    optimizer = torch.optim.AdamW(
        [delta], params.lr, betas=params.betas, eps=params.eps, weight_decay=params.weight_decay
    )

    def loss() -> Tensor:
        logits = head.activate(F.linear(hidden[:-1] + delta, weight, bias))
        return F.cross_entropy(logits, prompt.tokens[1:])

    losses = []
    with torch.enable_grad():
        for _ in range(params.steps):
            optimizer.zero_grad()
            value = loss()
            value.backward()
            optimizer.step()
            losses.append(value.detach())
    with torch.no_grad():
        losses.append(loss())
    return Learned(delta.detach(), torch.stack(losses), torch.isfinite(delta).all())
