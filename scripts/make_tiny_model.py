"""Build a tiny random causal language model with a byte-level tokenizer, for tests and a first run.

Its answers mean nothing; its files are those of a real model, so that everything around them runs.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedTokenizerFast,
)

SPECIAL_TOKENS = ("<|pad|>", "<|begin|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# Wide enough that the two best logits of a greedy step rarely tie.
INITIALIZER_RANGE = 0.2
_GEMMA = {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 1024}
# So many experts that routing differs from token to token.
_EXPERTS = {"moe_intermediate_size": 64, "num_experts": 4, "num_experts_per_tok": 2}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 1024,
}
# As the published models have it; with the default rope vLLM's CPU build and transformers differ.
_LATENT_ROPE = {**_YARN, "mscale": 0.707, "mscale_all_dim": 0.707}
# Heads of a state layer times their width is twice the hidden size.
_MAMBA_2 = {
    "mamba_n_heads": 4,
    "mamba_d_head": 32,
    "mamba_d_state": 32,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 32,
}
# Of a rotary part of three quarters.
_FACTORS = 12
# What an architecture's configuration has beyond what all have; the key is its model_type, unless
# it says another.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "bloom": {},
    "cohere": {"logit_scale": 2.0},
    "cohere2": {"logit_scale": 2.0, "sliding_window": 1024, "sliding_window_pattern": 2},
    "deepseek_v2": {
        "moe_intermediate_size": 64,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "kv_lora_rank": 32,
        "q_lora_rank": None,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 32,
        "v_head_dim": 32,
        "num_key_value_heads": 2,
        "rope_parameters": _LATENT_ROPE,
    },
    "deepseek_v3": {
        "moe_intermediate_size": 64,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "n_group": 2,
        "topk_group": 1,
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "first_k_dense_replace": 1,
        "kv_lora_rank": 32,
        "q_lora_rank": 32,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 32,
        "v_head_dim": 32,
        "num_key_value_heads": 2,
        "num_nextn_predict_layers": 0,
        "rope_parameters": _LATENT_ROPE,
    },
    "exaone4": {"sliding_window": 64, "sliding_window_pattern": 2},
    "falcon": {"new_decoder_architecture": True, "num_kv_heads": 1},
    "falcon_h1": {**_MAMBA_2, "mamba_d_ssm": 128, "lm_head_multiplier": 2.0},
    "gemma": {"head_dim": 32},
    "gemma2": {**_GEMMA, "final_logit_softcapping": 10.0, "attn_logit_softcapping": None},
    "gemma3_text": _GEMMA,
    "glm4": {"head_dim": 32},
    "glm4_moe": {
        "head_dim": 32,
        "moe_intermediate_size": 64,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "num_nextn_predict_layers": 0,
    },
    "gpt2": {},
    "gpt_neox": {},
    "gpt_oss": {
        "head_dim": 32,
        "intermediate_size": 64,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 64,
        "rope_parameters": {**_YARN, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False},
    },
    "gptj": {"rotary_dim": 16},
    "granite": {"logits_scaling": 0.5, "residual_multiplier": 0.5, "embedding_multiplier": 2.0},
    "granitemoehybrid": {
        **_MAMBA_2,
        "layer_types": ["linear_attention", "full_attention"],
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 128,
        "position_embedding_type": "rope",
        "logits_scaling": 0.5,
    },
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "num_experts": 4,
        "mamba_d_state": 16,
    },
    "lfm2": {
        "layer_types": ["conv", "full_attention"],
        "block_auto_adjust_ff_dim": False,
        "conv_dim": 64,
        "block_dim": 64,
    },
    "llama": {},
    "llama4_text": {
        "head_dim": 32,
        "intermediate_size": 64,
        "intermediate_size_mlp": 128,
        "num_local_experts": 4,
        "interleave_moe_layer_step": 2,
        "no_rope_layer_interval": 2,
        "attention_chunk_size": 64,
    },
    "minicpm3": {
        "q_lora_rank": 32,
        "kv_lora_rank": 32,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 16,
        "v_head_dim": 32,
        "dim_model_base": 32,
        "num_key_value_heads": 2,
    },
    "ministral3": {
        "head_dim": 32,
        "rope_parameters": {
            **_YARN,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.1,
        },
    },
    "mistral": {"head_dim": 32, "sliding_window": 64},
    "mixtral": {"num_local_experts": 4},
    "nemotron": {"head_dim": 32},
    "nemotron_h": {
        "layers_block_type": ["linear_attention", "mlp", "full_attention", "mlp"],
        "head_dim": 32,
        "mamba_num_heads": 4,
        "mamba_head_dim": 32,
        "ssm_state_size": 32,
        "n_groups": 1,
        "chunk_size": 32,
    },
    "olmo2": {},
    "olmoe": _EXPERTS,
    "opt": {"ffn_dim": 128, "word_embed_proj_dim": 64},
    "phi": {},
    "phi3": {},
    "phi4": {
        "model_type": "phi3",
        "original_max_position_embeddings": 1024,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.75,
            "short_factor": [1.0] * _FACTORS,
            "long_factor": [2.0] * _FACTORS,
        },
    },
    "qwen2": {},
    "qwen3": {"head_dim": 32},
    "qwen3_moe": {**_EXPERTS, "head_dim": 32},
    "qwen3_next": {
        **_EXPERTS,
        "layer_types": ["linear_attention", "full_attention"],
        "head_dim": 32,
        "linear_key_head_dim": 32,
        "linear_value_head_dim": 32,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "shared_expert_intermediate_size": 64,
    },
    "smollm3": {},
    "stablelm": {},
    "starcoder2": {"sliding_window": None},
}
# Those that vLLM knows only with tied embeddings.
TIED = ("bloom", "cohere", "cohere2", "gemma", "gemma2", "gemma3_text", "lfm2")
# They normalize what a layer adds and scale their embeddings up: unless what is added is scaled up
# too, a tied model repeats its last token for ever.
_NORMALIZED = ("gemma2", "gemma3_text")


def make_tiny_model(
    directory: Path,
    architecture: str = "qwen2",
    tied: bool = True,
    seed: int = 0,
    vocabulary: int | None = None,
) -> None:
    """Write the model and its tokenizer to ``directory``, whole or not at all.

    architecture: a key of ``ARCHITECTURES``. tied: share embeddings and head, where it can.
    vocabulary: tokens of the model, by default the tokenizer's.
    """
    tokenizer = _tokenizer()
    config = _config(architecture, tied, tokenizer)
    config.vocab_size = vocabulary or config.vocab_size
    torch.manual_seed(seed)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    if architecture in _NORMALIZED:
        for layer in model.model.layers:
            torch.nn.init.constant_(layer.post_attention_layernorm.weight, 8.0)
            torch.nn.init.constant_(layer.post_feedforward_layernorm.weight, 8.0)
    for name, bias in model.named_parameters():
        if name == "lm_head.bias":
            # transformers makes it zero, which would hide a head that forgets it.
            torch.nn.init.normal_(bias)
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
    )
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent) as temporary:
        whole = Path(temporary) / "model"
        model.save_pretrained(whole)
        tokenizer.save_pretrained(whole)
        whole.rename(directory)


def _tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*SPECIAL_TOKENS, *alphabet]
    tokenizer = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        bos_token="<|begin|>",
        eos_token="<|end|>",
        chat_template=CHAT_TEMPLATE,
    )


def _config(architecture: str, tied: bool, tokenizer: PreTrainedTokenizerFast) -> Any:
    # head_dim 32 is the least that vLLM's CPU attention takes. The vocabulary is no multiple of
    # 64, so vLLM pads it.
    options: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 4096,
        "initializer_range": INITIALIZER_RANGE,
        "tie_word_embeddings": tied,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    own = dict(ARCHITECTURES[architecture])
    model_type = own.pop("model_type", architecture)
    known = AutoConfig.for_model(model_type)
    options = {name: value for name, value in options.items() if hasattr(known, name)}
    return AutoConfig.for_model(model_type, **(options | own))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--architecture", choices=sorted(ARCHITECTURES), default="qwen2")
    parser.add_argument("--untied", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vocabulary", type=int, help="tokens of the model")
    arguments = parser.parse_args()
    if arguments.directory.exists():
        print(f"{arguments.directory} is there already")
        return
    make_tiny_model(
        arguments.directory,
        arguments.architecture,
        not arguments.untied,
        arguments.seed,
        arguments.vocabulary,
    )
    print(f"{arguments.directory}: a tiny random {arguments.architecture} model")


if __name__ == "__main__":
    main()
