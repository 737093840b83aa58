"""The CPU kernels, compiled and in torch, against float64."""

import ctypes
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slot_vllm.kernels import compiled, float32_tiles
from slot_vllm.kernels.exponentials import (
    SHARPENED,
    Product,
    add_exponential_sums,
    stored,
    to_exponentials,
)
from slot_vllm.kernels.pull_back import pull_back, pull_back_rounded, pull_back_torch
from slot_vllm.kernels.shift import shift, shift_torch

FORMS = ["torch", "compiled"] if shutil.which("g++") or shutil.which("clang++") else ["torch"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Neither a multiple of a vector, nor of a tile, nor smaller than either.
SIZES = st.sampled_from([1, 2, 15, 16, 31, 32, 33, 64, 100, 129, 257])


@pytest.fixture(params=FORMS, autouse=True)
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(compiled.VARIABLE, request.param)
    form: str = request.param
    return form


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    vocabulary=st.sampled_from([1, 2, 16, 31, 500, 1000, 1100, 2049]),
    hidden=SIZES,
    requests=st.sampled_from([1, 2, 3, 4, 5, 8, 9, 13]),
    dtype=st.sampled_from(DTYPES),
    tile=st.sampled_from([1, 1 << 12, 1 << 22]),
)
def test_both_products_with_the_weight_are_exact_to_float32(
    vocabulary: int, hidden: int, requests: int, dtype: torch.dtype, tile: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(float32_tiles, "TILE_BYTES", tile)
        # Rows of a wider matrix, as a head without the padding of its columns would have.
        weight = normal(vocabulary, hidden + 3, seed=1, dtype=dtype)[:, :hidden]
        deltas, sums = normal(requests, hidden, seed=2), normal(requests, vocabulary, seed=3)
        wide = torch.full((requests, vocabulary + 7), 5.0)
        shift(weight, deltas, wide[:, :vocabulary])
        assert (wide[:, vocabulary:] == 5.0).all()
        expected = deltas.double() @ weight.double().T
        torch.testing.assert_close(
            wide[:, :vocabulary].double(), expected, rtol=1e-5, atol=2e-6 * hidden**0.5
        )
        expected = sums.double() @ weight.double()
        torch.testing.assert_close(
            pull_back(weight, sums).double(), expected, rtol=1e-5, atol=2e-6 * vocabulary**0.5
        )


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    rows=st.sampled_from([1, 2, 3, 4, 5, 8, 30]),
    vocabulary=st.sampled_from([2, 15, 31, 32, 33, 500, 1023, 1024, 3001]),
    scale=st.sampled_from([1.0, 0.25, 3.0, -1.0]),
    biased=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    scratch_rows=st.sampled_from([2, 3, 5]),
)
def test_exponentials_and_their_sums(
    rows: int, vocabulary: int, scale: float, biased: bool, dtype: torch.dtype, scratch_rows: int
) -> None:
    z = (normal(rows, vocabulary, seed=4) * 3).to(dtype)
    base = normal(vocabulary, seed=5) if biased else None
    bias = normal(vocabulary, seed=6) * 2
    generator = torch.Generator().manual_seed(7)
    targets = torch.randint(vocabulary, (rows,), generator=generator)
    scratch = torch.full((scratch_rows, vocabulary), float("nan"))
    # Rounding of the stored exponentials is independent among rows.
    exact = dtype == torch.float32
    rtol, atol = (2e-5, 1e-6 * rows) if exact else (5e-3, 2e-3)

    def check(sums: torch.Tensor, losses: torch.Tensor, shifted: torch.Tensor) -> None:
        y = scale * shifted
        expected = scale * torch.softmax(y, dim=1).sum(dim=0)
        expected.index_add_(0, targets, torch.full((rows,), -scale, dtype=torch.float64))
        torch.testing.assert_close(sums.double(), 10 + expected, rtol=rtol, atol=atol)
        expected = torch.logsumexp(y, dim=1) - y.gather(1, targets.unsqueeze(1)).squeeze(1)
        torch.testing.assert_close(losses.double(), expected, rtol=rtol, atol=atol)

    at_base = z.double() if base is None else z.double() + base.double()
    logits = z.clone()
    sums, losses, margins = torch.full((vocabulary,), 10.0), torch.empty(rows), torch.empty(rows)
    to_exponentials(logits, base, targets, scale, scratch, sums, losses, margins)
    check(sums, losses, at_base)
    sums, factors = torch.full((vocabulary,), 10.0), torch.empty(vocabulary)
    kept = bias.clone()
    add_exponential_sums(
        stored(logits), bias, targets, scale, margins, scratch, factors, sums, losses
    )
    assert torch.equal(bias, kept)
    check(sums, losses, at_base + bias.double())


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    rows=st.sampled_from([1, 3, 4, 9]),
    vocabulary=st.sampled_from([2, 31, 33, 500, 1025]),
    hidden=SIZES,
    scale=st.sampled_from([1.0, 0.5, -1.0]),
    biased=st.booleans(),
    head_bias=st.booleans(),
    dtype=st.sampled_from([torch.bfloat16, torch.float16]),
)
def test_large_exponentials_are_made_of_exact_logits(
    rows: int,
    vocabulary: int,
    hidden: int,
    scale: float,
    biased: bool,
    head_bias: bool,
    dtype: torch.dtype,
) -> None:
    weight = normal(vocabulary, hidden, seed=1, dtype=dtype)
    states = normal(rows, hidden + 5, seed=2, dtype=dtype)[:, :hidden]
    offset = normal(vocabulary, seed=3, dtype=dtype) if head_bias else None
    bias = normal(vocabulary, seed=4) if biased else None
    # Logits that are wrong by more than any rounding tell whether they are made again.
    z = states.double() @ weight.double().T
    if offset is not None:
        z += offset.double()
    logits = (z + 0.1 * normal(rows, vocabulary, seed=5)).to(dtype)
    exact = z if bias is None else z + bias.double()
    targets = torch.arange(rows) % vocabulary
    sums, losses, margins = torch.zeros(vocabulary), torch.empty(rows), torch.empty(rows)
    y = logits.double() if bias is None else logits.double() + bias.double()
    probabilities = torch.softmax(scale * y, dim=1)
    to_exponentials(
        logits,
        bias,
        targets,
        scale,
        torch.empty(3, vocabulary),
        sums,
        losses,
        margins,
        Product(states, weight, offset),
    )
    maximum = margins.double() + scale * exact.gather(1, targets.unsqueeze(1)).squeeze(1)
    expected = torch.exp(scale * exact - maximum.unsqueeze(1))
    large, small = probabilities > 1.02 * SHARPENED, probabilities < 0.98 * SHARPENED
    found = stored(logits).double()
    torch.testing.assert_close(found[large], expected[large], rtol=5e-3, atol=1e-30)
    as_given = torch.exp(scale * y - maximum.unsqueeze(1))
    torch.testing.assert_close(found[small], as_given[small], rtol=5e-3, atol=1e-30)
    weights = scale / found.sum(dim=1)
    kept = (found * weights.unsqueeze(1)).sum(dim=0)
    kept.index_add_(0, targets, torch.full((rows,), -scale, dtype=torch.float64))
    torch.testing.assert_close(sums.double(), kept, rtol=1e-2, atol=1e-2)


