"""What settings do to right answers, without generating any: the study's search (docs/study.md).

    python scripts/study_search.py CONFIG SET OUTPUT.json [--model DIRECTORY]

For every arm of a run's configuration: deltas are learned from the prompts of one of the study's
sets, as the engine learns them, and the right answers are read with them. An answer is ``exact`` if
every token of it is the likeliest one, as greedy decoding would choose it; ``arithmetic`` looks at
the tokens of the worked steps only, ``adherence`` at those after them, given right steps. All arms
share one forward pass, so that an arm costs little more than its deltas.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from demo_problems import Problem
from study import problems
from torch import Tensor
from train_demo_model import END, prompt_text
from transformers import AutoTokenizer, Qwen2ForCausalLM

from slot_vllm.evaluation import config as configuration
from slot_vllm.evaluation.comparison import compare
from slot_vllm.evaluation.record import BASELINE, Arm
from slot_vllm.loss_tokens import LossTokens, flags
from slot_vllm.optim.head import Head
from slot_vllm.optim.optimize import Learned, optimize
from slot_vllm.optim.prompt import Prompt
from slot_vllm.optim.workspace import Workspace
from slot_vllm.params import SlotParams

_TOGETHER = 50
_WORKSPACE = 256 << 20
SCORES = ("exact", "arithmetic", "adherence")


@dataclass(frozen=True)
class Read:
    """A problem as the model reads it. prompt: (n, d) hidden states of its n tokens; answer: (m, d)
    of the m rows that the answer's tokens are predicted from. worked: how many of those are of the
    worked steps."""

    tokens: Tensor
    prompt: Tensor
    answer: Tensor
    targets: Tensor
    worked: int


class Reader:
    """Problems read by one model, and what deltas do to their answers."""

    def __init__(self, directory: Path, asked: Sequence[Problem]) -> None:
        model = Qwen2ForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(directory)
        self.asked = asked
        self.head = Head(model.lm_head.weight.detach())
        self._loss_tokens = LossTokens(tokenizer)
        self._workspace = Workspace(_WORKSPACE)
        self._read = [
            one
            for start in range(0, len(asked), _TOGETHER)
            for one in _read(model, tokenizer, asked[start : start + _TOGETHER])
        ]
        self._logits = [self.head.activate(r.answer @ self.head.weight.T) for r in self._read]

    def learn(self, params: SlotParams) -> list[Learned]:
        """One delta per problem."""
        prompts = [
            Prompt(r.prompt, r.tokens, params, self._counts(r.tokens, params)) for r in self._read
        ]
        return optimize(self.head, prompts, self._workspace)

    def judge(self, learned: Sequence[Learned] | None) -> dict[str, dict[str, float]]:
        """By score and problem, 0 or 1; without deltas those of the model itself."""
        found: dict[str, dict[str, float]] = {score: {} for score in SCORES}
        for i, (read, logits) in enumerate(zip(self._read, self._logits, strict=True)):
            if learned is not None:
                logits = logits + learned[i].delta @ self.head.weight.T
                bias = learned[i].bias
                logits = logits if bias is None else logits + bias
            right = logits.argmax(dim=1) == read.targets
            arithmetic, adherence = right[: read.worked].all(), right[read.worked :].all()
            for score, holds in zip(
                SCORES, (arithmetic & adherence, arithmetic, adherence), strict=True
            ):
                found[score][str(i)] = float(holds)
        return found

    def _counts(self, tokens: Tensor, params: SlotParams) -> list[bool] | None:
        wanted = params.loss_tokens
        if isinstance(wanted, int) or wanted == "all":
            return None
        return flags(self._loss_tokens.spans(tokens.tolist(), wanted), len(tokens))


def search(reader: Reader, arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """An entry per arm, the baseline first: scores, and differences with Holm's correction for
    all arms, also by format."""
    baseline = reader.judge(None)
    judged: dict[str, dict[str, dict[str, float]]] = {}
    entries: dict[str, dict[str, Any]] = {}
    for arm in arms:
        if arm.name == BASELINE:
            continue
        learned = reader.learn(SlotParams(**arm.model_dump(exclude={"name"})))
        scales = [float(one.scale) for one in learned]
        judged[arm.name] = reader.judge(learned)
        entries[arm.name] = {
            "name": arm.name,
            "settings": arm.model_dump(mode="json", exclude={"name"}),
            "scale": float(np.mean(scales)),
            "applied": float(np.mean([scale > 0 for scale in scales])),
        }
        print(arm.name, *(f"{np.mean([*judged[arm.name][s].values()]):.3f}" for s in SCORES))
    own: dict[str, Any] = {"name": BASELINE, "metrics": {}, "formats": {}}
    for score in SCORES:
        own["metrics"][score] = {"value": float(np.mean([*baseline[score].values()]))}
        compared = compare({n: s[score] for n, s in judged.items()}, baseline[score])
        for name, comparison in compared.items():
            numbers = comparison.model_dump(mode="json", exclude={"method", "words"})
            value = float(np.mean([*judged[name][score].values()]))
            entries[name].setdefault("metrics", {})[score] = {"value": value, **numbers}
    forms = dict.fromkeys(p.format.name for p in reader.asked)
    for entry, scores in [(own, baseline), *((entries[n], s) for n, s in judged.items())]:
        entry["formats"] = {
            form: {
                score: float(
                    np.mean([scores[score][i] for i in scores[score] if _form(reader, i) == form])
                )
                for score in SCORES
            }
            for form in forms
        }
    return [own, *entries.values()]


def _form(reader: Reader, problem: str) -> str:
    return reader.asked[int(problem)].format.name


@torch.inference_mode()
def _read(model: Any, tokenizer: Any, asked: Sequence[Problem]) -> list[Read]:
    prompts = [prompt_text(tokenizer, p) for p in asked]
    texts = [prompt + p.solution + END for prompt, p in zip(prompts, asked, strict=True)]
    found = tokenizer(
        texts,
        padding=True,
        padding_side="right",
        return_tensors="pt",
        return_offsets_mapping=True,
        add_special_tokens=False,
    )
    # Padding is on the right, where no row that counts sees it.
    hidden = model.model(found["input_ids"]).last_hidden_state
    read = []
    for i, (prompt, p) in enumerate(zip(prompts, asked, strict=True)):
        length = int(found["attention_mask"][i].sum())
        starts = found["offset_mapping"][i, :length, 0]
        steps = len(prompt) + p.solution.index(f" {p.format.working}: ")
        n = int((starts < len(prompt)).sum())
        tokens = found["input_ids"][i, :length]
        read.append(
            Read(
                tokens=tokens[:n].clone(),
                prompt=hidden[i, :n].clone(),
                answer=hidden[i, n - 1 : length - 1].clone(),
                targets=tokens[n:].clone(),
                worked=int((starts[n:] < steps).sum()),
            )
        )
    return read


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("set")
    parser.add_argument("output", type=Path)
    parser.add_argument("--model", type=Path, help="default: the configuration's")
    options = parser.parse_args()
    run = configuration.load(options.config)
    model = options.model or Path(run.model)
    reader = Reader(model, problems()[options.set])
    found = {
        "model": str(model),
        "config": str(options.config),
        "set": options.set,
        "problems": len(reader.asked),
        "arms": search(reader, run.all_arms),
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
