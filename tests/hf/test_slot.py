"""SLOT around transformers' generate against the paper's loop in float64."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from slot_vllm.hf import slot
from slot_vllm.params import SlotError
from tests.engine.cases import (
    Case,
    assert_delta_equal,
    assert_tokens_equal,
    random_tokens,
    reference,
)

STEPS, LR, NEW_TOKENS = 5, 0.1, 20
LENGTHS = (1, 2, 17, 64)
CASES = [Case(random_tokens(n, seed=n), STEPS, LR, NEW_TOKENS) for n in LENGTHS]
PADDING = 0


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLOT_STEPS", "SLOT_LR", "CHOT_STEPS", "CHOT_LR"):
        monkeypatch.delenv(name, raising=False)


def load(path: str, dtype: torch.dtype = torch.float32) -> Any:
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="eager")
    model.generation_config.eos_token_id = None
    return model.eval()


@pytest.fixture(scope="module")
def loaded(tiny_model: str) -> Any:
    return load(tiny_model)


@pytest.fixture
def model(loaded: Any) -> Iterator[Any]:
    """A tiny Qwen2, which must have no hooks after the test."""
    yield loaded
    assert hooks(loaded) == 0
    assert "generate" not in vars(loaded)


def hooks(model: Any) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def padded(side: str, prompts: list[tuple[int, ...]]) -> dict[str, Tensor]:
    width = max(map(len, prompts))
    tokens = torch.full((len(prompts), width), PADDING)
    mask = torch.zeros_like(tokens)
    for i, prompt in enumerate(prompts):
        where = slice(width - len(prompt), width) if side == "left" else slice(len(prompt))
        tokens[i, where] = torch.tensor(prompt)
        mask[i, where] = 1
    return {"input_ids": tokens, "attention_mask": mask}


def batch(side: str = "left") -> dict[str, Tensor]:
    return padded(side, [case.tokens for case in CASES])


def greedy(model: Any, inputs: dict[str, Tensor], **options: Any) -> Any:
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, **options}
    return model.generate(**inputs, pad_token_id=PADDING, **options)


def new_tokens(model: Any, inputs: dict[str, Tensor], **options: Any) -> list[list[int]]:
    rows: list[list[int]] = greedy(model, inputs, **options)[
        :, inputs["input_ids"].shape[1] :
    ].tolist()
    return rows


def on(model: Any, **settings: Any) -> Any:
    return slot(model, **{"steps": STEPS, "lr": LR, "workspace_mb": 8, **settings})


@pytest.mark.parametrize(
    ("architecture", "tied"), [("qwen2", True), ("llama", False), ("gemma2", True)]
)
def test_a_batch_of_different_prompts(
    tiny_models: Callable[[str, bool], str], architecture: str, tied: bool
) -> None:
    path = tiny_models(architecture, tied)
    model = load(path)
    with on(model, report_loss=True) as context:
        tokens = new_tokens(model, batch())
        answers = reference(path, CASES)
        assert_tokens_equal(tokens, answers)
        for delta, losses, answer in zip(context.deltas, context.losses, answers, strict=True):
            assert_delta_equal(delta.tolist(), answer, LR)
            torch.testing.assert_close(
                losses, torch.tensor(answer.losses), rtol=2e-4, atol=2e-4, check_dtype=False
            )
    plain_tokens = new_tokens(model, batch())
    assert plain_tokens[1:] != tokens[1:]
    # A prompt of one token has nothing to learn from.
    assert plain_tokens[0] == tokens[0]


@pytest.mark.parametrize(
    "settings",
    [
        {"preset": "paper-vllm"},
        {"loss_tokens": 9},
        {"window": 4, "half_life": 3.0},
        {"half_life": 2.0, "rounding": "model"},
    ],
)
def test_further_settings(model: Any, tiny_model: str, settings: dict[str, Any]) -> None:
    cases = [replace(case, settings=tuple(settings.items())) for case in CASES]
    answers = reference(tiny_model, cases)
    with on(model, **settings) as context:
        tokens = new_tokens(model, batch())
        for delta, answer in zip(context.deltas, answers, strict=True):
            assert_delta_equal(delta.tolist(), answer, LR)
    assert_tokens_equal(tokens, answers)


def test_tokens_that_only_the_tokenizer_can_tell(model: Any, tiny_model: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    chat = [{"role": "user", "content": "How many?"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    tokens = tokenizer.encode(text, add_special_tokens=False)
    counts = tuple(0 < i < len(tokens) - 2 for i in range(len(tokens)))
    case = Case(tuple(tokens), STEPS, LR, 4, settings=(("loss_tokens", "user"),), counts=counts)
    (answer,) = reference(tiny_model, [case])
    with slot(model, tokenizer, loss_tokens="user", steps=STEPS, lr=LR, workspace_mb=8) as context:
        greedy(model, {"input_ids": torch.tensor([tokens])}, max_new_tokens=4)
        assert context.deltas is not None
        assert_delta_equal(context.deltas[0].tolist(), answer, LR)
    with pytest.raises(SlotError, match="needs the tokenizer"):
        slot(model, loss_tokens="text")


def test_a_prompt_alone_and_a_new_call_learns_anew(model: Any, tiny_model: str) -> None:
    with on(model) as context:
        for case, answer in zip(CASES, reference(tiny_model, CASES), strict=True):
            alone = {"input_ids": torch.tensor([case.tokens])}
            assert_tokens_equal(new_tokens(model, alone), [answer])
            assert context.deltas.shape == (1, model.config.hidden_size)
            assert_delta_equal(context.deltas[0].tolist(), answer, LR)


def test_padding_on_the_right(model: Any, tiny_model: str) -> None:
    # There transformers goes on from the padding, so only the deltas are those of single prompts.
    inputs = batch("right")
    options = {"max_new_tokens": 1, "return_dict_in_generate": True, "output_logits": True}
    plain = greedy(model, inputs, **options).logits[0]
    with on(model) as context:
        shifted = greedy(model, inputs, **options).logits[0]
    for delta, answer in zip(context.deltas, reference(tiny_model, CASES), strict=True):
        assert_delta_equal(delta.tolist(), answer, LR)
    expected = plain + context.deltas @ model.lm_head.weight.T
    torch.testing.assert_close(shifted, expected.detach(), rtol=1e-4, atol=1e-4)


def test_without_a_cache_only_the_prompt_is_learned_from(model: Any, tiny_model: str) -> None:
    with on(model):
        tokens = new_tokens(model, batch(), use_cache=False)
    assert_tokens_equal(tokens, reference(tiny_model, CASES))


def test_several_sequences_per_prompt(model: Any) -> None:
    torch.manual_seed(0)
    with on(model) as context:
        tokens = new_tokens(model, batch(), do_sample=True, num_return_sequences=3)
    assert len(tokens) == len(context.deltas) == 3 * len(CASES)
    for i in range(len(CASES)):
        # A busy machine splits the sums over its threads differently from one to the next.
        torch.testing.assert_close(
            context.deltas[3 * i], context.deltas[3 * i + 2], rtol=0, atol=2e-4
        )


def test_after_its_window_a_delta_changes_no_bit(tiny_model: str) -> None:
    model = load(tiny_model, torch.bfloat16)
    own: list[Tensor] = []
    adapted: list[Tensor] = []
    model.lm_head.register_forward_hook(lambda *call: own.append(call[2]))
    with on(model, window=1):
        own.clear()
        model.lm_head.register_forward_hook(lambda *call: adapted.append(call[2]))
        greedy(model, batch(), max_new_tokens=3)
    assert not torch.equal(own[0].float(), adapted[0])
    assert all(a is b for a, b in zip(own[1:], adapted[1:], strict=True)) and len(own) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_steps_change_no_bit(tiny_model: str, dtype: torch.dtype) -> None:
    model = load(tiny_model, dtype)
    options = {"return_dict_in_generate": True, "output_logits": True}
    plain = greedy(model, batch(), **options)
    with on(model, steps=0) as context:
        same = greedy(model, batch(), **options)
    assert torch.equal(plain.sequences, same.sequences)
    assert all(torch.equal(a, b) for a, b in zip(plain.logits, same.logits, strict=True))
    assert not context.deltas.any()


def test_a_small_delta_survives_in_bfloat16(tiny_model: str) -> None:
    model = load(tiny_model, torch.bfloat16)
    options = {"max_new_tokens": 1, "return_dict_in_generate": True, "output_logits": True}
    plain = greedy(model, batch(), **options).logits[0]
    with on(model, lr=1e-5, rounding="exact") as context:
        exact = greedy(model, batch(), **options).logits[0]
    shift = context.deltas @ model.lm_head.weight.detach().float().T
    torch.testing.assert_close(exact - plain, shift, rtol=1e-2, atol=1e-5)
    with on(model, lr=1.0, rounding="model") as context:
        rounded = greedy(model, batch(), **options).logits[0]
    shift = context.deltas @ model.lm_head.weight.detach().float().T
    difference = (rounded - plain - shift).abs().max()
    assert 0 < difference < 0.05 * shift.abs().max()


def test_calls_outside_generate_are_left_alone(model: Any) -> None:
    inputs = batch()
    with torch.no_grad():
        plain = model(**inputs).logits
        with on(model):
            greedy(model, inputs, max_new_tokens=2)
            assert torch.equal(model(**inputs).logits, plain)


def test_the_hooks_are_gone_afterwards(model: Any) -> None:
    plain = new_tokens(model, batch())
    with pytest.raises(KeyError), on(model):
        assert hooks(model) > 0
        raise KeyError
    assert hooks(model) == 0
    assert new_tokens(model, batch()) == plain


def test_a_context_can_be_entered_again(model: Any) -> None:
    context = on(model)
    with context:
        first = new_tokens(model, batch())
    with context:
        assert new_tokens(model, batch()) == first


def test_contexts_do_not_nest(model: Any) -> None:
    with on(model), pytest.raises(SlotError, match="do not nest"), on(model):
        pass


def test_training_mode_is_refused(model: Any) -> None:
    try:
        model.train()
        with pytest.raises(SlotError, match="evaluation mode"), on(model):
            pass
        model.eval()
        with on(model):
            model.train()
            with pytest.raises(SlotError, match="evaluation mode"):
                greedy(model, batch())
    finally:
        model.eval()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 2}, r"num_beams=2: .*beam search"),
        ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens: "),
        ({"prefill_chunk_size": 4}, "prefill_chunk_size: "),
        ({"guidance_scale": 1.5}, "guidance_scale=1.5: "),
        ({"cache_implementation": "static"}, "past_key_values: .* StaticCache"),
        ({"cache_implementation": "paged"}, "cache_implementation='paged': "),
    ],
)
def test_modes_that_cannot_have_slot(model: Any, options: dict[str, Any], message: str) -> None:
    with on(model), pytest.raises(SlotError, match=message):
        greedy(model, batch(), **options)


def test_beams_of_a_generation_config_are_seen(model: Any) -> None:
    model.generation_config.num_beams = 2
    try:
        with on(model), pytest.raises(SlotError, match="num_beams=2"):
            greedy(model, batch())
    finally:
        model.generation_config.num_beams = None


def test_prompts_that_cannot_be_seen(model: Any) -> None:
    inputs = batch()
    embeds = model.get_input_embeddings()(inputs["input_ids"]).detach()
    with on(model), pytest.raises(SlotError, match="inputs_embeds: "):
        greedy(model, {"inputs_embeds": embeds, "attention_mask": inputs["attention_mask"]})
    with torch.no_grad():
        cache = model(input_ids=inputs["input_ids"][:, :-1], use_cache=True).past_key_values
    with on(model), pytest.raises(SlotError, match="past_key_values: holds 63 tokens"):
        model.generate(inputs["input_ids"], past_key_values=cache, max_new_tokens=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": -1}, r"slot\.steps=-1: "),
        ({"lr": "0.1"}, r"slot\.lr='0\.1': a number is required"),
        ({"rate": 0.1}, r"slot\.rate: unknown key"),
        ({"target": "hidden"}, r"slot\.target: removed in 0\.2\.0 .*: delta on the hidden"),
        ({"keep_deltas": 1}, r"slot\.keep_deltas: only of a vLLM engine"),
        ({"receipts": 1}, r"slot\.receipts: only of a vLLM engine"),
    ],
)
def test_settings_that_cannot_be(model: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SlotError, match=message):
        slot(model, **settings)


def test_settings_from_the_environment(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHOT_STEPS", "2")
    with slot(model, workspace_mb=8) as context:
        greedy(model, batch(), max_new_tokens=1)
    assert [len(losses) for losses in context.losses] == [0, 2, 2, 2]


def test_a_delta_that_is_not_finite_is_dropped(model: Any) -> None:
    plain = new_tokens(model, batch())
    weight = model.lm_head.weight
    with on(model) as context:
        context._found.head.weight.data = torch.full_like(weight, torch.inf)
        with pytest.warns(UserWarning, match="not finite"):
            new_tokens(model, batch(), max_new_tokens=1)
        assert not context.deltas.any()
    assert new_tokens(model, batch()) == plain


def test_what_is_no_causal_language_model() -> None:
    with pytest.raises(SlotError, match=r"PreTrainedModel with generate.*; this is a Linear"):
        slot(torch.nn.Linear(2, 2))
