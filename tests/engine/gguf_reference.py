"""Greedy answers of transformers on a GGUF file, in float32: stdin to stdout in JSON.

The file's weights are rounded to bf16 first, as those of a converted directory are: without that
rounding the two are different models. ``differing`` names the directory's weights that differ.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM


def differing(model: Any, directory: Path) -> list[str]:
    """Weights of the directory that are not, bit for bit, the model's; and those it lacks."""
    own = model.state_dict()
    found, seen = [], set()
    for file in directory.glob("*.safetensors"):
        with safe_open(file, "pt") as weights:
            for name in weights.keys():  # noqa: SIM118
                seen.add(name)
                if not torch.equal(weights.get_tensor(name), own[name]):
                    found.append(name)
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    return found + sorted(set(own) - seen - tied)


@torch.no_grad()
def answer(model: Any, prompt: list[int], new_tokens: int) -> dict[str, Any]:
    """tokens: whatever ends a text among them. gaps: between the two best logits of each."""
    tokens, gaps = [], []
    given, cache = torch.tensor([prompt]), None
    for _ in range(new_tokens):
        made = model(input_ids=given, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = made.past_key_values
        best = made.logits[0, -1].topk(2)
        tokens.append(int(best.indices[0]))
        gaps.append(float(best.values[0] - best.values[1]))
        given = best.indices[:1].unsqueeze(0)
    return {"tokens": tokens, "gaps": gaps}


def main() -> None:
    request = json.load(sys.stdin)
    torch.set_num_threads(1)
    file = Path(request["file"])
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.bfloat16, attn_implementation="eager"
    ).eval()
    wrong = differing(model, Path(request["directory"]))
    torch.nn.Module.float(model)  # transformers refuses its own `float` for a model of a GGUF file
    answers = [answer(model, prompt, request["new_tokens"]) for prompt in request["prompts"]]
    json.dump({"differing": wrong, "answers": answers}, sys.stdout)


if __name__ == "__main__":
    main()
