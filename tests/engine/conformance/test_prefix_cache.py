"""SLOT requests that read the prefix cache equal cold runs; equal prompts share one delta."""

from collections.abc import Callable
from functools import partial
from typing import Any

import psutil
import pytest
import torch

from tests.engine.cases import (
    Case,
    assert_delta_equal,
    assert_tokens_equal,
    random_tokens,
    reference,
)
from tests.engine.engines import ROOMY, runner_of
from tests.engine.generate import delta_of, run, sampling_params, stats_of, tokens_of
from tests.engine.runner import V2

NEW = 8 if V2 else 24
BLOCK = 32


def _counted(llm: Any, action: Callable[[], Any]) -> tuple[Any, dict[str, Any]]:
    """What ``action`` returns and by how much it changed each counter."""
    before = stats_of(llm)
    result = action()
    return result, {name: value - before[name] for name, value in stats_of(llm).items()}


def _prefixed(seed: int, steps: int) -> list[Case]:
    """Three requests with a common prefix; the first one, with ``steps``, computes it."""
    prefix = random_tokens(140, seed)
    return [
        Case(prefix + random_tokens(30, seed + 1), steps, 0.1, NEW),
        Case(prefix + random_tokens(9, seed + 2), 5, 0.1, NEW),
        Case(prefix[:100] + random_tokens(60, seed + 3), 3, 0.5, NEW),
    ]


def test_a_prefix_that_another_request_computed(
    tiny_model: str, engine: Callable[..., Any]
) -> None:
    llm = engine(tiny_model, slot={}, **ROOMY)
    groups = [_prefixed(2000 + 10 * steps, steps) for steps in (5, 0)]
    expected = reference(tiny_model, [case for group in groups for case in group])
    for group in groups:
        first, *others = group
        run(llm, [first])
        outputs, counted = _counted(llm, partial(run, llm, others))
        assert [o.num_cached_tokens for o in outputs] == [4 * BLOCK, 3 * BLOCK]
        assert counted["hidden_rows_cached"] == 7 * BLOCK
        assert counted["hidden_rows_computed"] == sum(len(c.tokens) for c in others) - 7 * BLOCK
        answers = [expected.pop(0) for _ in group][1:]
        assert_tokens_equal(tokens_of(outputs), answers)
        for case, output, answer in zip(others, outputs, answers, strict=True):
            assert_delta_equal(delta_of(llm, output), answer, case.lr)
    assert stats_of(llm)["failed"] == 0


