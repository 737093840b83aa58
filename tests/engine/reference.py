"""SLOT as the paper writes it, on plain transformers, greedy, float32: stdin to stdout in JSON."""

import json
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from slot_vllm.optim.head import Head
from slot_vllm.optim.optimize import Prompt
from slot_vllm.optim.oracle import oracle
from slot_vllm.params import SlotParams


def head_of(model: Any) -> Head:
    """The head by the names that transformers' configurations have for what follows it."""
    config, linear = model.config, model.get_output_embeddings()
    soft_cap = getattr(config, "final_logit_softcapping", None)
    scale = getattr(config, "logit_scale", getattr(config, "lm_head_multiplier", 1.0))
    if config.model_type != "minicpm3":  # which divides the head's input by it
        scale /= getattr(config, "logits_scaling", 1.0)
    bias = None if linear.bias is None else linear.bias.detach()
    return Head(linear.weight.detach(), bias, soft_cap, scale)


class Watched:
    """A model, and what its head gets: whatever an architecture calls its parts."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._seen: list[Tensor] = []
        model.get_output_embeddings().register_forward_pre_hook(
            lambda _, inputs: self._seen.append(inputs[0])
        )
        self.head = head_of(model)
        tokens = torch.arange(2, 34) % model.config.vocab_size
        difference = self.head.activate(self._z(self.last_hidden(tokens))) - self._logits
        # Else this is no reference for the model.
        assert difference.abs().max() < 1e-3, f"the head differs by {difference.abs().max()}"

    def last_hidden(self, tokens: Tensor) -> Tensor:
        """(n, d), the head's input for all n tokens."""
        self._seen.clear()
        self._logits: Tensor = self._model(input_ids=tokens.unsqueeze(0), use_cache=False).logits[0]
        (hidden,) = self._seen
        return hidden[0]

    def logits(self, hidden: Tensor) -> Tensor:
        """Of (d,) hidden states, in float64."""
        return self.head.activate(self._z(hidden))

    def _z(self, hidden: Tensor) -> Tensor:
        z = hidden.double() @ self.head.weight.double().T
        return z if self.head.bias is None else z + self.head.bias.double()


@torch.no_grad()
def answer(model: Watched, case: dict[str, Any]) -> dict[str, Any]:
    tokens = torch.tensor(case["tokens"])
    params = SlotParams(steps=case["steps"], lr=case["lr"], **dict(case["settings"]))
    head, last_hidden, last = model.head, model.last_hidden, case["last"]
    counts = case["counts"] and case["counts"][-last:]
    prompt = last_hidden(tokens)
    learned = oracle(head, Prompt(prompt[-last:], tokens[-last:], params, counts))
    delta = learned.delta
    new_tokens: list[int] = []
    gaps: list[float] = []
    for t in range(case["new_tokens"]):
        left = 1.0 if params.half_life is None else 0.5 ** (t / params.half_life)
        if params.window is not None and t >= params.window:
            left = 0.0
        hidden = last_hidden(tokens)[-1].double() + left * delta
        logits = model.logits(hidden)
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
        "last_hidden": prompt[-1].tolist(),
    }


def answers(directory: str, cases: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """In a process that runs no vLLM, which changes some of transformers' classes in place."""
    model = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        watched = Watched(model)
    return [answer(watched, case) for case in cases]


def main() -> None:
    request = json.load(sys.stdin)
    torch.set_num_threads(1)
    json.dump(answers(request["model"], request["cases"]), sys.stdout)


if __name__ == "__main__":
    main()
