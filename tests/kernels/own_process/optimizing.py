"""The whole optimization on the Triton kernels, under the interpreter, against the oracle."""

# First of all: Triton decides on import whether it interprets.
import tests.kernels.own_process.interpreter  # isort: skip  # noqa: F401

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slot_vllm.bench.published import published_delta
from slot_vllm.kernels import backend
from slot_vllm.kernels.triton import column_sums, head_product, row_statistics
from slot_vllm.optim.form import smallest_workspace
from slot_vllm.optim.optimize import optimize
from slot_vllm.optim.oracle import oracle
from slot_vllm.optim.warm_up import warm_up
from slot_vllm.optim.workspace import Workspace
from slot_vllm.params import SlotParams
from tests.kernels.on_device import check_adamw, check_apply_delta, check_passes
from tests.optim.test_optimize import MIB, assert_equal_to_oracle, make_head, make_prompt
from tests.optim.test_options import assert_equal, assert_last_kl_equal, prompt_of
from tests.optim.test_shard import Group
from tests.optim.test_sharded_options import together
from tests.optim.test_two_pass_form import assert_shards_equal_the_whole


@pytest.fixture(autouse=True, scope="module")
def on_triton() -> Iterator[None]:
    """Triton for CPU tensors too, in blocks of which a small vocabulary has several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "uses_triton", lambda tensor: True)
        patch.setattr(
            head_product,
            "product_blocks",
            lambda *a: head_product.ProductBlocks(32, 64, 32, 3, 4, 2),
        )
        patch.setattr(
            row_statistics, "partial_blocks", lambda *a: row_statistics.PartialBlocks(8, 128, 2, 4)
        )
        patch.setattr(column_sums, "sum_blocks", lambda *a: column_sums.SumBlocks(16, 128, 4, 2))
        yield


requests = st.lists(
    st.tuples(
        st.sampled_from([1, 2, 3, 9, 17, 40]),
        st.integers(0, 3),
        st.sampled_from([0.001, 0.1, 1.0]),
    ),
    min_size=1,
    max_size=4,
)
soft_caps = st.sampled_from([None, 5.0])
scales = st.sampled_from([1.0, 0.5])
# Rows of Z0 of 129 and 307 columns are 768 and 1280 bytes: none fits beside the chunk, some, all.
extras = st.sampled_from([0, 4_000, 40_000, 1 << 22])
vocabularies = st.sampled_from([2, 129, 307])


@settings(max_examples=8, deadline=None, derandomize=True)
@given(requests, soft_caps, scales, st.booleans(), extras, vocabularies)
def test_any_batch_in_any_workspace(
    requests: list[tuple[int, int, float]],
    soft_cap: float | None,
    scale: float,
    bias: bool,
    extra_bytes: int,
    vocabulary: int,
) -> None:
    check(requests, soft_cap, scale, bias, extra_bytes, vocabulary)


@pytest.mark.full
@settings(max_examples=150, deadline=None)
@given(requests, soft_caps, scales, st.booleans(), extras, vocabularies)
def test_any_batch_in_any_workspace_long(
    requests: list[tuple[int, int, float]],
    soft_cap: float | None,
    scale: float,
    bias: bool,
    extra_bytes: int,
    vocabulary: int,
) -> None:
    check(requests, soft_cap, scale, bias, extra_bytes, vocabulary)


def check(
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
    assert_equal_to_oracle(head, prompts, Workspace(smallest_workspace(head) + extra_bytes))


def test_one_request_without_steps_among_others() -> None:
    head = make_head(hidden=32)
    prompts = [
        make_prompt(head, n, SlotParams(steps=steps), seed=n)
        for n, steps in ((2, 2), (30, 0), (9, 3))
    ]
    assert_equal_to_oracle(head, prompts, Workspace(MIB))
    assert not optimize(head, prompts, Workspace(MIB))[1].delta.any()


def test_recomputed_rows_give_the_same_deltas_as_cached_ones() -> None:
    head = make_head(hidden=32, dtype=torch.bfloat16)
    prompts = [make_prompt(head, n, SlotParams(steps=2), seed=n) for n in (33, 12)]
    cached = optimize(head, prompts, Workspace(4 * MIB))
    recomputed = optimize(head, prompts, Workspace(smallest_workspace(head) * 4))
    for a, b in zip(cached, recomputed, strict=True):
        assert (a.delta - b.delta).abs().max() <= 1e-5


def test_bf16_is_no_farther_from_the_oracle_than_the_published_loop() -> None:
    head = make_head(vocabulary=500, hidden=64, dtype=torch.bfloat16)
    prompt = make_prompt(head, 60, SlotParams(lr=0.01, steps=3))
    expected = oracle(head, prompt).delta
    (mine,) = optimize(head, [prompt], Workspace(8 * MIB))
    ours = (mine.delta.double() - expected).abs().mean()
    theirs = (published_delta(head, prompt).double() - expected).abs().mean()
    assert ours <= theirs


OPTIONS: list[dict[str, Any]] = [
    {"loss_tokens": 9, "lr": 0.5},
    {"loss_tokens": "text"},
    {"preset": "paper-vllm", "lr": 2.0},
    {},
]


@pytest.mark.parametrize("soft_cap", [None, 5.0])
def test_every_option_in_one_batch(soft_cap: float | None) -> None:
    head = make_head(129, 16, soft_cap, 0.5, bias=True)
    prompts = [prompt_of(head, 11 + 3 * i, i, steps=3, **o) for i, o in enumerate(OPTIONS)]
    # With the smaller one some rows are cached, and the others made again, two at a time.
    for extra_bytes in (6_000, MIB):
        workspace = Workspace(smallest_workspace(head) + extra_bytes)
        learned = optimize(head, prompts, workspace, final_loss=True, with_last_kl=True)
        for prompt, result in zip(prompts, learned, strict=True):
            expected = oracle(head, prompt)
            assert_equal(head, prompt, result, expected)
            assert_last_kl_equal(result, expected)


@pytest.mark.parametrize("soft_cap", [None, 5.0])
def test_vocabulary_shards_one_of_them_empty(soft_cap: float | None) -> None:
    # Rows of 89 columns are 512 bytes: two or so are cached, the others made again, one at a time.
    assert_shards_equal_the_whole(soft_cap, [0, 40, 40, 129], [2, 9], 1_500)


class InTurn(Group):
    """Between exchanges one thread at a time, as the interpreter's state is the process's."""

    def __init__(self, ranks: int) -> None:
        super().__init__(ranks)
        self._turn = threading.Lock()

    def exchange(self, rank: int, own: Any) -> list[Any]:
        self._turn.release()
        try:
            return super().exchange(rank, own)
        finally:
            self._turn.acquire()

    def run(self, work: Callable[[int], Any]) -> list[Any]:
        def in_turn(rank: int) -> Any:
            with self._turn:
                return work(rank)

        return super().run(in_turn)


def test_every_option_on_shards_one_of_them_empty() -> None:
    head = make_head(129, 16, 5.0, 0.5, bias=True)
    prompts = [prompt_of(head, 12 + 3 * i, i, steps=2, **o) for i, o in enumerate(OPTIONS)]
    learned = together(head, prompts, [0, 40, 40, 129], group=InTurn(3))
    for prompt, result in zip(prompts, learned, strict=True):
        assert_equal(head, prompt, result, oracle(head, prompt))


def test_what_is_compiled_when_an_engine_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[tuple[int, ...]] = []
    original = head_product.head_product

    def counted(hidden: torch.Tensor, *rest: object) -> object:
        launched.append(tuple(hidden.shape))
        return original(hidden, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(head_product, "head_product", counted)
    warm_up(make_head(vocabulary=129, hidden=16), Workspace(4 * MIB))
    assert {rows for rows, _ in launched} == {1, 16, 32, 64, 128, 10}


@pytest.mark.parametrize("soft_cap", [None, 5.0])
def test_what_a_device_is_checked_for(soft_cap: float | None) -> None:
    """So that the checks of ``test_cuda.py`` have run where there is no CUDA device."""
    check_passes("cpu", torch.bfloat16, soft_cap, [1, 20, 3], 307, 50)
    check_passes("cpu", torch.float32, soft_cap, [5, 3], 129, 16, first_token=129)
    check_adamw("cpu")
    check_apply_delta("cpu")
