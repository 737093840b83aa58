"""The size of one benchmark, and a problem of that size."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from slot_vllm.optim.head import Head
from slot_vllm.optim.optimize import Prompt
from slot_vllm.params import SlotParams

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}

_CHUNK = 256
_NOISE = 2.0
# A target's logit is raised by up to this: some tokens are predicted well, others not at all.
_LARGEST_HINT = 20.0


@dataclass(frozen=True)
class Shape:
    """hidden: d. vocabulary: V. tokens: of each request; shared: so many of the first have the same
    hidden states in all requests. dtype: a key of ``DTYPES``."""

    hidden: int
    vocabulary: int
    tokens: int
    requests: int
    steps: int
    dtype: str
    device: str
    workspace_mb: int
    shared: int = 0

    @property
    def rows(self) -> int:
        """Rows of the bare product: every token of every request."""
        return self.tokens * self.requests

    @property
    def distinct_rows(self) -> int:
        return self.rows - self.shared * (self.requests - 1)

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def make_problem(shape: Shape, seed: int = 0) -> tuple[Head, list[Prompt]]:
    """Random weights of unit rows in expectation, and prompts of the paper's settings.

    Equal for equal arguments. Makes no temporary larger than some megabytes, so that the peak
    memory of the process that calls it is what is measured afterwards.
    """
    device, dtype = torch.device(shape.device), DTYPES[shape.dtype]
    generator = torch.Generator().manual_seed(seed)
    weight = torch.empty(shape.vocabulary, shape.hidden, dtype=dtype, device=device)
    for part in weight.split(_CHUNK):
        part.copy_(_normal(part.shape, generator) / shape.hidden**0.5)
    head = Head(weight)
    params = SlotParams(steps=shape.steps)
    prompts = [_prompt(head, shape, params, generator) for _ in range(shape.requests)]
    for prompt in prompts:
        prompt.hidden[: shape.shared] = prompts[0].hidden[: shape.shared]
    return head, prompts


def _prompt(head: Head, shape: Shape, params: SlotParams, generator: torch.Generator) -> Prompt:
    device = head.weight.device
    tokens = torch.randint(shape.vocabulary, (shape.tokens,), generator=generator).to(device)
    hints = torch.rand(shape.tokens, 1, generator=generator) * _LARGEST_HINT
    hidden = torch.empty(shape.tokens, shape.hidden, dtype=head.weight.dtype, device=device)
    targets = tokens.roll(-1)
    for part, target, hint in zip(
        hidden.split(_CHUNK), targets.split(_CHUNK), hints.split(_CHUNK), strict=True
    ):
        noise = _normal(part.shape, generator) * _NOISE
        part.copy_(noise.to(device) + head.weight[target].float() * hint.to(device))
    return Prompt(hidden, tokens, params)


def _normal(shape: torch.Size, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator)
