"""Faults inside SLOT's part of a step: the request concerned equals plain vLLM, every other one the
reference, and the next one has SLOT again."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from slot_vllm.engine.worker import learning, linear_head, runners
from slot_vllm.engine.worker.additions import Additions
from tests.engine.cases import (
    Case,
    assert_delta_equal,
    assert_tokens_equal,
    random_tokens,
    reference,
)
from tests.engine.engines import ROOMY, runner_of, statuses
from tests.engine.generate import delta_of, run, sampling_params, stats_of, tokens_of
from tests.engine.runner import V2

NEW = 4 if V2 else 12
BLOCK = 32

Patch = pytest.MonkeyPatch


@dataclass(frozen=True)
class Batch:
    """Together one step: a prompt in which something fails, others, and one for afterwards."""

    victim: Case
    other: Case
    plain: Case
    after: Case

    @classmethod
    def of(cls, seed: int) -> "Batch":
        lengths = ((17, 5), (14, 3), (9, 0), (12, 5))
        return cls(*(Case(random_tokens(n, seed + n), steps, 0.5, NEW) for n, steps in lengths))

    def cases(self) -> list[Case]:
        return [self.victim, self.other, self.plain, self.after]

    def without(self) -> list[Case]:
        return [Case(c.tokens, 0, c.lr, NEW) for c in (self.victim, self.other)]


def _raise(*_args: Any, **_kwargs: Any) -> Any:
    raise RuntimeError("injected")


def arrival(llm: Any, patch: Patch, tokens: list[int]) -> None:
    slot = runner_of(llm).slot_state
    arrive = slot.registry._arrive
    patch.setattr(
        slot.registry,
        "_arrive",
        lambda new: (_raise if new.prompt_token_ids == tokens else arrive)(new),
    )


def rows(llm: Any, patch: Patch, tokens: list[int]) -> None:
    slot = runner_of(llm).slot_state
    take = slot.rows.take
    patch.setattr(
        slot.rows, "take", lambda q, *args: (_raise if q.tokens == tokens else take)(q, *args)
    )


def optimizer(llm: Any, patch: Patch, tokens: list[int]) -> None:
    optimize = learning.optimize

    def broken(head: Any, prompts: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
        here = [p.tokens.tolist() for p in prompts]
        return (_raise if tokens in here else optimize)(head, prompts, *args, **kwargs)

    patch.setattr(learning, "optimize", broken)


def memory(llm: Any, patch: Patch, tokens: list[int]) -> None:
    workspace = runner_of(llm).slot_state.workspace
    take = workspace.take

    def broken(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        # The victim's rows of Z0, which no other prompt has so many of.
        if len(shape) == 2 and shape[0] >= len(tokens) - 1:
            raise torch.OutOfMemoryError("injected")
        return take(shape, dtype)

    patch.setattr(workspace, "take", broken)


def table(llm: Any, patch: Patch, tokens: list[int]) -> None:
    slot = runner_of(llm).slot_state
    fill = slot.table.fill

    def broken(filled: Sequence[int], *args: Any) -> Any:
        (victim,) = (q for q in slot.registry.with_slot if q.tokens == tokens)
        return (_raise if slot.table.row(victim.table_key) in filled else fill)(filled, *args)

    patch.setattr(slot.table, "fill", broken)


def hidden_states(llm: Any, patch: Patch, tokens: list[int], value: float = torch.nan) -> None:
    """Of the victim's first tokens, as the model makes them; the last, of its logits, is sound."""
    _norm_of(llm, patch, tokens, value)


def infinite(llm: Any, patch: Patch, tokens: list[int]) -> None:
    _norm_of(llm, patch, tokens, -torch.inf)


def _norm_of(llm: Any, patch: Patch, tokens: list[int], value: float) -> None:
    runner = runner_of(llm)
    model = runner.get_model().model
    forward, embed = model.norm.forward, model.embed_tokens.forward
    here: list[int] = []

    def watched(ids: Tensor, *args: Any) -> Any:
        here[:] = ids.tolist()
        return embed(ids, *args)

    def broken(*args: Any) -> Any:
        result = forward(*args)
        for start in range(len(here)):
            if here[start : start + 8] == tokens[:8]:
                result[0][start : start + 8, 1] = value
        return result

    patch.setattr(model.embed_tokens, "forward", watched)
    patch.setattr(model.norm, "forward", broken)


