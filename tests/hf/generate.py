"""Greedy answers of ``slot_vllm.hf`` to prompts, in a process of its own: vLLM changes some
transformers classes in place. JSON in, JSON out."""

import json
import sys
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from slot_vllm.hf import slot

BATCH = 10


def answers(
    model: Any, prompts: list[list[int]], settings: dict[str, Any], new_tokens: int
) -> list[dict[str, Any]]:
    """tokens, up to and with the end of text; gaps: between the two best logits of each."""
    pad = model.generation_config.pad_token_id
    found = []
    for start in range(0, len(prompts), BATCH):
        rows = prompts[start : start + BATCH]
        width = max(map(len, rows))
        tokens = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        with slot(model, **settings):
            made = model.generate(
                input_ids=tokens,
                attention_mask=mask,
                do_sample=False,
                max_new_tokens=new_tokens,
                output_logits=True,
                return_dict_in_generate=True,
            )
        gaps = torch.stack(made.logits, 1).topk(2).values.diff().abs()[..., 0]
        for row, gap in zip(made.sequences[:, width:].tolist(), gaps.tolist(), strict=True):
            end = model.generation_config.eos_token_id
            length = row.index(end) + 1 if end in row else len(row)
            found.append({"tokens": row[:length], "gaps": gap[:length]})
    return found


def main() -> None:
    request = json.load(sys.stdin)
    model = AutoModelForCausalLM.from_pretrained(request["model"], dtype=torch.float32).eval()
    made = [
        answers(model, request["prompts"], settings, request["new_tokens"])
        for settings in request["settings"]
    ]
    json.dump(made, sys.stdout)


if __name__ == "__main__":
    main()
