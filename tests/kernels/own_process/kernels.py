"""Each Triton kernel against its torch version and float64, under the interpreter."""

# First of all: Triton decides on import whether it interprets.
import tests.kernels.own_process.interpreter  # isort: skip  # noqa: F401

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import slot_vllm.kernels.adamw as plain_adamw
import slot_vllm.kernels.column_sums as plain_column_sums
import slot_vllm.kernels.head_product as plain_head_product
import slot_vllm.kernels.request_losses as plain_request_losses
import slot_vllm.kernels.row_statistics as plain_row_statistics
from slot_vllm.kernels.activation import Activation
from slot_vllm.kernels.adamw import AdamW
from slot_vllm.kernels.ragged import RaggedRows, RowPart
from slot_vllm.kernels.triton.adamw import adamw_step
from slot_vllm.kernels.triton.apply_delta import add_bias_rows
from slot_vllm.kernels.triton.column_sums import SumBlocks, add_column_sums
from slot_vllm.kernels.triton.head_product import ProductBlocks, head_product
from slot_vllm.kernels.triton.request_losses import add_request_losses
from slot_vllm.kernels.triton.row_statistics import PartialBlocks, finish_rows, row_partials

torch_adamw_step = plain_adamw.adamw_step.torch
torch_add_column_sums = plain_column_sums.add_column_sums.torch
torch_add_request_losses = plain_request_losses.add_request_losses.torch
torch_finish_rows = plain_row_statistics.finish_rows.torch
torch_head_product = plain_head_product.head_product.torch
torch_row_partials = plain_row_statistics.row_partials.torch


@dataclass
class Case:
    """A part of a ragged batch on a shard of a head, in float32 or less."""

    part: RowPart
    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    shifts: Tensor | None
    f: Activation
    first_token: int

    @property
    def requests(self) -> int:
        return len(self.part.batch.bounds) - 1


