"""The two-pass form on the plain kernels; tests/kernels runs it on Triton's."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from slot_vllm.optim import optimize as module
from slot_vllm.optim.head import Head
from slot_vllm.optim.optimize import Prompt
from slot_vllm.optim.shard import Shard
from slot_vllm.optim.two_pass_form import TwoPassForm
from slot_vllm.optim.workspace import Workspace
from slot_vllm.params import SlotParams
from tests.optim.test_optimize import assert_equal_to_oracle, make_head, make_prompt


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    requests=st.lists(
        st.tuples(
            st.sampled_from([1, 2, 3, 17, 64, 150, 300]),
            st.integers(0, 6),
            st.sampled_from([0.001, 0.1, 1.0]),
        ),
        min_size=1,
        max_size=6,
    ),
    soft_cap=st.sampled_from([None, 5.0]),
    scale=st.sampled_from([1.0, 0.5]),
    bias=st.booleans(),
    extra_bytes=st.sampled_from([0, 5_000, 200_000, 1 << 22]),
    vocabulary=st.sampled_from([2, 129, 307]),
)
def test_any_batch_in_any_workspace(
    requests: list[tuple[int, int, float]],
    soft_cap: float | None,
    scale: float,
    bias: bool,
    extra_bytes: int,
    vocabulary: int,
) -> None:
    head = make_head(vocabulary, 32, soft_cap, scale, bias)
    prompts = [
        make_prompt(head, n, SlotParams(steps=steps, lr=lr), seed=i)
        for i, (n, steps, lr) in enumerate(requests)
    ]
    smallest = TwoPassForm.vector_bytes(head) + TwoPassForm.smallest_rows_bytes(head)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "form_for", lambda head, sharded: TwoPassForm)
        assert_equal_to_oracle(head, prompts, Workspace(smallest + extra_bytes))


@pytest.mark.parametrize("soft_cap", [None, 5.0])
@pytest.mark.parametrize("bounds", [[0, 130, 307], [0, 0, 307], [0, 1, 130, 130, 307, 307]])
def test_vocabulary_shards(soft_cap: float | None, bounds: list[int]) -> None:
    for extra_bytes in (0, 30_000, 1 << 20):
        assert_shards_equal_the_whole(soft_cap, bounds, [2, 21, 50], extra_bytes)


def assert_shards_equal_the_whole(
    soft_cap: float | None, bounds: list[int], lengths: list[int], extra_bytes: int
) -> None:
    """Sums and losses of ranks that hold columns bounds[k] to bounds[k + 1]."""
    torch.manual_seed(0)
    head = make_head(bounds[-1], 32, soft_cap, 0.5, bias=True)
    prompts = [make_prompt(head, n, SlotParams(), seed=n) for n in lengths]
    deltas = 0.1 * torch.randn(len(prompts), head.hidden_size)
    whole_sums, whole_losses = _both_passes(head, prompts, deltas, extra_bytes, None)
    sums, losses = _on_ranks(head, prompts, deltas, extra_bytes, bounds)
    torch.testing.assert_close(torch.cat(sums, dim=2), whole_sums, rtol=1e-5, atol=1e-5)
    for own in losses:
        torch.testing.assert_close(own, whole_losses, rtol=1e-5, atol=1e-5)


def _on_ranks(
    head: Head, prompts: list[Prompt], deltas: Tensor, extra_bytes: int, bounds: list[int]
) -> tuple[list[Tensor], list[Tensor]]:
    """Each rank runs twice: to hear what it sends, and with all that was sent. What a rank sends
    does not depend on the others, since the deltas are given."""
    sent: list[list[Tensor]] = [[] for _ in pairwise(bounds)]
    widest = max(end - begin for begin, end in pairwise(bounds))

    def record(rank: int) -> Callable[[Tensor], Tensor]:
        def gather(own: Tensor) -> Tensor:
            sent[rank].append(own.clone())
            return own.unsqueeze(0)

        return gather

    def replay() -> Callable[[Tensor], Tensor]:
        calls = iter(list(zip(*sent, strict=True)))
        return lambda own: torch.stack(next(calls))

    def run(rank: int, gather: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        begin, end = bounds[rank : rank + 2]
        bias = None if head.bias is None else head.bias[begin:end]
        part = Head(head.weight[begin:end], bias, head.soft_cap, head.scale)
        shard = Shard(begin, widest, gather, any_rank=bool)
        return _both_passes(part, prompts, deltas, extra_bytes, shard)

    ranks = range(len(sent))
    for rank in ranks:
        run(rank, record(rank))
    results = [run(rank, replay()) for rank in ranks]
    return [sums for sums, _ in results], [losses for _, losses in results]


def _both_passes(
    head: Head, prompts: list[Prompt], deltas: Tensor, extra_bytes: int, shard: Shard | None
) -> tuple[Tensor, Tensor]:
    """Sums (2, B, V) and losses (2, B) without and with the deltas, in a workspace of one size on
    all ranks."""
    columns = head.vocabulary if shard is None else shard.widest
    widest = Head(torch.empty(columns, head.hidden_size))
    size = len(prompts) * TwoPassForm.vector_bytes(widest)
    size += TwoPassForm.smallest_rows_bytes(widest) + extra_bytes
    form = TwoPassForm(head, prompts, Workspace(size), shard)
    passes = []
    for at in (None, deltas):
        sums, losses = form.sums(len(prompts), at)
        passes.append((sums.clone(), losses))
    return torch.stack([s for s, _ in passes]), torch.stack([x for _, x in passes])
