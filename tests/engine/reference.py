"""SLOT as the paper writes it, on plain transformers, greedy, float32: stdin to stdout in JSON."""

import json
import sys
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from slot_vllm.optim.head import Head
from slot_vllm.optim.optimize import Prompt
from slot_vllm.optim.oracle import oracle
from slot_vllm.params import SlotParams


@torch.no_grad()
def answer(model: Any, case: dict[str, Any]) -> dict[str, Any]:
    soft_cap = getattr(model.config, "final_logit_softcapping", None)
    head = Head(model.lm_head.weight.detach(), None, soft_cap)
    tokens = torch.tensor(case["tokens"])
    params = SlotParams(steps=case["steps"], lr=case["lr"], **dict(case["settings"]))

    def last_hidden(ids: Tensor) -> Tensor:
        hidden: Tensor = model.model(input_ids=ids.unsqueeze(0)).last_hidden_state[0]
        return hidden

    last = case["last"]
    counts = case["counts"] and case["counts"][-last:]
    learned = oracle(head, Prompt(last_hidden(tokens)[-last:], tokens[-last:], params, counts))
    delta = learned.delta
    bias = 0.0 if learned.bias is None else learned.bias
    new_tokens: list[int] = []
    gaps: list[float] = []
    for _ in range(case["new_tokens"]):
        hidden = last_hidden(tokens)[-1].double() + delta
        logits = head.activate(head.weight.double() @ hidden + bias)
        if case["allowed"]:
            mask = torch.full_like(logits, -torch.inf)
            mask[case["allowed"]] = 0
            logits += mask
        best = logits.topk(2)
        new_tokens.append(int(best.indices[0]))
        gaps.append(float(best.values[0] - best.values[1]))
        tokens = torch.cat([tokens, best.indices[:1]])
    return {
        "tokens": new_tokens,
        "gaps": gaps,
        "delta": delta.tolist(),
        "losses": learned.losses.tolist(),
        "scale": learned.scale.item(),
    }


def main() -> None:
    request = json.load(sys.stdin)
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(
        request["model"], dtype=torch.float32, attn_implementation="eager"
    ).eval()
    json.dump([answer(model, case) for case in request["cases"]], sys.stdout)


if __name__ == "__main__":
    main()