@st.composite
def cases(draw: Any) -> Case:
    lengths = draw(st.lists(st.sampled_from([1, 1, 2, 3, 15, 16, 17, 40]), min_size=1, max_size=5))
    whole = draw(st.sampled_from([2, 63, 129, 200, 307]))
    begin = draw(st.sampled_from([0, 0, whole // 3]))
    vocabulary = draw(st.sampled_from([whole - begin, (whole - begin + 1) // 2]))
    hidden_size = draw(st.sampled_from([1, 16, 24, 50]))
    dtype = draw(st.sampled_from([torch.float32, torch.float32, torch.bfloat16, torch.float16]))
    biased, shifted = draw(st.booleans()), draw(st.booleans())
    f = Activation(draw(st.sampled_from([None, 0.7, 5.0])), draw(st.sampled_from([1.0, 0.25, 2.0])))
    total = sum(lengths)
    first = draw(st.sampled_from([0, 0, total // 3]))
    stop = draw(st.sampled_from([total, total, max(first + 1, total - 2)]))
    g = torch.Generator().manual_seed(draw(st.integers(0, 1 << 20)))
    batch = RaggedRows(lengths, torch.randint(whole, (total,), generator=g))
    # Rows of W and Z are farther apart than they are long, as with a padded vocabulary.
    weight = torch.randn(vocabulary, hidden_size + 3, generator=g) * 0.4
    return Case(
        batch.part(first, stop),
        torch.randn(stop - first, hidden_size, generator=g).to(dtype),
        weight.to(dtype)[:, :hidden_size],
        torch.randn(vocabulary, generator=g).to(dtype) if biased else None,
        torch.randn(len(lengths), vocabulary, generator=g) if shifted else None,
        f,
        begin,
    )


@dataclass
class Exact:
    """What float64 makes of a case's logits."""

    lse: Tensor
    target_logits: Tensor
    sums: Tensor


def exact(case: Case, logits: Tensor) -> Exact:
    z = logits.double()
    requests = case.part.requests.long()
    if case.shifts is not None:
        z = z + case.shifts.double()[requests]
    y, slope = case.f.value_and_slope(z)
    lse = y.logsumexp(dim=1)
    targets = case.part.targets - case.first_token
    target_logits = torch.full_like(lse, -torch.inf)
    p = (y - lse.unsqueeze(1)).exp()
    for i, target in enumerate(targets.tolist()):
        if 0 <= target < z.shape[1]:
            target_logits[i] = y[i, target]
            p[i, target] -= 1.0
    sums = torch.zeros(case.requests, z.shape[1], dtype=torch.float64)
    return Exact(lse, target_logits, sums.index_add_(0, requests, p * slope))


def padded(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """Logits whose rows are farther apart than they are long; what lies between is not touched."""
    return torch.full((rows, columns + 5), 77.0, dtype=dtype)[:, :columns]


def close(actual: Tensor, expected: Tensor, tolerance: float = 2e-5) -> None:
    torch.testing.assert_close(
        actual.double(), expected.double(), rtol=tolerance, atol=tolerance, equal_nan=True
    )


def check_statistics(case: Case, logits: Tensor, maxima: Tensor, totals: Tensor) -> Tensor:
    """Both finishes of one implementation's partials; the log-sum-exp."""
    expected = exact(case, logits)
    lse, targets = finish_rows(
        maxima, totals, logits, case.shifts, case.part, case.f, case.first_token
    )
    close(lse, expected.lse)
    close(targets, expected.target_logits)
    for mine, theirs in zip(
        (lse, targets),
        torch_finish_rows(maxima, totals, logits, case.shifts, case.part, case.f, case.first_token),
        strict=True,
    ):
        close(mine, theirs)
    return lse


product_blocks = st.builds(
    ProductBlocks,
    st.sampled_from([16, 32]),
    st.sampled_from([16, 64]),
    st.sampled_from([16, 32]),
    st.sampled_from([1, 3, 7]),
    st.just(4),
    st.just(2),
)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(case=cases(), blocks=product_blocks)
def test_head_product(case: Case, blocks: ProductBlocks) -> None:
    check_head_product(case, blocks)


@pytest.mark.full
@settings(max_examples=400, deadline=None)
@given(case=cases(), blocks=product_blocks)
def test_head_product_long(case: Case, blocks: ProductBlocks) -> None:
    check_head_product(case, blocks)


def check_head_product(case: Case, blocks: ProductBlocks | None) -> None:
    rows, vocabulary, dtype = len(case.part), len(case.weight), case.weight.dtype
    out = padded(rows, vocabulary, dtype)
    maxima, totals = head_product(
        case.hidden, case.weight, case.bias, case.shifts, case.part, case.f, out, blocks
    )
    expected = case.hidden.double() @ case.weight.double().T
    if case.bias is not None:
        expected += case.bias.double()
    # One rounding to the model's dtype.
    close(out, expected, max(2e-5, torch.finfo(dtype).eps))
    assert bool((out.as_strided((rows, 5), (vocabulary + 5, 1), vocabulary) == 77.0).all())
    lse = check_statistics(case, out, maxima, totals)

    plain = torch.empty(rows, vocabulary, dtype=dtype)
    maxima, totals = torch_head_product(
        case.hidden, case.weight, case.bias, case.shifts, case.part, case.f, plain
    )
    close(out, plain, max(2e-5, 2 * torch.finfo(dtype).eps))
    close(check_statistics(case, plain, maxima, totals), lse, max(2e-5, torch.finfo(dtype).eps * 8))


@contextmanager
def programs_reversed(part: RowPart) -> Iterator[None]:
    """The interpreter runs programs in order: one that writes rows of the next would go unseen."""
    tiles = dict(part._tiles)
    for size, tables in tiles.items():
        part._tiles[size] = (tables[0].flip(0), tables[1].flip(0))
    yield
    part._tiles.update(tiles)


pass_blocks = st.tuples(
    st.builds(
        PartialBlocks,
        st.sampled_from([1, 4, 8]),
        st.sampled_from([32, 128]),
        st.sampled_from([1, 2, 5, 50]),
        st.just(4),
    ),
    st.builds(
        SumBlocks, st.sampled_from([1, 8, 16]), st.sampled_from([64, 128]), st.just(4), st.just(2)
    ),
)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(case=cases(), blocks=pass_blocks)
def test_passes_over_cached_logits(case: Case, blocks: tuple[PartialBlocks, SumBlocks]) -> None:
    check_passes(case, *blocks)


@pytest.mark.full
@settings(max_examples=400, deadline=None)
@given(case=cases(), blocks=pass_blocks)
def test_passes_over_cached_logits_long(
    case: Case, blocks: tuple[PartialBlocks, SumBlocks]
) -> None:
    check_passes(case, *blocks)


def check_passes(
    case: Case, partial_blocks: PartialBlocks | None, sum_blocks: SumBlocks | None
) -> None:
    logits = padded(len(case.part), len(case.weight), case.weight.dtype)
    logits.copy_(case.hidden @ case.weight.T)
    expected = exact(case, logits)
    maxima, totals = row_partials(logits, case.shifts, case.part, case.f, partial_blocks)
    lse = check_statistics(case, logits, maxima, totals)
    with programs_reversed(case.part):
        backwards = row_partials(logits, case.shifts, case.part, case.f, partial_blocks)
    assert all(map(torch.equal, backwards, (maxima, totals)))
    maxima, totals = torch_row_partials(logits, case.shifts, case.part, case.f)
    close(check_statistics(case, logits, maxima, totals), lse)

    start = torch.randn(case.requests, len(case.weight), dtype=torch.float64)
    for add in (partial(add_column_sums, blocks=sum_blocks), torch_add_column_sums):
        sums = start.float()
        add(logits, case.shifts, lse, case.part, case.f, sums, case.first_token)
        close(sums, start.float().double() + expected.sums, 5e-5)

    # Targets that other shards have count nowhere here; the merged ones are finite.
    targets = torch.where(expected.target_logits.isinf(), 0.5, expected.target_logits).float()
    losses = torch.zeros(case.requests, 3, dtype=torch.float64)
    add_request_losses(lse, targets, case.part, losses[:, 1])
    torch_add_request_losses(lse, targets, case.part, losses[:, 2])
    by_hand = torch.zeros(case.requests, dtype=torch.float64)
    by_hand.index_add_(0, case.part.requests.long(), (lse - targets).double())
    close(losses[:, 1], by_hand)
    close(losses[:, 2], by_hand)
    assert not losses[:, 0].any()


@pytest.mark.parametrize("soft_cap", [None, 5.0])
def test_with_the_block_sizes_of_a_device(soft_cap: float | None) -> None:
    torch.manual_seed(0)
    lengths = [1, 70, 9]
    batch = RaggedRows(lengths, torch.randint(1500, (80,)))
    case = Case(
        batch.part(0, 80),
        torch.randn(80, 40).bfloat16(),
        (torch.randn(1500, 40) * 0.4).bfloat16(),
        None,
        torch.randn(3, 1500),
        Activation(soft_cap, 0.5),
        0,
    )
    check_head_product(case, None)
    check_passes(case, None, None)


def test_many_partials_make_one_log_sum_exp() -> None:
    torch.manual_seed(0)
    part = RaggedRows([20], torch.zeros(20, dtype=torch.int64)).part(0, 20)
    maxima, totals = 20 * torch.randn(100, 20), 1 + torch.rand(100, 20)
    maxima[:40, 3] = -torch.inf
    totals[:40, 3] = 0.0
    lse, targets = finish_rows(maxima, totals, torch.ones(20, 1), None, part, Activation())
    close(lse, (maxima.double() + totals.double().log()).logsumexp(dim=0))
    assert bool((targets == 1.0).all())


def test_sums_do_not_depend_on_neighbours_or_chunks() -> None:
    torch.manual_seed(0)
    f, logits, shifts = Activation(), torch.randn(60, 100), torch.randn(3, 100)
    targets = torch.randint(100, (60,))
    blocks = SumBlocks(16, 64, 4, 2)

    def sums_of(lengths: list[int], rows: slice, shifts: Tensor) -> Tensor:
        batch = RaggedRows(lengths, targets[rows])
        part = batch.part(0, sum(lengths))
        maxima, totals = row_partials(logits[rows], shifts, part, f, PartialBlocks(4, 32, 2, 4))
        lse, _ = finish_rows(maxima, totals, logits[rows], shifts, part, f)
        sums = torch.zeros(len(lengths), 100)
        add_column_sums(logits[rows], shifts, lse, part, f, sums, 0, blocks)
        return sums

    together = sums_of([20, 33, 7], slice(0, 60), shifts)
    alone = sums_of([33], slice(20, 53), shifts[1:2])
    assert torch.equal(together[1], alone[0])


def test_a_row_that_is_not_finite_stays_with_its_request() -> None:
    torch.manual_seed(0)
    batch = RaggedRows([3, 4], torch.randint(50, (7,)))
    part, f = batch.part(0, 7), Activation()
    hidden, weight = torch.randn(7, 16), torch.randn(50, 16)
    hidden[1, 3] = float("nan")
    hidden[2, 3] = float("inf")
    logits, sums = torch.empty(7, 50), torch.zeros(2, 50)
    maxima, totals = head_product(
        hidden, weight, None, None, part, f, logits, ProductBlocks(16, 16, 16, 2, 4, 2)
    )
    for partials in ((maxima, totals), row_partials(logits, None, part, f)):
        lse, _ = finish_rows(*partials, logits, None, part, f)
        assert lse.isfinite().tolist() == [True, False, False, True, True, True, True]
        add_column_sums(logits, None, lse, part, f, sums)
    assert not sums[0].isfinite().any()
    assert sums[1].isfinite().all()


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    vectors=st.integers(1, 4),
    size=st.sampled_from([1, 64, 1024, 1500]),
    steps=st.sampled_from([1, 2, 7, 20]),
    seed=st.integers(0, 1 << 20),
)
def test_adamw(vectors: int, size: int, steps: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    choices = [(0.1, 0.9, 0.999, 1e-5, 1e-8), (1.0, 0.5, 0.8, 1e-2, 0.3), (0.0, 0.0, 0.0, 1e-8, 0)]
    picked = [choices[i % 3] for i in range(seed % 3, seed % 3 + vectors)]
    settings = torch.tensor([[*c, 0.25] for c in picked])[:, :5]
    mine, plain = (AdamW.at_zero(settings, size) for _ in range(2))
    exact_parameters = [torch.zeros(size, dtype=torch.float64, requires_grad=True) for _ in picked]
    optimizers = [
        torch.optim.AdamW([p], lr=c[0], betas=(c[1], c[2]), eps=c[3], weight_decay=c[4])
        for p, c in zip(exact_parameters, picked, strict=True)
    ]
    for step in range(1, steps + 1):
        gradient = torch.randn(vectors, size, generator=g)
        adamw_step(gradient, mine, step)
        torch_adamw_step(gradient, plain, step)
        for i, (parameter, optimizer) in enumerate(zip(exact_parameters, optimizers, strict=True)):
            parameter.grad = gradient[i].double()
            optimizer.step()
    expected = torch.stack([p.detach() for p in exact_parameters])
    scale = max(c[0] for c in picked)
    close(mine.parameter / max(scale, 1e-9), expected / max(scale, 1e-9), 2e-5 * steps)
    for name in ("parameter", "first", "second"):
        close(getattr(mine, name), getattr(plain, name), 1e-5 * steps)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    rows=st.lists(st.integers(0, 3), max_size=6),
    vocabulary=st.sampled_from([0, 1, 100, 2048, 2500]),
    gap=st.sampled_from([0, 7]),
    fades=st.booleans(),
)
def test_bias_rows(rows: list[int], vocabulary: int, gap: int, fades: bool) -> None:
    torch.manual_seed(0)
    storage = torch.randn(len(rows), vocabulary + gap)
    logits = storage[:, :vocabulary]
    # Bits that an addition of zero would change: -0.0 and a signalling NaN.
    storage.view(torch.int32)[:, ::5] = torch.tensor([-(1 << 31)], dtype=torch.int32)
    storage.view(torch.int32)[:, 1::5] = 0x7FA00001
    table = torch.randn(4, vocabulary)
    table[0] = 0.0
    before = storage.clone()
    factors = torch.rand(len(rows)) if fades else torch.ones(len(rows))
    given_rows = torch.tensor(rows, dtype=torch.int64)
    add_bias_rows(logits, table, given_rows, factors if fades else None)
    for i, row in enumerate(rows):
        old, new = before[i], storage[i]
        if row:
            torch.testing.assert_close(
                new[:vocabulary],
                old[:vocabulary] + factors[i] * table[row],
                rtol=0,
                atol=1e-6 if fades else 0,
                equal_nan=True,
            )
            old, new = old[vocabulary:], new[vocabulary:]
        assert torch.equal(old.view(torch.int32), new.view(torch.int32))
