"""Which heads are accepted, on small modules with vLLM's own logits processor."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from vllm.model_executor.layers.logits_processor import LogitsProcessor

from slot_vllm.engine.worker.linear_head import Additions, LinearHead
from slot_vllm.engine.worker.ranks import Ranks
from slot_vllm.params import SlotError
from tests.optim.test_shard import Group

SIZE, VOCABULARY = 16, 50


class Linear(nn.Module):
    """An lm_head as LogitsProcessor sees one: padded to a multiple of 64."""

    tp_size = 1

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(64, SIZE).to(dtype))
        self.quant_method = SimpleNamespace(
            apply=lambda layer, x, bias: nn.functional.linear(x, layer.weight, bias)
        )


def processor(soft_cap: float | None, scale: float) -> LogitsProcessor:
    made: LogitsProcessor = LogitsProcessor.__new__(LogitsProcessor)
    nn.Module.__init__(made)
    made.soft_cap, made.scale = soft_cap, scale
    made.org_vocab_size, made.vocab_size = VOCABULARY, 64
    made.logits_as_input, made.head_dtype = False, None
    return made


class Model(nn.Module):
    def __init__(
        self,
        soft_cap: float | None = None,
        scale: float = 1.0,
        factor: float = 1.0,
        calls: int = 1,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.logits_processor = processor(soft_cap, scale)
        # Not every model calls its head lm_head.
        self.embedding = Linear(dtype)
        self.factor, self.calls = factor, calls

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        for _ in range(self.calls):
            logits: Tensor = self.logits_processor(self.embedding, hidden_states)
        return logits * self.factor


def head_of(model: Model, dtype: torch.dtype = torch.float32) -> LinearHead:
    return LinearHead(model, SIZE, dtype)


@pytest.mark.parametrize(
    ("soft_cap", "scale"), [(None, 1.0), (5.0, 1.0), (None, 0.25), (30.0, 2.0)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_linear_head_is_found_without_its_padding(
    soft_cap: float | None, scale: float, dtype: torch.dtype
) -> None:
    head = head_of(Model(soft_cap, scale, dtype=dtype), dtype).head()
    assert head.weight.shape == (VOCABULARY, SIZE)
    assert (head.soft_cap, head.scale) == (soft_cap, scale)


def test_watching_leaves_the_model_as_it_was() -> None:
    model = Model()
    head_of(model)
    assert "forward" not in vars(model.logits_processor)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"factor": 1.05}, "logits = f(h W^T); Model.compute_logits differs"),
        ({"calls": 2}, "used 2 logits processors"),
        ({"calls": 0}, "used 0 logits processors"),
    ],
)
def test_other_heads_are_refused(options: dict[str, Any], part: str) -> None:
    model = Model(**options)
    if not model.calls:
        model.compute_logits = lambda hidden_states: (  # type: ignore[method-assign]
            hidden_states @ model.embedding.weight.T
        )
    with pytest.raises(SlotError) as error:
        head_of(model)
    assert part in str(error.value)


def test_a_quantized_head_is_refused() -> None:
    model = Model()
    model.embedding.weight = nn.Parameter(model.embedding.weight.to(torch.int8), False)
    model.embedding.quant_method.apply = lambda layer, x, bias: x @ layer.weight.float().T
    with pytest.raises(SlotError, match="unquantized weight"):
        head_of(model)


def attempt(work: Callable[[], Tensor]) -> Tensor | None:
    return work()


@pytest.mark.parametrize(("soft_cap", "scale"), [(None, 1.0), (5.0, 2.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_the_hook_adds(soft_cap: float | None, scale: float, dtype: torch.dtype) -> None:
    model = Model(soft_cap, scale, dtype=dtype)
    linear = head_of(model, dtype)
    hidden = torch.randn(4, SIZE).to(dtype)
    with torch.no_grad():
        own = model.compute_logits(hidden)
        biases = torch.zeros(3, VOCABULARY)
        biases[1], biases[2] = 1e-3 * torch.randn(VOCABULARY), torch.randn(VOCABULARY)
        rows = torch.tensor([0, 1, 0, 2])
        factors = torch.tensor([1.0, 0.0, 1.0, 0.25])
        queue = [
            None,
            Additions(lambda: rows, biases, None),
            Additions(lambda: rows, biases, None, lambda: factors),
        ]
        linear.hook(lambda: queue.pop(0), attempt)
        assert torch.equal(model.compute_logits(hidden), own)
        shifted, faded = model.compute_logits(hidden), model.compute_logits(hidden)
    # Rows without a delta keep their bits; the others get W delta before f, in float32.
    assert torch.equal(shifted[[0, 2]], own[[0, 2]].float())
    z = (hidden @ linear.head().weight.T).float()
    expected = linear.head().activate(z + biases[[0, 1, 0, 2]])
    assert torch.allclose(shifted[[1, 3]], expected[[1, 3]], atol=1e-6)
    # As do those of which nothing is left.
    assert torch.equal(faded[:3], own[:3].float())
    expected = linear.head().activate(z + 0.25 * biases[rows])
    assert torch.allclose(faded[3], expected[3], atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_left_of_a_rounded_delta(dtype: torch.dtype) -> None:
    model = Model(dtype=dtype)
    hidden, rounded = torch.randn(4, SIZE).to(dtype), torch.randn(3, SIZE).to(dtype)
    rounded[0] = 0.0
    factors = torch.tensor([1.0, 0.0, 0.3, 1.0])
    rows = torch.tensor([2, 1, 1, 0])
    with torch.no_grad():
        before = hidden.clone()
        expected = hidden + (factors.unsqueeze(1) * rounded[rows].float()).to(dtype)
        expected = model.compute_logits(expected)
        linear = head_of(model, dtype)
        linear.hook(lambda: Additions(lambda: rows, None, rounded, lambda: factors), attempt)
        assert torch.equal(model.compute_logits(hidden), expected)
    # A drafter reads them too.
    assert torch.equal(hidden, before)


class ThreadRanks(Ranks):
    """Ranks among threads."""

    def __init__(self, group: Group, rank: int) -> None:
        super().__init__()
        self.size, self.rank, self._threads = group.ranks, rank, group

    def gather(self, own: Tensor) -> Tensor:
        return self._threads.gather(self.rank, own)

    def largest(self, values: Sequence[int]) -> list[int]:
        return [max(each) for each in zip(*self._threads.exchange(self.rank, values), strict=True)]


class Wrapper(nn.Module):
    """Stands for LoRA's, which gathers by itself and is no LogitsProcessor."""

    def __init__(self, base_layer: LogitsProcessor) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.org_vocab_size, self.soft_cap, self.scale = (
            base_layer.org_vocab_size,
            base_layer.soft_cap,
            base_layer.scale,
        )
        self.logits_as_input = False

    def _get_logits(
        self, hidden_states: Tensor, lm_head: Any, bias: Any = None, skip_gather: bool = False
    ) -> Tensor | None:
        assert not skip_gather
        logits: Tensor | None = self.base_layer._get_logits(hidden_states, lm_head, bias)
        return logits

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return type(self.base_layer).forward(self, *args, **kwargs)


