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
    AutoModelForCausalLM,
    Gemma2Config,
    GenerationConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

SPECIAL_TOKENS = ("<|pad|>", "<|begin|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# Wide enough that the two best logits of a greedy step rarely tie.
INITIALIZER_RANGE = 0.2
CONFIGS = {"qwen2": Qwen2Config, "llama": LlamaConfig, "gemma2": Gemma2Config}


def make_tiny_model(
    directory: Path,
    architecture: str = "qwen2",
    tied: bool = True,
    seed: int = 0,
    vocabulary: int | None = None,
) -> None:
    """Write the model and its tokenizer to ``directory``, whole or not at all.

    architecture: qwen2, llama or gemma2 (with soft caps). tied: share embeddings and head.
    vocabulary: tokens of the model, by default the tokenizer's.
    """
    tokenizer = _tokenizer()
    config = _config(architecture, tied, tokenizer)
    config.vocab_size = vocabulary or config.vocab_size
    torch.manual_seed(seed)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    if architecture == "gemma2":
        # Gemma scales its embeddings up. Unless what the layers add is scaled up too, a tied model
        # repeats its last token for ever.
        for layer in model.model.layers:
            torch.nn.init.constant_(layer.post_attention_layernorm.weight, 8.0)
            torch.nn.init.constant_(layer.post_feedforward_layernorm.weight, 8.0)
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
    if architecture == "gemma2":
        options |= {
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "sliding_window": 1024,
            "final_logit_softcapping": 10.0,
            "attn_logit_softcapping": None,
        }
    return CONFIGS[architecture](**options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--architecture", choices=sorted(CONFIGS), default="qwen2")
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
