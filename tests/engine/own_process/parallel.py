"""Tensor and pipeline parallel: what one process gives, whatever the workers.

First in a process of its own, because workers are forked from it.
"""

import asyncio
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from safetensors.torch import load_file
from torch._dynamo import config as dynamo

from slot_vllm.bench.scaling import ModelShape, learning, prefill
from slot_vllm.engine.worker.request import TrackedRequest
from tests.engine.cases import (
    VOCABULARY,
    Case,
    assert_delta_equal,
    assert_tokens_equal,
    mixed_cases,
    random_tokens,
    reference,
)
from tests.engine.conformance.test_receipts import last_kl
from tests.engine.conformance.test_settings import mixed, told_by
from tests.engine.engines import SLOT, SMALL, assert_nothing_left, scheduler_of
from tests.engine.generate import run, sampling_params, tokens_of
from tests.engine.runner import V2, python_path
from tests.engine.server import body, serving
from tests.engine.vllm_command import forks

TP2: dict[str, Any] = {"tensor_parallel_size": 2}
if V2:
    os.environ["PYTHONPATH"] = python_path()

# V1 starts no pipeline whose model is not traced; under the interpreter nothing is.
PP2: dict[str, Any] = {"pipeline_parallel_size": 2, "enforce_eager": V2}


def cases_of(vocabulary: int) -> list[Case]:
    # The interpreter is slow.
    return [
        replace(case, tokens=tuple(token % vocabulary for token in case.tokens))
        for case in mixed_cases(20, 6 if V2 else 16)
    ]


# vLLM's: as long after a message a process asks for the next one again and again, instead of
# sleeping. Of workers that wait for a test's next request it is the cores of other tests.
SPIN_SECONDS = 0.002


@pytest.fixture(scope="session", autouse=True)
def forked_workers() -> Iterator[None]:
    """As in ``vllm_command.py``; and they hardly spin."""
    from vllm.distributed.device_communicators.shm_broadcast import SpinCondition

    def record_read(self: Any) -> None:
        self.last_read = time.monotonic() - self.busy_loop_s + SPIN_SECONDS

    with pytest.MonkeyPatch.context() as patch:
        if forks():
            context = multiprocessing.get_context("fork")
            patch.setattr("vllm.v1.executor.multiproc_executor.get_mp_context", lambda: context)
            patch.setattr(SpinCondition, "record_read", record_read)
        yield