def test_the_likely_token_does_not_hide_the_mass_of_the_others(form: str) -> None:
    """A row's column sums add up to 1. A column of W with a large mean adds up what is missing."""
    logits = normal(6, 49152, seed=4) * 2 - 14
    logits[:, 7] = 8.0
    exact = logits.double()
    targets = torch.arange(6)
    scratch, margins, losses = torch.empty(5, 49152), torch.empty(6), torch.empty(6)
    sums = torch.zeros(49152)
    to_exponentials(logits, None, targets, 1.0, scratch, sums, losses, margins)
    assert abs(sums.double().sum()) < 2e-6
    bias = normal(49152, seed=5)
    expected = torch.logsumexp(exact + bias, 1) - (exact + bias).gather(1, targets[:, None])[:, 0]
    sums.zero_()
    factors = torch.empty(49152)
    add_exponential_sums(
        stored(logits), bias, targets, 1.0, margins, scratch, factors, sums, losses
    )
    assert abs(sums.double().sum()) < 2e-6
    torch.testing.assert_close(losses.double(), expected, rtol=2e-7, atol=2e-6)


def test_infinite_logits(form: str) -> None:
    logits = torch.tensor([[1.0, float("-inf"), 2.0], [float("nan"), 0.0, 1.0]])
    sums, losses, margins = torch.zeros(3), torch.empty(2), torch.empty(2)
    one, other = logits[:1].clone(), logits[1:].clone()
    scratch = torch.empty(2, 3)
    targets = torch.tensor([2])
    to_exponentials(one, None, targets, 1.0, scratch, sums, losses[:1], margins[:1])
    expected = torch.tensor([0.26894142, 0.0, 0.73105858 - 1])
    torch.testing.assert_close(sums, expected)
    assert one[0, 1] < 1e-37
    to_exponentials(other, None, targets, 1.0, scratch, sums, losses[1:], margins[1:])
    assert losses[1].isnan()