def test_the_second_turn_of_a_chat(tiny_model: str, engine: Callable[..., Any]) -> None:
    llm = engine(tiny_model, slot={}, **ROOMY)
    # So long that a whole block is made of generated tokens.
    turns = [Case(random_tokens(90, seed=2100 + steps), steps, 0.1, 80) for steps in (5, 0)]
    seconds = []
    for turn, output in zip(turns, run(llm, turns), strict=True):
        said = tuple(output.outputs[0].token_ids)
        seconds.append(Case(turn.tokens + said + random_tokens(20, seed=2200), 5, 0.1, NEW))
    outputs = run(llm, seconds)
    # The last generated token was never an input.
    assert [o.num_cached_tokens for o in outputs] == [169 // BLOCK * BLOCK] * 2
    expected = reference(tiny_model, seconds)
    assert_tokens_equal(tokens_of(outputs), expected)
    for output, answer in zip(outputs, expected, strict=True):
        assert_delta_equal(delta_of(llm, output), answer, 0.1)


@pytest.mark.any_runner
def test_samples_of_a_long_prompt_share_its_delta(
    tiny_model: str, engine: Callable[..., Any]
) -> None:
    # On a CPU a seeded request whose prompt is split kills the V1 runner inside vLLM.
    whole = {
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": 700,
        "max_model_len": 700,
        **ROOMY,
    }
    case = Case(random_tokens(600, seed=2300), 5, 0.5, 4 if V2 else 16)
    prompt = {"prompt_token_ids": list(case.tokens)}
    llm = engine(tiny_model, slot={}, **whole)
    params = sampling_params(case, n=8, temperature=1.0, seed=17)
    (together,), counted = _counted(llm, lambda: llm.generate([prompt], params, use_tqdm=False))
    assert (counted["optimized"], counted["shared"]) == (1, 7)
    assert counted["hidden_rows_computed"] <= 600 + 7 * BLOCK
    samples = [list(o.token_ids) for o in together.outputs]
    assert len({tuple(s) for s in samples}) > 1
    alone = engine(tiny_model, slot={"hidden_cache": "off", "delta_cache_mb": 0}, **whole)
    singles = [sampling_params(case, temperature=1.0, seed=17 + i) for i in range(8)]
    for sample, single in zip(samples, singles, strict=True):
        (output,) = alone.generate([prompt], single, use_tqdm=False)
        assert sample == list(output.outputs[0].token_ids)
    assert stats_of(alone)["optimized"] == 8


@pytest.mark.any_runner
def test_sharing_in_a_step_in_an_overlap_and_later(
    tiny_model: str, engine: Callable[..., Any]
) -> None:
    llm = engine(tiny_model, slot={}, **ROOMY)
    case = Case(random_tokens(40, seed=2400), 5, 0.3, NEW)
    (expected,) = reference(tiny_model, [case])
    outputs, counted = _counted(llm, lambda: run(llm, [case] * 3))
    assert (counted["optimized"], counted["shared"]) == (1, 2)
    later, counted = _counted(llm, lambda: run(llm, [case]))
    assert (counted["optimized"], counted["shared"]) == (0, 1)
    for output in (*outputs, *later):
        assert_tokens_equal(tokens_of([output]), [expected])
        assert_delta_equal(delta_of(llm, output), expected, case.lr)
    # Other settings, and changed weights, are another optimization.
    other = Case(case.tokens, 5, 0.2, 1)
    assert _counted(llm, lambda: run(llm, [other]))[1]["optimized"] == 1
    llm.collective_rpc("slot_forget_shared")
    assert _counted(llm, lambda: run(llm, [case]))[1]["optimized"] == 1


@pytest.mark.any_runner
def test_nothing_crosses_cache_salts(tiny_model: str, engine: Callable[..., Any]) -> None:
    llm = engine(tiny_model, slot={}, **ROOMY)
    case = Case(random_tokens(80, seed=2500), 5, 0.1, 4)

    def ask(salt: str | None) -> tuple[int, int]:
        prompt = {"prompt_token_ids": list(case.tokens), "cache_salt": salt}
        if salt is None:
            del prompt["cache_salt"]
        (output,), counted = _counted(
            llm, lambda: llm.generate([prompt], sampling_params(case), use_tqdm=False)
        )
        assert_tokens_equal(tokens_of([output]), reference(tiny_model, [case]))
        return output.num_cached_tokens, counted["optimized"]

    assert [ask(salt) for salt in (None, "a", "b", "a", None)] == [
        (0, 1),
        (0, 1),
        (0, 1),
        (2 * BLOCK, 0),
        (2 * BLOCK, 0),
    ]
    # The hidden states behind a salt are read by those who have it.
    llm.collective_rpc("slot_forget_shared")
    assert ask("a") == (2 * BLOCK, 1)


def test_hidden_states_follow_copied_blocks(tiny_model: str, engine: Callable[..., Any]) -> None:
    from vllm.v1.worker.utils import copy_kv_cache_blocks_inplace

    llm = engine(tiny_model, slot={}, **ROOMY)
    runner = runner_of(llm)
    cache = runner.slot_hidden_cache._layer.kv_cache
    # Of other tests' requests.
    cache.zero_()
    run(llm, [Case(random_tokens(100, seed=2600), 5, 0.1, 1)])
    written = int(torch.argmax(cache.abs().flatten(1).sum(1)))
    copy_kv_cache_blocks_inplace(
        runner.kv_caches, runner.kv_cache_config.num_blocks, [(written, 199)]
    )
    assert cache[199].any()
    assert torch.equal(cache[199], cache[written])


def test_the_stated_cost_is_what_is_lost(tiny_model: str, engine: Callable[..., Any]) -> None:
    size = {"num_gpu_blocks_override": None, "kv_cache_memory_bytes": 1 << 24}
    tokens = []
    for choice in ("on", "off"):
        llm = engine(tiny_model, slot={"hidden_cache": choice}, **size)
        run(llm, [Case(random_tokens(50, seed=2700), 5, 0.1, 2)])
        tokens.append(runner_of(llm).kv_cache_config.num_blocks * BLOCK)
        if choice == "on":
            cost = runner_of(llm).slot_hidden_cache.cost
    with_it, without = tokens
    assert cost.tokens == with_it
    assert abs(without - with_it - cost.tokens_lost) <= BLOCK
    assert cost.share == pytest.approx(1 - with_it / without, abs=0.01)
    # float32: d = 64 of hidden states; two layers, keys and values, one head of 32.
    assert cost.bytes_per_token == 64 * 4
    assert cost.share == pytest.approx(64 / (64 + 2 * 2 * 32))


@pytest.mark.skipif(V2, reason="the arithmetic is vLLM's, the same for both runners")
def test_within_the_same_share_of_memory(tiny_model: str, engine: Callable[..., Any]) -> None:
    from vllm.utils.cpu_resource_utils import get_memory_node_info

    # Room for 512 MiB more than this process, with its other engines, has by now.
    room = psutil.Process().memory_info().rss + (1 << 29)
    share = room / get_memory_node_info().total_memory
    size = {"num_gpu_blocks_override": None, "kv_cache_memory_bytes": None}
    llm = engine(tiny_model, slot={}, gpu_memory_utilization=share, **size)
    case = Case(random_tokens(50, seed=2750), 5, 0.1, 2)
    assert_tokens_equal(tokens_of(run(llm, [case])), reference(tiny_model, [case]))
    runner = runner_of(llm)
    worker = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker
    allowed = worker.requested_cpu_memory
    # What vLLM found free for it holds the hidden states too, and all that was there before.
    # All layers lie in one buffer.
    (kv_bytes,) = {tensor.size for tensor in runner.kv_cache_config.kv_cache_tensors}
    assert 1 << 27 < kv_bytes < 1 << 29
    assert psutil.Process().memory_info().rss <= 1.02 * allowed
    cost = runner.slot_hidden_cache.cost
    per_token = cost.bytes_per_token / cost.share
    assert 0 <= kv_bytes - cost.tokens * per_token < BLOCK * per_token
    lost = kv_bytes / (per_token - cost.bytes_per_token) - cost.tokens
    assert abs(lost - cost.tokens_lost) <= BLOCK


@pytest.mark.parametrize("shares", [False, pytest.param(True, marks=pytest.mark.any_runner)])
def test_off_is_as_before(shares: bool, tiny_model: str, engine: Callable[..., Any]) -> None:
    off = {"hidden_cache": "off", **({} if shares else {"delta_cache_mb": 0})}
    llm = engine(tiny_model, slot=off, **ROOMY)
    groups = runner_of(llm).kv_cache_config.kv_cache_groups
    assert not [name for group in groups for name in group.layer_names if "slot" in name]
    case = Case(random_tokens(120, seed=2800), 5, 0.1, 4)
    without = Case(case.tokens, 0, 0.1, 4)
    expected = reference(tiny_model, [case])
    run(llm, [without])
    for again in (False, True):
        (output,), counted = _counted(llm, lambda: run(llm, [case]))
        assert output.num_cached_tokens == 0
        shared = int(shares and again)
        assert (counted["optimized"], counted["shared"]) == (1 - shared, shared)
        assert counted["hidden_rows_cached"] == 0
        assert_tokens_equal(tokens_of([output]), expected)
        assert_delta_equal(delta_of(llm, output), expected[0], case.lr)
    (plain,) = run(llm, [without])
    assert plain.num_cached_tokens == 3 * BLOCK
