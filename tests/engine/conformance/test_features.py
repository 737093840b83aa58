"""SLOT under what else an engine does."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.engine.cases import (
    Case,
    assert_delta_equal,
    assert_tokens_equal,
    delta_tolerance,
    random_tokens,
    reference,
)
from tests.engine.engines import ROOMY, runner_of, scheduler_of
from tests.engine.generate import delta_of, run, sampling_params, shifts_of, stats_of, tokens_of
from tests.engine.runner import V2

NEW = 8 if V2 else 24


def _cases(seed: int, lengths: tuple[int, ...] = (6, 50, 100)) -> list[Case]:
    settings = ((5, 0.1), (0, 0.1), (3, 0.5))
    return [Case(random_tokens(n, seed + n), *settings[i % 3], NEW) for i, n in enumerate(lengths)]


def test_abort_at_any_moment(tiny_model: str, engine: Callable[..., Any]) -> None:
    llm = engine(tiny_model, slot={})
    core = llm.llm_engine
    victims = [Case(random_tokens(200, seed=i), 5, 0.1, NEW) for i in range(6)]
    survivors = _cases(600)
    for round_ in range(2 if V2 else 6):
        done: dict[str, Any] = {}
        ids = []
        for i, case in enumerate([*victims[:3], *survivors, *victims[3:]]):
            request_id = f"abort-{round_}-{i}"
            core.add_request(
                request_id, {"prompt_token_ids": list(case.tokens)}, sampling_params(case)
            )
            ids.append((request_id, case))
        steps = 0
        while core.has_unfinished_requests():
            for output in core.step():
                if output.finished:
                    done[output.request_id] = output
            # Waiting, within their prompt, and while they decode.
            if steps % 3 == round_ % 3 and steps // 3 < 6:
                victim = [r for r, c in ids if c in victims][steps // 3]
                core.abort_request([victim])
            steps += 1
        mine = [done[r] for r, c in ids if c in survivors]
        assert_tokens_equal(tokens_of(mine), reference(tiny_model, survivors))
    run(llm, [Case(random_tokens(4, seed=1), 0, 0.1, 1)])
    assert not runner_of(llm).slot_state.registry.with_slot
    assert runner_of(llm).slot_state.buffers.device_bytes == 0


@pytest.mark.parametrize("settings", [(), (("window", 6), ("half_life", 3.0))])
def test_several_samples_of_a_prompt(
    settings: tuple[tuple[str, Any], ...], tiny_model: str, engine: Callable[..., Any]
) -> None:
    case = Case(random_tokens(40, seed=11), 5, 0.5, NEW, settings=settings)
    llm = engine(tiny_model, slot={})
    params = sampling_params(case, n=3, temperature=1.0, seed=17)
    prompt = {"prompt_token_ids": list(case.tokens)}
    (together,) = llm.generate([prompt], params, use_tqdm=False)
    samples = [list(o.token_ids) for o in together.outputs]
    assert len({tuple(s) for s in samples}) == 3
    # vLLM seeds the i-th sample with seed + i.
    for i, sample in enumerate(samples):
        single = sampling_params(case, temperature=1.0, seed=17 + i)
        (alone,) = llm.generate([prompt], single, use_tqdm=False)
        assert list(alone.outputs[0].token_ids) == sample
    (expected,) = reference(tiny_model, [case])
    assert_delta_equal(delta_of(llm, together), expected, case.lr)


def test_a_seed_beside_requests_without_one(tiny_model: str, engine: Callable[..., Any]) -> None:
    llm = engine(tiny_model, slot={}, **ROOMY)
    cases = _cases(850)
    prompts = [{"prompt_token_ids": list(case.tokens)} for case in cases]

    def sampled(*seeds: int | None) -> list[list[int]]:
        sampling = [
            sampling_params(case, temperature=1.0, seed=seed)
            for case, seed in zip(cases, seeds, strict=True)
        ]
        return tokens_of(llm.generate(prompts, sampling, use_tqdm=False))

    whole = sampled(7, 8, 9)
    for one, seed in enumerate((7, 8, 9)):
        seeds = [seed if i == one else None for i in range(len(cases))]
        first, again = sampled(*seeds), sampled(*seeds)
        assert first[one] == again[one] == whole[one]
        assert first != again


def test_a_seeded_request_that_is_preempted(
    tiny_model: str, engine: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Room for the prompts, not for the answers: who came last gives up its blocks.
    llm = engine(tiny_model, slot={}, num_gpu_blocks_override=12)
    cases = [Case(random_tokens(30, seed=870 + i), 5, 0.5, NEW) for i in range(6)]
    params = [sampling_params(case, temperature=1.0, seed=i) for i, case in enumerate(cases)]
    prompts = [{"prompt_token_ids": list(case.tokens)} for case in cases]

    def asked(one: slice) -> list[list[int]]:
        return tokens_of(llm.generate(prompts[one], params[one], use_tqdm=False))

    scheduler = scheduler_of(llm)
    preempted, original = set(), scheduler._preempt_request

    def preempt(request: Any, *args: Any, **kwargs: Any) -> Any:
        # While it decodes: some tokens are drawn.
        if request.num_output_tokens:
            preempted.add(request.request_id)
        return original(request, *args, **kwargs)

    monkeypatch.setattr(scheduler, "_preempt_request", preempt)
    together = asked(slice(None))
    assert preempted
    preempted.clear()
    for i, tokens in enumerate(together):
        assert asked(slice(i, i + 1)) == [tokens]
    assert not preempted


def test_asynchronous_scheduling(
    tiny_model: str, engine: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.platforms.cpu import CpuPlatform

    check = CpuPlatform.check_and_update_config

    def check_but_keep_asynchronous(_cls: Any, vllm_config: Any) -> None:
        check(vllm_config)
        vllm_config.scheduler_config.async_scheduling = True

    # vLLM turns it off on CPUs, where it is of no use; what the runner sees is the same.
    monkeypatch.setattr(
        CpuPlatform, "check_and_update_config", classmethod(check_but_keep_asynchronous)
    )
    cases = _cases(700)
    cases.append(replace(cases[2], settings=(("window", 5), ("half_life", 3.0))))
    llm = engine(tiny_model, slot={}, async_scheduling=True, **ROOMY)
    assert llm.llm_engine.engine_core.engine_core.batch_queue is not None
    expected = reference(tiny_model, cases)
    assert_tokens_equal(tokens_of(run(llm, cases)), expected)
    # Once more, learned from hidden states of the first time.
    llm.collective_rpc("slot_forget_shared")
    outputs = run(llm, cases)
    assert [o.num_cached_tokens for o in outputs] == [0, 32, 96, 96]
    assert_tokens_equal(tokens_of(outputs), expected)
    for case, output, answer in zip(cases, outputs, expected, strict=True):
        if case.steps:
            assert_delta_equal(delta_of(llm, output), answer, case.lr)


def test_logprobs_are_adapted_and_prompt_logprobs_are_the_models_own(
    tiny_model: str, engine: Callable[..., Any]
) -> None:
    case = Case(random_tokens(60, seed=31), 5, 0.5, 4)
    plain_case = Case(case.tokens, 0, 0.1, 4)
    llm = engine(tiny_model, slot={}, logprobs_mode="raw_logits", max_logprobs=-1, **ROOMY)
    (slot,) = run(llm, [case], logprobs=-1, prompt_logprobs=2)
    (plain,) = run(llm, [plain_case], logprobs=-1, prompt_logprobs=2)
    for mine, own in zip(slot.prompt_logprobs[1:], plain.prompt_logprobs[1:], strict=True):
        assert mine.keys() == own.keys()
        assert all(abs(mine[t].logprob - own[t].logprob) < 1e-4 for t in mine)
    shift = _first_logits(slot) - _first_logits(plain)
    delta = torch.tensor(delta_of(llm, slot))
    head = runner_of(llm).slot_state.linear_head.head()
    torch.testing.assert_close(shift, head.weight @ delta, rtol=1e-3, atol=1e-3)


def _first_logits(output: Any) -> torch.Tensor:
    position = output.outputs[0].logprobs[0]
    return torch.tensor([position[t].logprob for t in range(len(position))])


@pytest.mark.parametrize("lr", [1e-4, 1e-3])
def test_in_bf16_a_small_delta_survives(
    lr: float, tiny_models: Callable[[str, bool], str], engine: Callable[..., Any]
) -> None:
    llm = engine(
        tiny_models("llama", False),
        slot={},
        dtype="bfloat16",
        logprobs_mode="raw_logits",
        max_logprobs=-1,
        **ROOMY,
    )
    tokens = random_tokens(60, seed=41)
    (slot,) = run(llm, [Case(tokens, 5, lr, 1)], logprobs=-1)
    (plain,) = run(llm, [Case(tokens, 0, lr, 1)], logprobs=-1)
    shift = _first_logits(slot) - _first_logits(plain)
    head = runner_of(llm).slot_state.linear_head.head()
    expected = head.weight.float() @ torch.tensor(delta_of(llm, slot))
    assert (shift - expected).norm() <= 0.05 * expected.norm()
    # In float32, not in the model's dtype.
    torch.testing.assert_close(shifts_of(llm, slot), expected)
    # The published rounding, h + delta in bf16, loses most of it.
    rounded = {"slot_steps": 5, "slot_lr": lr, "slot_rounding": "model"}
    params = sampling_params(Case(tokens, 5, lr, 1), logprobs=-1)
    params.extra_args = rounded
    (lost,) = llm.generate([{"prompt_token_ids": list(tokens)}], [params], use_tqdm=False)
    lost_shift = _first_logits(lost) - _first_logits(plain)
    assert (lost_shift - expected).norm() > 0.05 * expected.norm()


def test_published_rounding_adds_delta_to_the_hidden_states(
    tiny_model: str, engine: Callable[..., Any]
) -> None:
    # In float32 nothing is rounded away, so both ways agree, side by side in one batch.
    case = Case(random_tokens(60, seed=51), 5, 0.1, NEW)
    llm = engine(tiny_model, slot={})
    params = [sampling_params(case), sampling_params(case)]
    params[1].extra_args = {**params[1].extra_args, "slot_rounding": "model"}
    outputs = llm.generate([{"prompt_token_ids": list(case.tokens)}] * 2, params, use_tqdm=False)
    assert_tokens_equal(tokens_of(outputs), reference(tiny_model, [case, case]))


def test_structured_output(tiny_model: str, engine: Callable[..., Any]) -> None:
    from vllm.sampling_params import StructuredOutputsParams

    llm = engine(tiny_model, slot={}, skip_tokenizer_init=False, **ROOMY)
    tokenizer = llm.get_tokenizer()
    allowed = tuple(tokenizer.encode("abcd", add_special_tokens=False))
    assert len(allowed) == 4
    cases = [
        Case(random_tokens(20 + i, seed=90 + i), steps, lr, NEW, allowed)
        for i, (steps, lr) in enumerate(((5, 0.5), (0, 0.1), (5, 1.0)))
    ]
    regex = StructuredOutputsParams(regex=f"[abcd]{{{NEW}}}")
    outputs = run(llm, cases, structured_outputs=regex)
    assert_tokens_equal(tokens_of(outputs), reference(tiny_model, cases))


def test_reloaded_weights(tiny_model: str, engine: Callable[..., Any], tmp_path: Path) -> None:
    other = str(shutil.copytree(tiny_model, tmp_path / "other"))
    file = tmp_path / "other/model.safetensors"
    # Of V1 on a CPU vLLM's reload does not reach what it packs: matrices of linear layers and head.
    weights = load_file(file)
    weights["model.embed_tokens.weight" if V2 else "model.norm.weight"] *= 1.5
    save_file(weights, file)
    case = Case(random_tokens(60, seed=95), 5, 0.1, NEW)

    def learned(llm: Any) -> tuple[list[int], Tensor]:
        before = stats_of(llm)["optimized"]
        (output,) = run(llm, [case])
        assert stats_of(llm)["optimized"] == before + 1
        delta = delta_of(llm, output)
        assert delta is not None
        return tokens_of([output])[0], torch.tensor(delta)

    # No other test's.
    options = {**ROOMY, "max_num_seqs": 7}
    fresh = {model: learned(engine(model, slot={}, **options)) for model in (tiny_model, other)}
    assert fresh[tiny_model][0] != fresh[other][0]
    llm = engine(tiny_model, slot={}, **options)
    for model in (other, tiny_model):
        llm.collective_rpc("reload_weights", kwargs={"weights_path": model})
        # What vLLM's cache holds of the old weights is its caller's to drop; a delta is not.
        llm.reset_prefix_cache()
        tokens, delta = learned(llm)
        assert tokens == fresh[model][0]
        assert (delta - fresh[model][1]).abs().max() <= delta_tolerance(case.lr)


@pytest.mark.any_runner
def test_a_failure_of_the_optimizer_costs_only_the_delta(
    tiny_model: str, engine: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = engine(tiny_model, slot={})
    before = stats_of(llm)["failed"]
    case = Case(random_tokens(30, seed=71), 5, 0.1, NEW)

    def broken(*_args: Any, **_kwargs: Any) -> Any:
        raise RuntimeError("injected")

    with monkeypatch.context() as patch:
        patch.setattr("slot_vllm.engine.worker.learning.optimize", broken)
        (output,) = run(llm, [case])
    plain = Case(case.tokens, 0, 0.1, NEW)
    assert_tokens_equal(tokens_of([output]), reference(tiny_model, [plain]))
    assert stats_of(llm)["failed"] == before + 1
    assert "injected" in llm.collective_rpc("slot_errors")[0][-1]