def batch(llm: Any, patch: Patch, tokens: list[int]) -> None:
    patch.setattr(runners, "BatchView", _raise)


def logits(llm: Any, patch: Patch, tokens: list[int]) -> None:
    # By then W delta is added.
    patch.setattr(linear_head, "_activated", _raise)


def step(llm: Any, patch: Patch, tokens: list[int]) -> None:
    patch.setattr(runner_of(llm).slot_state.step, "_begin", _raise)


# (fault, its reason, whether all requests of the step are concerned)
FAULTS: list[tuple[Callable[..., None], str, bool]] = [
    (arrival, "arrival", False),
    (rows, "hidden_cache", False),
    (optimizer, "optimizer", False),
    (memory, "out_of_memory", False),
    (table, "table", False),
    (hidden_states, "non_finite", False),
    (infinite, "non_finite", False),
    (batch, "batch", True),
    (logits, "logits", True),
]
if V2:
    FAULTS = [f for f in FAULTS if f[0] in (optimizer, hidden_states, batch, logits)]
BATCHES = {fault.__name__: Batch.of(5000 + 100 * i) for i, (fault, _, _) in enumerate(FAULTS)}


def _expected(model: str) -> dict[Case, Any]:
    cases = [case for b in BATCHES.values() for case in (*b.cases(), *b.without())]
    cases += [*CHUNKED, *(Case(c.tokens, 0, c.lr, c.new_tokens) for c in CHUNKED)]
    return dict(zip(cases, reference(model, cases), strict=True))


@pytest.mark.parametrize(("fault", "reason", "all_"), FAULTS, ids=[f[0].__name__ for f in FAULTS])
def test_a_fault(
    fault: Callable[..., None],
    reason: str,
    all_: bool,
    tiny_model: str,
    engine: Callable[..., Any],
    monkeypatch: Patch,
) -> None:
    llm = engine(tiny_model, slot={}, **ROOMY)
    expected = _expected(tiny_model)
    mine = BATCHES[fault.__name__]
    failed, without = (2, mine.without()) if all_ else (1, [mine.without()[0], mine.other])
    before = stats_of(llm)
    with monkeypatch.context() as patch:
        fault(llm, patch, list(mine.victim.tokens))
        outputs = run(llm, [mine.victim, mine.other, mine.plain])
    stats = {name: value - before[name] for name, value in stats_of(llm).items()}
    assert_tokens_equal(tokens_of(outputs), [expected[c] for c in (*without, mine.plain)])
    assert delta_of(llm, outputs[0]) is None
    if not all_:
        assert_delta_equal(delta_of(llm, outputs[1]), expected[mine.other], mine.other.lr)
    assert (stats["failed"], stats[f"failed.{reason}"]) == (failed, failed)
    if reason != "non_finite":
        assert "injected" in llm.collective_rpc("slot_errors")[0][-1]

    # Once it is over all is as before, the same prompt and the engine's state included.
    before = stats_of(llm)
    again = [Case(mine.victim.tokens, mine.victim.steps, mine.victim.lr, NEW), mine.after]
    outputs = run(llm, again)
    assert_tokens_equal(tokens_of(outputs), [expected[case] for case in again])
    for case, output in zip(again, outputs, strict=True):
        assert_delta_equal(delta_of(llm, output), expected[case], case.lr)
    assert stats_of(llm)["failed"] == before["failed"]
    run(llm, [mine.plain])
    slot = runner_of(llm).slot_state
    assert set(statuses(slot)) <= {"plain"} and not len(slot.table)


_PREFIX = random_tokens(96, seed=6000)
# Of more than one chunk; the others have its prefix, the last one has not.
CHUNKED = [
    Case(_PREFIX + random_tokens(20, seed=6001), 5, 0.5, NEW),
    Case(_PREFIX + random_tokens(9, seed=6002), 5, 0.5, NEW),
    Case(random_tokens(70, seed=6003), 3, 0.5, NEW),
    Case(random_tokens(11, seed=6004), 5, 0.5, NEW),
]


def write(llm: Any, patch: Patch) -> None:
    """The mapping is there, the write fails."""
    patch.setattr(runner_of(llm).slot_hidden_cache, "write", _raise)


def mapping(llm: Any, patch: Patch) -> None:
    """It is not even known what was to be written."""
    patch.setattr(runner_of(llm).slot_hidden_cache, "group", _raise)


