"""The same loop on a library's fused linear cross-entropy, where one is installed."""

import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor, nn

from slot_vllm.optim.head import Head
from slot_vllm.optim.optimize import Prompt
from slot_vllm.optim.oracle import torchs_adamw

# hidden (n, d), weight (V, d), targets (n,) -> the mean cross-entropy.
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def installed_losses(device: str) -> dict[str, Loss]:
    """The libraries that can be imported and run on ``device``, by name."""
    found: dict[str, Loss] = {}
    if device == "cpu":
        # Both are Triton kernels.
        return found
    if importlib.util.find_spec("liger_kernel"):
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        liger = LigerFusedLinearCrossEntropyLoss()
        found["liger_kernel"] = lambda hidden, weight, targets: liger(weight, hidden, targets)
    if importlib.util.find_spec("cut_cross_entropy"):
        from cut_cross_entropy import linear_cross_entropy

        found["cut_cross_entropy"] = linear_cross_entropy
    return found


def fused_delta(loss: Loss, head: Head, prompt: Prompt) -> Tensor:
    """delta (d,) float32 by autograd through ``loss``: 2 T products without n x V logits."""
    params = prompt.params
    with torch.enable_grad():
        delta = nn.Parameter(torch.zeros(head.hidden_size, device=head.weight.device))
        optimizer = torchs_adamw(delta, params)
        for _ in range(params.steps):
            optimizer.zero_grad()
            hidden = (prompt.hidden[:-1].float() + delta).to(prompt.hidden.dtype)
            loss(hidden, head.weight, prompt.tokens[1:]).backward()
            optimizer.step()
    return delta.detach()
