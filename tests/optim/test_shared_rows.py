from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from slot_vllm.optim.form import smallest_workspace
from slot_vllm.optim.head import Head
from slot_vllm.optim.optimize import optimize
from slot_vllm.optim.prompt import Prompt
from slot_vllm.optim.shared_rows import Shared, move_down, shared_rows
from slot_vllm.optim.workspace import Workspace
from slot_vllm.params import SlotParams
from tests.optim.test_optimize import MIB, assert_equal_to_oracle, make_head, make_prompt


def sharing(prompts: Sequence[Prompt], shares: Sequence[tuple[int, int]]) -> list[Prompt]:
    """Each prompt with as many of an earlier one's first rows (owner, count) as both have."""
    found: list[Prompt] = []
    for i, (prompt, (owner, count)) in enumerate(zip(prompts, shares, strict=True)):
        hidden = prompt.hidden.clone()
        if i:
            first = found[owner % i].hidden[:count]
            hidden[: len(first)] = first[: len(hidden)]
        found.append(Prompt(hidden, prompt.tokens, prompt.params))
    return found


def multiplied(monkeypatch: pytest.MonkeyPatch, head: Head, prompts: list[Prompt]) -> int:
    """How many rows the head's products have while the deltas are learned."""
    rows = []
    product = Head.product

    def counted(self: Head, hidden: Tensor, out: Tensor) -> None:
        rows.append(len(hidden))
        product(self, hidden, out)

    with monkeypatch.context() as patch:
        patch.setattr(Head, "product", counted)
        optimize(head, prompts, Workspace(4 * MIB))
    return sum(rows)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(
        st.tuples(st.integers(1, 50), st.integers(0, 5), st.integers(0, 9), st.integers(0, 60)),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from([None, 5.0]),
    st.integers(0, 40_000),
)
def test_deltas_of_prompts_that_share_rows(
    requests: list[tuple[int, int, int, int]], soft_cap: float | None, extra_bytes: int
) -> None:
    head = make_head(vocabulary=101, hidden=32, soft_cap=soft_cap)
    prompts = [
        make_prompt(head, length, SlotParams(steps=steps), seed=i)
        for i, (length, steps, _, _) in enumerate(requests)
    ]
    prompts = sharing(prompts, [(owner, count) for _, _, owner, count in requests])
    assert_equal_to_oracle(head, prompts, Workspace(smallest_workspace(head) + extra_bytes))


@pytest.mark.parametrize("soft_cap", [None, 5.0])
def test_rows_of_a_common_prefix_are_multiplied_once(
    soft_cap: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = make_head(soft_cap=soft_cap)
    apart = [make_prompt(head, 40, SlotParams(), seed=i) for i in range(4)]
    together = sharing(apart, [(0, 0), (0, 25), (1, 30), (0, 10)])
    assert multiplied(monkeypatch, head, apart) == 4 * 39
    assert multiplied(monkeypatch, head, together) == 4 * 39 - 25 - 30 - 10


def test_who_shares_with_whom() -> None:
    a, b = torch.randn(6, 3), torch.randn(5, 3)
    assert shared_rows([a, b]) == [Shared(), Shared()]
    mixed = torch.cat((a[:4], b))
    assert shared_rows([a, b, mixed, a, b[:2]]) == [
        Shared(),
        Shared(),
        Shared(0, 4),
        Shared(0, 6),
        Shared(1, 2),
    ]


@pytest.mark.parametrize("gap", [0, 1, 3, 7])
def test_rows_are_moved_over_each_other(gap: int) -> None:
    cache = torch.arange(12).unsqueeze(1).repeat(1, 2)
    move_down(cache, 1, 5, gap)
    assert cache[1 + gap : 5 + gap, 0].tolist() == [1, 2, 3, 4]
    assert cache[5 + gap :, 0].tolist() == list(range(5 + gap, 12))