def sharded(whole: Model, ranks: ThreadRanks, wrapped: bool) -> Model:
    """A rank's part of the model: 64 rows of W in equal parts."""
    model = Model(whole.logits_processor.soft_cap, whole.logits_processor.scale)
    rows = 64 // ranks.size
    part = whole.embedding.weight[ranks.rank * rows : (ranks.rank + 1) * rows]
    model.embedding.weight = nn.Parameter(part.detach().clone())
    model.embedding.tp_size = ranks.size
    model.logits_processor._gather_logits = ranks.gather_columns
    if wrapped:
        model.logits_processor = Wrapper(model.logits_processor)
    return model


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize(("soft_cap", "scale"), [(None, 1.0), (5.0, 2.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("count", "fades"), [(2, False), (2, True), (8, False)])
def test_each_rank_adds_its_columns(
    count: int, fades: bool, dtype: torch.dtype, soft_cap: float | None, scale: float, wrapped: bool
) -> None:
    """With 8 ranks the seventh has 2 columns and the last has none."""
    whole = Model(soft_cap, scale, dtype=dtype)
    hidden = torch.randn(5, SIZE).to(dtype)
    biases = torch.zeros(3, VOCABULARY)
    biases[1], biases[2] = 1e-3 * torch.randn(VOCABULARY), torch.randn(VOCABULARY)
    rows = torch.tensor([0, 1, 0, 2, 2])
    factors = torch.tensor([1.0, 1.0, 1.0, 0.3, 0.0]) if fades else None
    fade = None if factors is None else lambda: factors
    plain = [0, 2, 4] if fades else [0, 2]
    with torch.no_grad():
        expected_head = head_of(whole, dtype)
        own = whole.compute_logits(hidden)
        expected_head.hook(lambda: Additions(lambda: rows, biases, None, fade), attempt)
        expected = whole.compute_logits(hidden)
    group = Group(count)

    def work(rank: int) -> Tensor:
        with torch.no_grad():
            ranks = ThreadRanks(group, rank)
            model = sharded(whole, ranks, wrapped)
            head = LinearHead(model, SIZE, dtype, ranks)
            assert head.columns == (
                min(VOCABULARY, rank * 64 // count),
                min(VOCABULARY, (rank + 1) * 64 // count),
            )
            assert head.head().vocabulary == head.columns[1] - head.columns[0]
            mine = biases[:, slice(*head.columns)].contiguous()
            assert torch.equal(head.whole(mine), biases)
            head.hook(lambda: Additions(lambda: rows, mine, None, fade), attempt)
            return model.compute_logits(hidden)

    for logits in group.run(work):
        assert not isinstance(logits, Exception), logits
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(logits[plain], own[plain].float(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"tp_size": 1}, "sharded over the vocabulary by the 2 tensor-parallel ranks"),
        ({"num_added_embeddings": 3}, "without added embeddings; Model's head has 3"),
    ],
)
def test_heads_that_are_not_sharded_are_refused(options: dict[str, int], part: str) -> None:
    model, ranks = Model(), ThreadRanks(Group(2), 0)
    for name, value in {"tp_size": 2, **options}.items():
        setattr(model.embedding, name, value)
    model.logits_processor._gather_logits = lambda logits: logits
    with pytest.raises(SlotError) as error:
        LinearHead(model, SIZE, torch.float32, ranks)
    assert part in str(error.value)