def test_equal_inputs_give_equal_bits(form: str) -> None:
    weight, sums = normal(5000, 96, seed=1, dtype=torch.bfloat16), normal(3, 5000, seed=2)
    first = pull_back(weight, sums)
    assert all(torch.equal(first, pull_back(weight, sums)) for _ in range(5))


def test_torch_and_compiled_are_equal(form: str) -> None:
    weight = normal(3000, 200, seed=1, dtype=torch.bfloat16)
    deltas, sums = normal(2, 200, seed=2), normal(2, 3000, seed=3)
    out, other = torch.empty(2, 3000), torch.empty(2, 3000)
    shift(weight, deltas, out)
    shift_torch(weight, deltas, other)
    torch.testing.assert_close(out, other, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(
        pull_back(weight, sums), pull_back_torch(weight, sums), rtol=1e-5, atol=2e-4
    )


class TestChoice:
    @pytest.fixture(autouse=True)
    def form(self) -> Iterator[None]:
        """Each test chooses its own."""
        compiled.library.cache_clear()
        yield
        compiled.library.cache_clear()

    def test_torch_says_so(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.INFO, "vllm.slot_vllm"):
            assert compiled.library("torch") is None
        assert [r.getMessage() for r in caplog.records] == [
            "SLOT: CPU kernels: torch, as SLOT_CPU_KERNELS says"
        ]

    def test_a_compiler_that_fails(
        self,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        monkeypatch.setenv("CXX", str(tmp_path / "none"))
        with pytest.raises(compiled.CompilationError, match="none"):
            compiled.library("compiled")
        with caplog.at_level(logging.INFO, "vllm.slot_vllm"):
            assert compiled.library("auto") is None
        (line,) = [r.getMessage() for r in caplog.records]
        assert line.startswith("SLOT: CPU kernels: torch") and "none" in line

    def test_an_unknown_choice_is_an_error(self) -> None:
        with pytest.raises(ValueError, match="auto, compiled, torch"):
            compiled.library("fast")

    @pytest.mark.skipif("compiled" not in FORMS, reason="no compiler")
    def test_it_is_built_once(
        self,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        with caplog.at_level(logging.INFO, "vllm.slot_vllm"):
            assert isinstance(compiled.library("auto"), ctypes.CDLL)
        (file,) = (tmp_path / "slot_vllm").iterdir()
        assert [r.getMessage() for r in caplog.records] == [f"SLOT: CPU kernels: compiled, {file}"]
        changed = file.stat().st_mtime_ns
        assert compiled.build() == file and file.stat().st_mtime_ns == changed
        monkeypatch.setattr(compiled, "_FLAGS", (*compiled._FLAGS, "-g"))
        assert compiled.build() != file


@pytest.mark.parametrize("columns", [64, 1 << 15])
def test_rounded_sums_cost_one_rounding_of_each(columns: int) -> None:
    weight, sums = normal(1000, 64, seed=1, dtype=torch.bfloat16), normal(3, 1000, seed=2)
    exact = sums.double() @ weight.double()
    found = pull_back_rounded(weight, sums, columns)
    assert found.dtype == torch.float32
    # Each product of a part is rounded to bf16 too.
    torch.testing.assert_close(
        found.double(), exact, rtol=0.0, atol=0.01 * float(exact.abs().max())
    )


def test_nowhere_to_keep_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(compiled.CompilationError, match="nowhere to keep the library"):
        compiled.build()
