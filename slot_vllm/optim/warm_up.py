"""Compiles kernels when an engine starts, before a request needs them."""

import torch

from slot_vllm.kernels import backend
from slot_vllm.optim.head import Head
from slot_vllm.optim.optimize import optimize
from slot_vllm.optim.prompt import Prompt
from slot_vllm.optim.shard import Shard
from slot_vllm.optim.workspace import Workspace
from slot_vllm.params import SlotParams

# Each takes blocks of another size, and the last is a ragged batch.
_ROWS = ([2], [17], [33], [65], [129], [9, 3])


def warm_up(head: Head, workspace: Workspace, shard: Shard | None = None) -> None:
    """Compile the Triton kernels that serving will launch, where there are any: no request should
    wait for that. With shards, all ranks call it."""
    if not backend.uses_triton(head.weight):
        return
    device, dtype = head.weight.device, head.weight.dtype
    for lengths in _ROWS:
        prompts = [
            Prompt(
                torch.zeros(n, head.hidden_size, dtype=dtype, device=device),
                torch.zeros(n, dtype=torch.int64, device=device),
                SlotParams(steps=2),
            )
            for n in lengths
        ]
        optimize(head, prompts, workspace, shard=shard)
