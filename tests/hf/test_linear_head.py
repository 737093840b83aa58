"""Heads that are found, with their scale and soft cap, and heads that are refused."""

from typing import Any

import pytest
import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)

from slot_vllm.hf import slot
from slot_vllm.hf.linear_head import find_head
from slot_vllm.params import SlotError

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2 = {"vocab_size": 97, "n_embd": 32, "n_layer": 1, "n_head": 2}


def granite() -> Any:
    return GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=8.0)).eval()


def cohere() -> Any:
    return CohereForCausalLM(CohereConfig(**SIZES, logit_scale=0.0625)).eval()


def gemma2(soft_cap: float = 10.0) -> Any:
    return Gemma2ForCausalLM(Gemma2Config(**SIZES, final_logit_softcapping=soft_cap)).eval()


def gpt2() -> Any:
    return GPT2LMHeadModel(GPT2Config(**GPT2)).eval()


def phi() -> Any:
    model = PhiForCausalLM(PhiConfig(**SIZES)).eval()
    torch.nn.init.normal_(model.lm_head.bias)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("make", "scale", "soft_cap", "bias"),
    [
        (granite, 1 / 8, None, False),
        (cohere, 0.0625, None, False),
        (gemma2, 1.0, 10.0, False),
        (gpt2, 1.0, None, False),
        (phi, 1.0, None, True),
    ],
)
def test_found(make: Any, scale: float, soft_cap: float | None, bias: bool, dtype: Any) -> None:
    model = make().to(dtype)
    found = find_head(model)
    assert found.module is model.get_output_embeddings()
    assert found.decoder is model.base_model
    assert (found.head.scale, found.head.soft_cap) == (scale, soft_cap)
    assert (found.head.bias is not None) == bias


@pytest.mark.parametrize("make", [granite, cohere, phi])
def test_logits_are_those_of_h_plus_delta(make: Any) -> None:
    model = make()
    tokens = torch.arange(3, 20).unsqueeze(0)
    options: dict[str, Any] = {
        "max_new_tokens": 1,
        "do_sample": False,
        "return_dict_in_generate": True,
        "output_logits": True,
    }
    with slot(model, steps=3, lr=0.1, workspace_mb=4) as context:
        logits = model.generate(tokens, **options).logits[0]
    assert context.deltas is not None
    with torch.no_grad():
        hidden = model.base_model(tokens).last_hidden_state[:, -1]
        head = find_head(model).head
        z = (hidden + context.deltas) @ head.weight.T
        z = z if head.bias is None else z + head.bias
    torch.testing.assert_close(logits, head.activate(z), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_soft_cap_that_the_config_does_not_tell_is_refused(dtype: torch.dtype) -> None:
    model = phi().to(dtype)
    forward = model.lm_head.forward
    model.lm_head.forward = lambda h: 30 * torch.tanh(forward(h) / 30)
    with pytest.raises(SlotError, match="PhiForCausalLM differs from that by"):
        find_head(model)


def test_hidden_states_changed_before_the_head_are_refused() -> None:
    model = gpt2()
    hook = model.lm_head.register_forward_pre_hook(lambda _, args: (args[0] * 2,))
    with pytest.raises(SlotError, match="changed on the way"):
        find_head(model)
    hook.remove()


def test_a_quantized_head_is_refused() -> None:
    model = gpt2()
    model.lm_head = torch.nn.Identity()
    with pytest.raises(SlotError, match=r"unquantized weight .* Identity has none"):
        find_head(model)
