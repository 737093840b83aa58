"""Which requests get SLOT, which an error, and which are served without it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import save_file
from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import BeamSearchParams
from vllm.v1.engine import EngineCoreRequest

from slot_vllm.engine.frontend.admission import LONG_PROMPT, AcceptedDict, Admission
from slot_vllm.engine.frontend.server import check_generation
from slot_vllm.engine.wire.resolved import RESOLVED
from slot_vllm.params import SlotConfig, SlotError
from tests.engine.cases import Case, assert_tokens_equal, random_tokens, reference
from tests.engine.generate import delta_of, run, sampling_params, stats_of, tokens_of
from tests.engine.unadmitted import unadmitted

CASE = Case(random_tokens(30, seed=1), 5, 0.1, 6)
PROMPT = {"prompt_token_ids": list(CASE.tokens)}


def test_plain_and_two_slot_engines_side_by_side(
    tiny_model: str, engine: Callable[..., Any]
) -> None:
    plain = engine(tiny_model)
    weak = engine(tiny_model, slot={"steps": 1, "lr": 0.02})
    strong = engine(tiny_model, slot={"steps": 10, "lr": 1.0})
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True, detokenize=False)
    # LLM.generate itself sets a field or two of it.
    plain.generate([PROMPT], params, use_tqdm=False)
    before = msgspec.to_builtins(params)
    for llm, steps, lr in ((plain, 0, 0.1), (weak, 1, 0.02), (strong, 10, 1.0), (plain, 0, 0.1)):
        outputs = llm.generate([PROMPT], params, use_tqdm=False)
        case = Case(CASE.tokens, steps, lr, 6)
        assert_tokens_equal(tokens_of(outputs), reference(tiny_model, [case]))
    # The caller's object went through all of them.
    assert msgspec.to_builtins(params) == before
    assert params.extra_args is None
    # The worker class is extended process-wide, but the plain engine's worker carries no state.
    with pytest.raises(SlotError, match="started without SLOT"):
        plain.collective_rpc("slot_stats")


def test_a_shared_object_that_names_settings_is_left_alone(
    tiny_model: str, engine: Callable[..., Any]
) -> None:
    extra = {"slot_steps": 3, "slot_betas": [0.9, 0.99]}
    params = SamplingParams(temperature=0, max_tokens=2, detokenize=False, extra_args=extra)
    for slot in ({}, {"steps": 0}):
        engine(tiny_model, slot=slot).generate([PROMPT], params, use_tqdm=False)
        assert params.extra_args is extra
        assert extra == {"slot_steps": 3, "slot_betas": [0.9, 0.99]}
        assert params.skip_reading_prefix_cache is not True


@pytest.mark.parametrize(
    "extra",
    [
        {"slot_steps": -1},
        {"slot_steps": True},
        {"slot_lr": "x"},
        {"slot_step": 3},
        {"slot": {"steps": 3}},
    ],
)
def test_bad_settings_are_errors(
    extra: dict[str, Any], tiny_model: str, engine: Callable[..., Any]
) -> None:
    llm = engine(tiny_model, slot={})
    with pytest.raises(VLLMValidationError, match=next(iter(extra))):
        llm.generate([PROMPT], SamplingParams(max_tokens=1, extra_args=extra), use_tqdm=False)
    assert not llm.llm_engine.has_unfinished_requests()


def test_a_removed_setting_is_an_error() -> None:
    with pytest.raises(VLLMValidationError, match=r"^slot_target: removed in 0\.2\.0 "):
        Admission(SlotConfig()).check({"slot_target": "bias"}, None)


def test_prompt_embeddings(tiny_model: str, engine: Callable[..., Any]) -> None:
    llm = engine(tiny_model, slot={}, enable_prompt_embeds=True)
    prompt = {"prompt_embeds": torch.randn(12, llm.llm_engine.model_config.get_hidden_size())}
    with pytest.raises(VLLMValidationError, match=r"slot_steps, slot_lr: .*prompt_embeddings"):
        llm.generate([prompt], sampling_params(CASE), use_tqdm=False)
    before = stats_of(llm)["bypassed"]
    params = SamplingParams(temperature=0, max_tokens=3, detokenize=False)
    (output,) = llm.generate([prompt], params, use_tqdm=False)
    assert len(output.outputs[0].token_ids) == 3
    stats = stats_of(llm)
    assert stats["bypassed"] == before + 1
    assert stats["bypassed.prompt_embeddings"] >= 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"resumable": True}, "streaming_input"),
        ({"prompt_embeds": torch.zeros(1, 1)}, "prompt_embeddings"),
        ({"prompt_token_ids": list(range(9))}, "long_prompt; allowed: at most max_prompt_tokens=8"),
    ],
)
def test_named_is_an_error_and_a_default_is_bypassed(change: dict[str, Any], reason: str) -> None:
    admission = Admission(SlotConfig(steps=5, max_prompt_tokens=8))

    def request(extra_args: dict[str, Any] | None) -> Any:
        prompt = {"prompt_token_ids": list(range(8))}
        return unadmitted(SamplingParams(extra_args=extra_args), **{**prompt, **change})

    with pytest.raises(VLLMValidationError, match=rf"slot_lr: .*{reason}"):
        admission.admit(request({"slot_lr": 0.2}), "x")
    by_default = request({"other": 1})
    own = by_default.sampling_params
    admission.admit(by_default, "x")
    assert by_default.sampling_params.extra_args[RESOLVED]["bypassed"] == reason.partition(";")[0]
    assert by_default.sampling_params.extra_args["other"] == 1
    assert by_default.sampling_params.skip_reading_prefix_cache is not True
    assert own.extra_args == {"other": 1}
    # Without steps there is nothing to refuse.
    admission.admit(request({"slot_steps": 0}), "x")


def test_a_later_prompt_of_a_begun_response_is_bypassed(
    tiny_model: str, engine: Callable[..., Any]
) -> None:
    llm = engine(tiny_model, slot={"max_prompt_tokens": 8})
    extra = {"slot_steps": 2}
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True, detokenize=False)
    params.extra_args = AcceptedDict(extra)
    outputs = llm.generate([PROMPT], params, use_tqdm=False)
    plain = Case(CASE.tokens, 0, 0.1, 6)
    assert_tokens_equal(tokens_of(outputs), reference(tiny_model, [plain]))
    assert stats_of(llm)["bypassed.long_prompt"] == 1
    params.extra_args = extra
    with pytest.raises(VLLMValidationError, match="long_prompt"):
        llm.generate([PROMPT], params, use_tqdm=False)


def test_a_later_prompt_without_a_user_s_turn_is_bypassed() -> None:
    admission = Admission(SlotConfig(steps=5))
    extra: dict[str, Any] = {"slot_loss_tokens": "user"}
    params, _ = admission.check(extra, None)
    with pytest.raises(VLLMValidationError, match=r"slot_loss_tokens='user': .* no tokenizer"):
        admission.spans(extra, params, [1, 2])
    assert admission.spans(AcceptedDict(extra), params, [1, 2]) == (None, "loss_tokens")


def test_beam_search_is_served_without(tiny_model: str, engine: Callable[..., Any]) -> None:
    slot = engine(tiny_model, slot={}, skip_tokenizer_init=False)
    plain = engine(tiny_model, skip_tokenizer_init=False)
    params = BeamSearchParams(beam_width=2, max_tokens=4, ignore_eos=True)
    with_slot, own = (
        [s.tokens for s in llm.beam_search([PROMPT], params)[0].sequences] for llm in (slot, plain)
    )
    assert with_slot == own
    stats = stats_of(slot)
    # One request, not one per beam and token.
    assert stats["bypassed"] == stats["bypassed.beam_search"] == 1
    assert stats["optimized"] == stats["plain"] == 0


@pytest.mark.parametrize("concurrency", [None, 1])
@pytest.mark.parametrize(("steps", "counter"), [(5, "bypassed.beam_search"), (0, "plain")])
def test_each_prompt_of_a_beam_search_counts_once(
    concurrency: int | None,
    steps: int,
    counter: str,
    tiny_model: str,
    engine: Callable[..., Any],
) -> None:
    llm = engine(tiny_model, slot={"steps": steps}, skip_tokenizer_init=False)
    params = BeamSearchParams(beam_width=2, max_tokens=5, ignore_eos=True)
    prompts = [PROMPT, {"prompt_token_ids": [5, 6, 7]}, PROMPT]
    llm.beam_search(prompts, params, concurrency_limit=concurrency)
    stats = stats_of(llm)
    assert stats[counter] == stats["plain"] + stats["bypassed"] == 3
    # The search is over.
    llm.generate([PROMPT], SamplingParams(max_tokens=1, detokenize=False), use_tqdm=False)
    assert stats_of(llm)["bypassed"] == stats["bypassed"]
    assert stats_of(llm)["plain"] == stats["plain"] + (steps == 0)


def test_ready_made_engine_core_requests(tiny_model: str, engine: Callable[..., Any]) -> None:
    llm = engine(tiny_model, slot={})
    core = llm.llm_engine

    def request(name: str, extra_args: dict[str, Any] | None) -> EngineCoreRequest:
        return EngineCoreRequest(
            request_id=name,
            prompt_token_ids=list(CASE.tokens),
            mm_features=None,
            sampling_params=SamplingParams(
                temperature=0,
                max_tokens=6,
                ignore_eos=True,
                detokenize=False,
                extra_args=extra_args,
            ),
            pooling_params=None,
            arrival_time=0.0,
            lora_request=None,
            cache_salt=None,
            data_parallel_rank=None,
        )

    forged: dict[str, Any] = {"slot": {"request_id": "x", "bypassed": None, "params": {}}}
    refused: list[dict[str, Any]] = [{"slot_steps": -1}, forged]
    for bad in refused:
        made = request("bad", bad)
        with pytest.raises(VLLMValidationError):
            core.add_request("bad", made, made.sampling_params)
    made = request("good", {"slot_steps": 5, "slot_lr": 0.1})
    core.add_request("good", made, made.sampling_params)
    outputs = []
    while core.has_unfinished_requests():
        outputs += [o for o in core.step() if o.finished]
    assert_tokens_equal(tokens_of(outputs), reference(tiny_model, [CASE]))
    assert delta_of(llm, outputs[0]) is not None


def _adapter(directory: Path, module: str, sizes: tuple[int, int]) -> str:
    directory.mkdir()
    torch.manual_seed(0)
    prefix = f"base_model.model.{module}"
    tensors = {
        f"{prefix}.lora_A.weight": torch.randn(4, sizes[0]),
        f"{prefix}.lora_B.weight": torch.randn(sizes[1], 4),
    }
    save_file(tensors, directory / "adapter_model.safetensors")
    settings = {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 8,
        "target_modules": [module.split(".")[-1]],
        "bias": "none",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "",
    }
    (directory / "adapter_config.json").write_text(json.dumps(settings))
    return str(directory)


def test_lora(tiny_model: str, engine: Callable[..., Any], tmp_path: Path) -> None:
    from vllm.lora.request import LoRARequest

    llm = engine(tiny_model, slot={}, enable_lora=True, max_lora_rank=8)
    size = llm.llm_engine.model_config.get_hidden_size()
    vocabulary = llm.llm_engine.model_config.get_vocab_size()
    inner = LoRARequest(
        "inner", 1, _adapter(tmp_path / "inner", "model.layers.0.mlp.down_proj", (2 * size, size))
    )
    head = LoRARequest("head", 2, _adapter(tmp_path / "head", "lm_head", (size, vocabulary)))
    with pytest.raises(VLLMValidationError, match="lora_on_head"):
        llm.generate([PROMPT], sampling_params(CASE), lora_request=head, use_tqdm=False)
    (own,) = run(llm, [CASE])
    own_delta = delta_of(llm, own)
    assert_tokens_equal(tokens_of([own]), reference(tiny_model, [CASE]))
    (adapted,) = llm.generate([PROMPT], sampling_params(CASE), lora_request=inner, use_tqdm=False)
    assert delta_of(llm, adapted) not in (None, own_delta)


def test_prefixes_and_deltas_under_an_adapter_stay_apart(
    tiny_model: str, engine: Callable[..., Any], tmp_path: Path
) -> None:
    from vllm.lora.request import LoRARequest

    options: dict[str, Any] = {"enable_lora": True, "max_lora_rank": 8}
    llm = engine(tiny_model, slot={}, **options)
    cold = engine(tiny_model, slot={"hidden_cache": "off", "delta_cache_mb": 0}, **options)
    size = llm.llm_engine.model_config.get_hidden_size()
    path = _adapter(tmp_path / "inner", "model.layers.0.mlp.down_proj", (2 * size, size))
    adapter = LoRARequest("apart", 3, path)
    prefix = random_tokens(70, seed=5)
    cases = [Case(prefix + random_tokens(n, seed=n), 5, 0.1, 6) for n in (10, 20)]

    def ask(llm: Any, case: Case, lora_request: Any) -> Any:
        prompt = {"prompt_token_ids": list(case.tokens)}
        params = sampling_params(case)
        (output,) = llm.generate([prompt], params, lora_request=lora_request, use_tqdm=False)
        return output

    for lora_request in (None, adapter):
        for case, cached in zip(cases, (0, 64), strict=True):
            before = stats_of(llm)["optimized"]
            mine, other = ask(llm, case, lora_request), ask(cold, case, lora_request)
            assert mine.num_cached_tokens == cached
            assert stats_of(llm)["optimized"] == before + 1
            assert tokens_of([mine]) == tokens_of([other])
            difference = torch.tensor(delta_of(llm, mine)) - torch.tensor(delta_of(cold, other))
            assert difference.abs().max() <= 2e-4


def test_tools_of_a_response_make_prompts_that_are_no_error_any_more() -> None:
    admission = Admission(SlotConfig(max_prompt_tokens=3))
    params = SamplingParams(extra_args={"slot_steps": 2})
    long, short = ({"type": "token", "prompt_token_ids": [1] * n} for n in (4, 3))
    with pytest.raises(VLLMValidationError, match="long_prompt"):
        check_generation(admission, long, params, None)
    check_generation(admission, short, params, None)
    assert admission.check(params.extra_args, LONG_PROMPT)[1] == LONG_PROMPT