@pytest.fixture
def parallel(engine: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """parallel(model, slot={}, **options): an engine of two workers."""

    def get(model: str, slot: dict[str, Any] | None = None, **options: Any) -> Any:
        slot = {"check_ranks": True, **(slot or {})}
        traced = not options.get("enforce_eager", True)
        # What ``_start_quickly`` of tests/conftest.py set.
        with pytest.MonkeyPatch.context() as patch, dynamo.patch(disable=forks() and not traced):
            if traced:
                patch.delenv("TORCHDYNAMO_DISABLE", raising=False)
            return engine(
                model,
                slot,
                distributed_executor_backend="mp",
                skip_tokenizer_init=False,
                **options,
            )

    yield get


@contextmanager
def preemptions(llm: Any) -> Iterator[list[str]]:
    """The requests that are preempted within."""
    scheduler, names = scheduler_of(llm), []
    original = scheduler._preempt_request

    def preempt(request: Any, *args: Any, **kwargs: Any) -> None:
        names.append(request.request_id)
        original(request, *args, **kwargs)

    scheduler._preempt_request = preempt
    try:
        yield names
    finally:
        scheduler._preempt_request = original


def assert_equal_to_one_process(
    llm: Any, model: str, cases: list[Case], workers: list[bool], preempted: bool = True
) -> None:
    """Tokens and deltas of ``cases``. workers: of each, whether it is one that knows deltas.
    preempted: whether some of the cases have to be."""
    expected = reference(model, cases)
    with preemptions(llm) as names:
        outputs = run(llm, cases)
    assert names or not preempted
    assert_tokens_equal(tokens_of(outputs), expected)
    chunk = llm.llm_engine.vllm_config.scheduler_config.max_num_batched_tokens
    assert max(len(case.tokens) for case in cases) > chunk
    for case, output, answer in zip(cases, outputs, expected, strict=True):
        deltas = llm.collective_rpc("slot_delta", args=(output.request_id,))
        assert [delta is not None for delta in deltas] == [w and case.steps > 0 for w in workers]
        known = [delta for delta in deltas if delta is not None]
        assert all(delta == known[0] for delta in known)
        if known:
            assert_delta_equal(known[0], answer, case.lr)
            losses = llm.collective_rpc("slot_losses", args=(output.request_id,))
            assert losses[workers.index(True)] == pytest.approx(answer.losses, rel=2e-4, abs=2e-4)
    for knows, stats in zip(workers, llm.collective_rpc("slot_stats"), strict=True):
        assert bool(stats) == knows
        if knows:
            assert stats["failed"] == stats["ranks_differ"] == 0
            assert stats["optimized"]


each_head = pytest.mark.parametrize(
    ("architecture", "tied", "vocabulary"),
    [
        # 320 rows with the padding: 160 columns and 102.
        pytest.param("qwen2", True, None, id="uneven"),
        # 64 rows with the padding: the second rank has nothing else.
        pytest.param("llama", False, 30, id="padding-only"),
        pytest.param("gemma2", True, None, id="soft-cap", marks=pytest.mark.full),
    ],
)


@each_head
def test_tensor_parallel(
    architecture: str,
    tied: bool,
    vocabulary: int | None,
    tiny_models: Callable[..., str],
    parallel: Callable[..., Any],
) -> None:
    model = tiny_models(architecture, tied, vocabulary)
    # Gemma2 keeps two tables of blocks. The others' engine is that of the tests below.
    options = {"num_gpu_blocks_override": 22} if architecture == "gemma2" else {}
    llm = parallel(model, **TP2, **options)
    cases = cases_of(vocabulary or VOCABULARY)
    preempted = architecture != "gemma2" and not V2
    assert_equal_to_one_process(llm, model, cases, [True, True], preempted)


@pytest.mark.full
@pytest.mark.parametrize("options", [{"hidden_cache": "off"}, {"rounding": "model"}])
def test_tensor_parallel_with_other_settings(
    options: dict[str, Any], tiny_model: str, parallel: Callable[..., Any]
) -> None:
    llm = parallel(tiny_model, options, **TP2)
    assert_equal_to_one_process(llm, tiny_model, cases_of(VOCABULARY), [True, True])


FADING: tuple[dict[str, Any], ...] = (
    {"window": 2},
    {"window": 4, "half_life": 1.5},
    {"half_life": 2.0, "rounding": "model"},
)


@each_head
def test_every_option_in_one_batch(
    architecture: str,
    tied: bool,
    vocabulary: int | None,
    tiny_models: Callable[..., str],
    parallel: Callable[..., Any],
) -> None:
    model = tiny_models(architecture, tied, vocabulary)
    options = {"num_gpu_blocks_override": 22} if architecture == "gemma2" else {}
    llm = parallel(model, **TP2, **options)
    # Prompts longer than a step's tokens among them.
    long = [Case(random_tokens(n, 90 + n), 3, 0.5, 16) for n in (64, 130)]
    fading = [
        Case(random_tokens(60, 95), 5, 1.0, 6, settings=tuple(settings.items()))
        for settings in FADING
    ]
    cases = [
        replace(
            case,
            tokens=tuple(token % (vocabulary or VOCABULARY) for token in case.tokens),
            new_tokens=6,
        )
        for case in [*mixed(9), *long, *fading]
    ]
    if vocabulary is None:
        cases += [replace(case, new_tokens=6) for case in told_by(llm.get_tokenizer())]
    expected = reference(model, cases)
    before = llm.collective_rpc("slot_stats")
    outputs = run(llm, cases)
    for case, output, answer in zip(cases, outputs, expected, strict=True):
        asked = [
            llm.collective_rpc(method, args=(output.request_id,))
            for method in ("slot_delta", "slot_losses", "slot_token_shifts")
        ]
        assert all(one == other for one, other in asked)
        (delta, _), (losses, _), (shifts, _) = asked
        if not answer.losses:  # nothing to learn from
            assert not any(delta)
            continue
        assert_delta_equal(delta, answer, case.lr)
        assert losses[:-1] == pytest.approx(answer.losses[:-1], rel=2e-4, abs=2e-4)
        assert losses[-1] == pytest.approx(answer.losses[-1], rel=3e-3, abs=2e-4)
        assert torch.frombuffer(bytearray(shifts), dtype=torch.float32).any()
    assert_tokens_equal(tokens_of(outputs), expected)
    for was, now in zip(before, llm.collective_rpc("slot_stats"), strict=True):
        assert now["failed"] == was["failed"] and now["ranks_differ"] == was["ranks_differ"]


@pytest.mark.parametrize(
    ("architecture", "dtype"),
    [
        ("qwen2", "float32"),
        # With a delta f is taken in float32, which changes bits.
        pytest.param("gemma2", "bfloat16", marks=pytest.mark.full),
    ],
)
def test_without_a_delta_every_bit_is_the_baseline_s(
    architecture: str,
    dtype: str,
    tiny_models: Callable[..., str],
    parallel: Callable[..., Any],
) -> None:
    options = {"num_gpu_blocks_override": 22, "dtype": dtype} if architecture == "gemma2" else {}
    llm = parallel(tiny_models(architecture, True, None), **TP2, **options)
    plain = Case(random_tokens(61, seed=3), 0, 0.1, 8)
    zero = replace(plain, steps=5, lr=0.0)
    # Beside a request whose delta is applied.
    other = Case(random_tokens(50, seed=4), 5, 0.5, 8)

    def logprobs_of(case: Case) -> list[dict[int, float]]:
        output = run(llm, [case, other], logprobs=20)[0]
        return [
            {token: value.logprob for token, value in step.items()}
            for step in output.outputs[0].logprobs
        ]

    run(llm, [plain, other])  # and now both are in the prefix cache
    baseline = logprobs_of(plain)
    assert logprobs_of(zero) == baseline
    assert logprobs_of(replace(plain, steps=5, lr=0.5))[0] != baseline[0]


def test_pipeline_parallel(
    tiny_model: str, parallel: Callable[..., Any], pytestconfig: pytest.Config
) -> None:
    # ``--full`` compiles it, too.
    traced = {"compilation_config": {"mode": 2, "backend": "eager"}}
    llm = parallel(tiny_model, **PP2, **({} if V2 or pytestconfig.getoption("--full") else traced))
    assert_equal_to_one_process(llm, tiny_model, cases_of(VOCABULARY), [False, True], not V2)


Wrap = Callable[[Any, Callable[..., Any]], Any]


def on_rank(rank: int, wrap: Wrap, owner: str, name: str) -> Any:
    """For ``collective_rpc``: on that worker, put ``wrap`` around a function of SLOT's."""

    def work(worker: Any) -> None:
        if worker.rank != rank:
            return
        from pydoc import locate

        target = locate(owner)
        original = getattr(target, name)
        setattr(target, name, wrap(worker, original))

    return work


def _failing(at_call: int) -> Wrap:
    """Raise in one call, then be what it was."""

    def wrap(worker: Any, original: Callable[..., Any]) -> Any:
        calls = []

        def failing(*args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            if len(calls) == at_call:
                raise RuntimeError("injected")
            return original(*args, **kwargs)

        return failing

    return wrap


@pytest.mark.parametrize(
    ("owner", "name", "at_call"),
    [
        ("slot_vllm.optim.two_pass_form.TwoPassForm", "sums", 3),
        ("slot_vllm.optim.two_pass_form.TwoPassForm", "__init__", 1),
        ("slot_vllm.engine.worker.hidden_cache.HiddenCache", "read", 1),
        ("slot_vllm.engine.worker.sharing.Sharing", "set_key", 1),
    ],
)
def test_what_fails_on_one_rank_costs_one_delta_on_both(
    owner: str,
    name: str,
    at_call: int,
    tiny_model: str,
    parallel: Callable[..., Any],
) -> None:
    llm = parallel(tiny_model, **TP2)
    # Longer than a step, so that it is read out of the KV cache.
    seed = 700 + len(owner) + len(name) + at_call
    first, second = (Case(random_tokens(70, seed + i * 1000), 5, 0.1, 8) for i in range(2))
    before = llm.collective_rpc("slot_stats")
    llm.collective_rpc(on_rank(1, _failing(at_call), owner, name))
    (output,) = run(llm, [first])
    expected = reference(tiny_model, [replace(first, steps=0), second])
    assert_tokens_equal(tokens_of([output]), expected[:1])
    assert llm.collective_rpc("slot_delta", args=(output.request_id,)) == [None, None]
    errors = llm.collective_rpc("slot_errors")
    assert "OtherRankFailed" in errors[0][-1] and "injected" in errors[1][-1]
    (output,) = run(llm, [second])
    assert_tokens_equal(tokens_of([output]), expected[1:])
    one, other = llm.collective_rpc("slot_delta", args=(output.request_id,))
    assert one == other
    assert_delta_equal(one, expected[1], 0.1)
    for was, now in zip(before, llm.collective_rpc("slot_stats"), strict=True):
        counts = [now[key] - was[key] for key in ("failed", "optimized", "ranks_differ")]
        assert counts == [1, 1, 0]


def test_each_rank_has_the_receipts(tiny_model: str, parallel: Callable[..., Any]) -> None:
    llm = parallel(tiny_model, {"receipts": 8}, **TP2)
    options: tuple[dict[str, Any], ...] = ({}, {"loss_tokens": 9}, {"preset": "paper-vllm"})
    cases = [
        Case(random_tokens(40 + i, 860 + i), 5, 0.2, 3, settings=tuple(own.items()))
        for i, own in enumerate(options)
    ]
    outputs = run(llm, [*cases, replace(cases[0], steps=0)])
    weight = load_file(f"{tiny_model}/model.safetensors")["model.embed_tokens.weight"].double()
    answers = reference(tiny_model, cases, last_hidden=True)
    for output, answer in zip(outputs, answers, strict=False):
        one, other = llm.collective_rpc("slot_receipt", args=(output.request_id,))
        seconds = [receipt.pop("seconds") for receipt in (one, other)]
        assert one == other and min(seconds) > 0
        assert one["outcome"] == "applied" and one["prompts"] >= 1
        assert one["loss_before"] == pytest.approx(answer.losses[0], rel=2e-4)
        assert one["loss_after"] == pytest.approx(answer.losses[-1], rel=5e-3)
        assert one["last_kl"] == pytest.approx(last_kl(weight, answer), rel=5e-3, abs=1e-5)
    plain = llm.collective_rpc("slot_receipt", args=(outputs[-1].request_id,))
    assert [receipt["outcome"] for receipt in plain] == ["plain", "plain"]


def test_what_a_test_leaves_behind_on_one_rank_is_an_error(
    tiny_model: str, parallel: Callable[..., Any]
) -> None:
    llm = parallel(tiny_model, **TP2)

    def leave(worker: Any) -> None:
        if worker.rank == 1:
            registry = worker.model_runner.slot_state.registry
            registry.requests["left-1"] = TrackedRequest("left", "plain")

    def remove(worker: Any) -> None:
        worker.model_runner.slot_state.registry.requests.pop("left-1", None)

    llm.collective_rpc(leave)
    with pytest.raises(AssertionError, match=r"{'worker 1': {'plain': \['left-1'\]}}"):
        assert_nothing_left(llm)
    llm.collective_rpc(remove)


def test_what_is_not_added_on_one_rank_is_added_on_none(
    tiny_model: str, parallel: Callable[..., Any]
) -> None:
    """In 16 bits, where logits without SLOT travel in another dtype."""
    llm = parallel(tiny_model, **{**TP2, "dtype": "bfloat16"})
    case, other = (Case(random_tokens(30 + i, 840 + i), 5, 0.1, 8) for i in range(2))
    (plain,) = run(llm, [replace(case, steps=0)])
    llm.collective_rpc(
        on_rank(1, _failing(1), "slot_vllm.engine.worker.linear_head", "add_bias_rows")
    )
    (output,) = run(llm, [case])
    assert tokens_of([output]) == tokens_of([plain])
    assert [s["failed.logits"] for s in llm.collective_rpc("slot_stats")] == [1, 1]
    (output,) = run(llm, [other])
    one, two = llm.collective_rpc("slot_delta", args=(output.request_id,))
    assert one == two and one is not None


def test_what_people_read_of_a_step_may_be_missing_on_one_rank(
    tiny_model: str, parallel: Callable[..., Any]
) -> None:
    llm = parallel(tiny_model, **TP2)
    case = Case(random_tokens(30, 850), 5, 0.1, 8)
    before = [stats["failed"] for stats in llm.collective_rpc("slot_stats")]
    for owner, name in (
        ("statistics.Statistics", "observe_drops"),
        ("statistics.Statistics", "log_not_finite"),
        ("step_timer.StepTimer", "collect"),
    ):
        llm.collective_rpc(on_rank(1, _failing(1), f"slot_vllm.engine.worker.{owner}", name))
    (output,) = run(llm, [case])
    assert_tokens_equal(tokens_of([output]), reference(tiny_model, [case]))
    assert [stats["failed"] for stats in llm.collective_rpc("slot_stats")] == before
    assert all("injected" in error for error in llm.collective_rpc("slot_errors")[1][-3:])


def test_ranks_that_differ_are_found(tiny_model: str, parallel: Callable[..., Any]) -> None:
    llm = parallel(tiny_model, **TP2)
    case = Case(random_tokens(30, 800), 5, 0.1, 2)

    def wrap(worker: Any, original: Callable[..., Any]) -> Any:
        def optimize(*args: Any, **kwargs: Any) -> Any:
            module.optimize = original
            (learned,) = original(*args, **kwargs)
            learned.delta[3] += 1e-7
            return [learned]

        import slot_vllm.engine.worker.learning as module

        return optimize

    llm.collective_rpc(on_rank(0, wrap, "slot_vllm.engine.worker.learning", "optimize"))
    (output,) = run(llm, [case])
    assert_tokens_equal(tokens_of([output]), reference(tiny_model, [replace(case, steps=0)]))
    for stats, errors in zip(
        llm.collective_rpc("slot_stats"), llm.collective_rpc("slot_errors"), strict=True
    ):
        assert stats["ranks_differ"] == 1
        assert "check_ranks: the tensor-parallel ranks learned different deltas" in errors[-1]


def test_what_passes_through_the_group(tiny_model: str, parallel: Callable[..., Any]) -> None:
    """The formulas of docs/scaling.md, counted where vLLM exchanges tensors."""
    llm = parallel(tiny_model, **TP2)
    case = Case(random_tokens(41, 820), 5, 0.1, 1)

    def counting(worker: Any, original: Callable[..., Any]) -> Any:
        counted = worker.counted = getattr(worker, "counted", {})

        def call(group: Any, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            counted.setdefault(original.__name__, []).append(tensor.nbytes)
            return original(group, tensor, *args, **kwargs)

        return call

    group = "vllm.distributed.parallel_state.GroupCoordinator"
    for name in ("all_reduce", "all_gather"):
        llm.collective_rpc(on_rank(0, counting, group, name))
    run(llm, [case])
    (counted, _) = llm.collective_rpc(lambda worker: getattr(worker, "counted", None))
    model = ModelShape(64, 262, 2, 0, itemsize=4)
    rows, steps = 40, case.steps
    own = learning(model, 2, rows, steps)
    # Then the loss after the last step is wanted, whether W delta is finite, and the row of logits:
    # 160 columns a rank. There is one other rank, so that as much is received as is given.
    assert len(counted["all_gather"]) == own.collectives + 3
    assert sum(counted["all_gather"]) == own.received + 4 * 2 * rows + 4 + 4 * 160
    forward = prefill(model, 2, len(case.tokens))
    assert len(counted["all_reduce"]) == forward.collectives
    # A ring of two receives as much as each has.
    assert sum(counted["all_reduce"]) == forward.received


def test_how_often_the_hosts_agree(tiny_model: str, parallel: Callable[..., Any]) -> None:
    """As docs/scaling.md says: a prompt in one step, then two steps that only decode."""
    llm = parallel(tiny_model, **TP2)

    def counting(worker: Any, original: Callable[..., Any]) -> Any:
        counted = worker.agreements = getattr(worker, "agreements", [])

        def largest(ranks: Any, values: Any) -> Any:
            counted.extend([len(values)] if values else [])
            return original(ranks, values)

        return largest

    llm.collective_rpc(on_rank(0, counting, "slot_vllm.engine.worker.ranks.Ranks", "largest"))
    run(llm, [Case(random_tokens(41, 830), 5, 0.1, 3)])
    (agreements, _) = llm.collective_rpc(lambda worker: getattr(worker, "agreements", None))
    # check_ranks, which is for debugging, has another three.
    assert agreements == [1] * (11 + 3 + 2 * 2)


def test_prefix_hits_and_token_shifts(tiny_model: str, parallel: Callable[..., Any]) -> None:
    """Each rank keeps half of a hidden state, and a part of W."""
    llm = parallel(tiny_model, **TP2)
    prefix = random_tokens(70, 810)
    cases = [Case(prefix + random_tokens(9, 811 + i), 5, 0.1, 4) for i in range(2)]
    outputs = [run(llm, [case])[0] for case in cases]
    assert outputs[1].num_cached_tokens == 64
    expected = reference(tiny_model, cases)
    assert_tokens_equal(tokens_of(outputs), expected)
    weight = load_file(f"{tiny_model}/model.safetensors")["model.embed_tokens.weight"]
    for output, answer in zip(outputs, expected, strict=True):
        delta, other = llm.collective_rpc("slot_delta", args=(output.request_id,))
        assert delta == other
        assert_delta_equal(delta, answer, 0.1)
        shifts, others = llm.collective_rpc("slot_token_shifts", args=(output.request_id,))
        assert shifts == others
        found = torch.frombuffer(bytearray(shifts), dtype=torch.float32)
        torch.testing.assert_close(found, weight @ torch.tensor(delta), rtol=1e-5, atol=1e-6)

    def width(worker: Any) -> int:
        size: int = worker.model_runner.slot_hidden_cache.width
        return size

    assert llm.collective_rpc(width) == [32, 32]


@pytest.mark.full
@pytest.mark.skipif(not V2, reason="V1 has no batch-sharded sampling")
def test_batch_sharded_sampling(
    tiny_models: Callable[..., str], parallel: Callable[..., Any]
) -> None:
    """Each rank samples some of the requests, from all columns of their logits."""

    def gather_integers(worker: Any) -> None:
        # vLLM's kernel for CPUs does not, with and without SLOT.
        import vllm.v1.worker.gpu.sample.batch_shard as module

        gather = module.tensor_model_parallel_all_gather

        def all_gather(tensor: torch.Tensor, dim: int) -> torch.Tensor:
            return gather(tensor.view(torch.float32), dim).view(tensor.dtype)

        module.tensor_model_parallel_all_gather = all_gather

    model = tiny_models("llama", False)
    llm = parallel(model, **TP2, enable_batch_sharded_sampling=True)
    llm.collective_rpc(gather_integers)
    shards = llm.collective_rpc(lambda worker: worker.model_runner.batch_sharder is not None)
    assert shards == [True, True]
    cases = cases_of(VOCABULARY)
    assert_equal_to_one_process(llm, model, cases, [True, True], False)
    fading = [
        replace(case, steps=5, lr=1.0, settings=tuple(settings.items()))
        for case, settings in zip(cases[1:], FADING, strict=False)
    ]
    assert_tokens_equal(tokens_of(run(llm, [*fading, *cases])), reference(model, [*fading, *cases]))


async def data_parallel(model: str, cases: list[Case]) -> tuple[list[list[int]], list[Any], Any]:
    """Tokens; per case, what each engine's worker knows of its delta; each engine's counters."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine.async_llm import AsyncLLM

    arguments = AsyncEngineArgs(
        model,
        **SMALL,
        data_parallel_size=2,
        worker_extension_cls="slot_vllm",
        additional_config={"slot": SLOT},
    )
    llm = AsyncLLM.from_engine_args(arguments)

    async def generate(i: int, case: Case) -> list[int]:
        params = sampling_params(case, output_kind=RequestOutputKind.FINAL_ONLY)
        prompt = {"prompt_token_ids": list(case.tokens)}
        outputs = [output async for output in llm.generate(prompt, params, f"case-{i}")]
        return list(outputs[-1].outputs[0].token_ids)

    async def ask(method: str, *args: Any) -> list[Any]:
        # AsyncLLM.collective_rpc gives the first engine's answer alone.
        answers = await llm.engine_core.call_utility_all_async(
            "collective_rpc", method, None, args, None
        )
        return [answer for (answer,) in answers]

    try:
        tokens = await asyncio.gather(*(generate(i, case) for i, case in enumerate(cases)))
        deltas = [await ask("slot_delta", f"case-{i}") for i in range(len(cases))]
        return tokens, deltas, await ask("slot_stats")
    finally:
        llm.shutdown()


@pytest.mark.full
def test_data_parallel(tiny_model: str) -> None:
    cases = cases_of(VOCABULARY)
    expected = reference(tiny_model, cases)
    tokens, deltas, stats = asyncio.run(data_parallel(tiny_model, cases))
    assert_tokens_equal(tokens, expected)
    for case, answer, known in zip(cases, expected, deltas, strict=True):
        found = [delta for delta in known if delta is not None]
        # A request belongs to one engine, and so does its delta.
        assert len(found) == (case.steps > 0)
        if found:
            assert_delta_equal(found[0], answer, case.lr)
    assert len(stats) == 2 and all(engine["optimized"] for engine in stats)


@pytest.mark.full
def test_a_data_parallel_server(tiny_model: str, tmp_path: Path) -> None:
    cases = [case for case in cases_of(VOCABULARY) if len(case.tokens) > 1]
    options = ("--dtype", "float32", "--max-model-len", "320", "--data-parallel-size", "2")
    plugins = {"VLLM_PLUGINS": "slot_vllm,slot_stats"}
    slot = {"receipts": 100}
    with serving(tiny_model, slot, tmp_path / "log", *options, environment=plugins) as server:

        def get(path: str) -> Any:
            return httpx.get(server.url + path, timeout=60, trust_env=False).json()

        def complete(case: Case, **xargs: Any) -> Any:
            return server.client.completions.create(**body(case, **xargs))

        with ThreadPoolExecutor(8) as pool:
            completions = list(pool.map(complete, cases))
        tokens = [list(completion.choices[0].token_ids) for completion in completions]
        expected = reference(tiny_model, cases)
        assert_tokens_equal(tokens, expected)
        for case, answer, completion in zip(cases, expected, completions, strict=True):
            # Whichever engine has it.
            [receipt] = get(f"/slot/requests/{completion.id}")["receipts"]
            assert receipt["outcome"] == ("applied" if case.steps else "plain")
            if case.steps:
                assert receipt["loss_before"] == pytest.approx(answer.losses[0], rel=1e-4)
        # Whichever of the front end's processes it reaches.
        for _ in range(6):
            with pytest.raises(openai.BadRequestError, match="slot_step"):
                complete(cases[0], slot_step=3)
        assert server.said().count("SLOT 0.2.0 on the") == 2
        learned = {
            worker["engine"]: worker["optimized"] for worker in get("/slot/stats")["workers"]
        }
        assert len(learned) == 2 and all(learned.values())


@pytest.mark.full
def test_expert_parallel(tiny_models: Callable[..., str], parallel: Callable[..., Any]) -> None:
    """Each worker has half of the experts, whole. vLLM's kernel for CPUs does not know that and
    crashes, with and without SLOT: here it is told."""
    model = tiny_models("qwen3_moe", False)
    llm = parallel(model, **TP2, enable_expert_parallel=True)

    def experts(worker: Any) -> list[int]:
        modules = worker.model_runner.get_model().modules()
        return [len(m.w2_weight) for m in modules if hasattr(m, "w2_weight")]

    def map_experts(worker: Any) -> None:
        from inspect import signature

        from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts

        apply = CPUUnquantizedExperts.apply

        def mapped(self: Any, *args: Any, **kwargs: Any) -> None:
            given = signature(apply).bind(self, *args, **kwargs).arguments
            own = given["expert_map"][given["topk_ids"].long()]
            given["topk_weights"] = given["topk_weights"] * (own >= 0)
            given["topk_ids"] = own.clamp(min=0).to(given["topk_ids"].dtype)
            apply(**given)

        CPUUnquantizedExperts.apply = mapped

    assert llm.collective_rpc(experts) == [[2, 2], [2, 2]]
    llm.collective_rpc(map_experts)
    assert_equal_to_one_process(llm, model, cases_of(VOCABULARY), [True, True], not V2)


@pytest.mark.full
def test_tensor_and_pipeline_parallel(tiny_model: str, parallel: Callable[..., Any]) -> None:
    """Two stages of two ranks: four workers."""
    llm = parallel(tiny_model, **TP2, **PP2)
    assert_equal_to_one_process(llm, tiny_model, cases_of(VOCABULARY), [False, False, True, True])