@pytest.mark.parametrize("fault", [write] if V2 else [write, mapping])
def test_hidden_states_that_were_not_written_are_nobodys(
    fault: Callable[..., None], tiny_model: str, engine: Callable[..., Any], monkeypatch: Patch
) -> None:
    llm = engine(tiny_model, slot={}, **ROOMY)
    expected = _expected(tiny_model)
    first, later, other, short = CHUNKED
    plain = {case: Case(case.tokens, 0, case.lr, NEW) for case in CHUNKED}
    cache = runner_of(llm).slot_hidden_cache
    # What the blocks hold before is another prompt's, and could be taken for this one's.
    cache._layer.kv_cache.normal_(generator=torch.Generator().manual_seed(1))
    llm.reset_prefix_cache()
    llm.collective_rpc("slot_forget_shared")
    before = stats_of(llm)
    with monkeypatch.context() as patch:
        fault(llm, patch)
        outputs = run(llm, [short, first])
    # One prompt is whole in its step and needs nothing from the cache.
    assert_tokens_equal(tokens_of(outputs), [expected[c] for c in (short, plain[first])])
    assert stats_of(llm)["failed.hidden_cache"] == before["failed.hidden_cache"] + 1

    # Who hits the first one's blocks gets no delta; without them it does.
    outputs = run(llm, [later, other])
    assert outputs[0].num_cached_tokens == 96
    assert_tokens_equal(tokens_of(outputs), [expected[c] for c in (plain[later], other)])
    assert stats_of(llm)["failed.non_finite"] == before["failed.non_finite"] + 1
    llm.reset_prefix_cache()
    outputs = run(llm, [first, later])
    assert_tokens_equal(tokens_of(outputs), [expected[c] for c in (first, later)])
    assert stats_of(llm)["failed.non_finite"] == before["failed.non_finite"] + 1


@pytest.mark.skipif(V2, reason="the same code on both runners")
def test_a_step_that_is_not_understood(
    tiny_model: str, engine: Callable[..., Any], monkeypatch: Patch
) -> None:
    llm = engine(tiny_model, slot={}, **ROOMY)
    expected = _expected(tiny_model)
    mine, running = BATCHES["optimizer"], BATCHES["batch"].victim
    llm.collective_rpc("slot_forget_shared")
    before = stats_of(llm)
    core, answers = llm.llm_engine, {}

    def add(name: str, case: Case) -> None:
        prompt = {"prompt_token_ids": list(case.tokens)}
        core.add_request(name, prompt, sampling_params(case))

    add("running", running)
    core.step()
    with monkeypatch.context() as patch:
        step(llm, patch, [])
        for name in ("victim", "other", "plain"):
            add(name, getattr(mine, name))
        while core.has_unfinished_requests():
            answers.update({o.request_id: o for o in core.step() if o.finished})
    outputs = [answers[name] for name in ("victim", "other", "plain")]
    # Its first token had W delta, the others have not.
    assert len(answers["running"].outputs[0].token_ids) == NEW
    stats = {name: value - before[name] for name, value in stats_of(llm).items()}
    assert (stats["failed"], stats["failed.arrival"], stats["optimized"]) == (3, 3, 1)
    assert_tokens_equal(
        tokens_of(outputs), [expected[case] for case in (*mine.without(), mine.plain)]
    )
    (output,) = run(llm, [mine.after])
    assert_tokens_equal(tokens_of([output]), [expected[mine.after]])
    slot = runner_of(llm).slot_state
    assert {status: len(own) for status, own in statuses(slot).items()} == {"applied": 1}


def test_what_vllm_raises_passes_through(
    tiny_model: str, engine: Callable[..., Any], monkeypatch: Patch
) -> None:
    llm = engine(tiny_model, slot={}, **ROOMY)
    runner = runner_of(llm)
    processor = runner.slot_state.linear_head._processor
    before = stats_of(llm)["failed"]
    additions = Additions(lambda: torch.tensor([1]), runner.slot_state.table.biases, None)
    rows_ = torch.zeros(1, 64)
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="injected"):
        patch.setattr(processor, "_get_logits", _raise)
        runner.slot_state.step._staged = additions
        runner.get_model().compute_logits(rows_)
    assert stats_of(llm)["failed"] == before
