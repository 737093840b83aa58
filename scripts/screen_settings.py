"""A cheap first look at many settings: what each does to answers that are there already.

    python scripts/screen_settings.py SETTINGS.yaml [--set key=value ...] --output FILE

Generating answers costs minutes per setting, this seconds. A stored run's model reads prompts with
two of their answers each (teacher forcing): one that keeps the asked form, and one without SLOT
that is right. delta is learned from the prompt, as an engine does, and told by:

    opens    log p of the form's first tag, where it is kept
    tags     the same of the other tags
    text     mean log p per token of the right answer without SLOT
    follows  share of that answer's tokens that are still the likeliest
    numbers  mean log p of its digits

Each is the mean over problems, with the mean difference to no SLOT and its standard error.
"""

import argparse
import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from lighteval.models.abstract_model import ModelConfig
from torch import Tensor
from transformers import AutoModelForCausalLM

from slot_vllm.bench.machine import describe_machine
from slot_vllm.evaluation import tasks
from slot_vllm.evaluation.config import RunConfig, load
from slot_vllm.evaluation.directory import CONFIG
from slot_vllm.evaluation.lighteval_model import SlotModel
from slot_vllm.evaluation.models.catalog import path as model_path
from slot_vllm.evaluation.record import BASELINE
from slot_vllm.evaluation.samples import SAMPLES, SampleFile
from slot_vllm.hf.linear_head import find_head
from slot_vllm.loss_tokens import LossTokens, flags
from slot_vllm.optim.fading import factors, limits
from slot_vllm.optim.head import Head
from slot_vllm.optim.optimize import Prompt, optimize
from slot_vllm.optim.workspace import Workspace
from slot_vllm.params import SlotParams

TAGS = ("<think>", "</think>", "<answer>", "</answer>")


@dataclass(frozen=True)
class Forced:
    """An answer that the model reads. z: (m, V) float32, the logits of its tokens without SLOT.
    tokens, opens, tags, digits: (m,), the latter three bool: what belongs to the first tag, to the
    other tags, to a number."""

    z: Tensor
    tokens: Tensor
    opens: Tensor
    tags: Tensor
    digits: Tensor


@dataclass(frozen=True)
class Problem:
    """hidden: (n, d), the prompt's. kept, right: its two answers."""

    id: str
    tokens: list[int]
    hidden: Tensor
    kept: Forced
    right: Forced


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--set", nargs="+", default=[], dest="settings")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    plan = yaml.safe_load(arguments.file.read_text())
    settings = {name: SlotParams(**values) for name, values in plan["settings"].items()}
    run = Path(plan["run"])
    config = load(run / CONFIG, arguments.settings)
    screen = Screen(config)
    scores: dict[str, list[dict[str, float]]] = {name: [] for name in settings}
    ids = []
    for problem in screen.problems(run, plan["problems"]):
        ids.append(problem.id)
        for name, params in settings.items():
            scores[name].append(screen.scores(problem, params))
        print(f"{len(ids)} of {plan['problems']}: problem {problem.id}", flush=True)
        found = {
            "run": plan["run"],
            "machine": describe_machine("cpu"),
            "problems": ids,
            "settings": plan["settings"],
            "scores": {name: _summary(rows, scores[BASELINE]) for name, rows in scores.items()},
        }
        arguments.output.write_text(json.dumps(found, indent=1) + "\n")


class Screen:
    """config: of the run whose answers are read."""

    def __init__(self, config: RunConfig) -> None:
        (self._task,) = tasks.load(config)
        self._asker = SlotModel(ModelConfig(model_name=config.model), config)
        self._model: Any = AutoModelForCausalLM.from_pretrained(
            model_path(config.model), dtype=torch.bfloat16
        ).eval()
        self._found = find_head(self._model)
        self._workspace = Workspace(1 << 30, torch.device("cpu"))
        self._loss_tokens = LossTokens(self._asker.tokenizer)

    def problems(self, run: Path, count: int) -> Iterator[Problem]:
        """The first ones that have both answers, in the task's order."""
        answers: dict[str, list[Any]] = {}
        for sample in SampleFile(run / SAMPLES).read():
            answers.setdefault(sample.id, []).append(sample)
        left = count
        for doc in self._task.docs:
            samples = sorted(answers.get(doc.id, []), key=lambda sample: sample.arm)
            right = [s for s in samples if s.arm == BASELINE and s.scores["answer"]]
            kept = [s for s in samples if s.arm != BASELINE and s.scores["answer_and_format"]]
            right = [s for s in right if s.finish_reason == "stop"]
            if left and right and kept:
                left -= 1
                prompt = self._asker.tokenizer.encode(
                    self._asker.prompt(doc), add_special_tokens=self._asker.add_special_tokens
                )
                hidden, first = self._read(prompt, kept[0].completion)
                _, second = self._read(prompt, right[0].completion)
                yield Problem(doc.id, prompt, hidden, first, second)
        if left:
            raise SystemExit(f"{run}: {count - left} problems have both answers, not {count}")

    @torch.no_grad()
    def _read(self, prompt: list[int], answer: str) -> tuple[Tensor, Forced]:
        tokenizer = self._asker.tokenizer
        read = tokenizer(answer, add_special_tokens=False, return_offsets_mapping=True)
        tokens = [*read["input_ids"], tokenizer.eos_token_id]
        inputs = torch.tensor([[*prompt, *tokens]])
        hidden = self._found.decoder(input_ids=inputs)[0][0]
        rows = hidden[len(prompt) - 1 : -1]
        z = rows.float() @ self._head.weight.float().T
        places = read["offset_mapping"]
        first, *others = (_places(answer, tag, places) for tag in TAGS)
        digits = [answer[start:stop].strip().isdigit() for start, stop in places]
        # The end mark is none of them.
        marks = [first, [any(of_token) for of_token in zip(*others, strict=True)], digits]
        forced = Forced(z, torch.tensor(tokens), *(torch.tensor([*one, False]) for one in marks))
        return hidden[: len(prompt)], forced

    @property
    def _head(self) -> Head:
        return self._found.head

    def scores(self, problem: Problem, params: SlotParams) -> dict[str, float]:
        shift = self._shift(problem, params) if params.steps else None
        kept, right = (self._log_p(one, shift, params) for one in (problem.kept, problem.right))
        return {
            "opens": kept[0][problem.kept.opens].sum().item(),
            "tags": kept[0][problem.kept.tags].sum().item(),
            "text": right[0].mean().item(),
            "follows": right[1].float().mean().item(),
            "numbers": right[0][problem.right.digits].mean().item(),
        }

    @torch.no_grad()
    def _shift(self, problem: Problem, params: SlotParams) -> Tensor:
        """(V,) float32: W delta."""
        counts = None
        if params.words is not None:
            spans = self._loss_tokens.spans(problem.tokens, params.words)
            counts = flags(spans, len(problem.tokens))
        prompt = Prompt(problem.hidden, torch.tensor(problem.tokens), params, counts)
        (learned,) = optimize(self._head, [prompt], self._workspace)
        return self._head.exact_shift(learned.delta.unsqueeze(0))[0]

    @torch.no_grad()
    def _log_p(
        self, answer: Forced, shift: Tensor | None, params: SlotParams
    ) -> tuple[Tensor, Tensor]:
        """(m,) float32, of the answer's tokens; (m,) bool, whether each is the likeliest."""
        z = answer.z
        if shift is not None:
            own = torch.tensor(limits(params), dtype=torch.float64)
            left = factors(torch.arange(len(z), dtype=torch.float64), *own)
            z = torch.addcmul(z, left.unsqueeze(1), shift.unsqueeze(0))
        chosen = z.gather(1, answer.tokens.unsqueeze(1)).squeeze(1)
        return chosen - z.logsumexp(dim=1), z.argmax(dim=1) == answer.tokens


def _places(answer: str, tag: str, places: Sequence[tuple[int, int]]) -> list[bool]:
    """Whether each token has a part of the tag, which the answer may have."""
    start = answer.find(tag)
    stop = start + len(tag) if start >= 0 else start
    return [a < stop and b > start for a, b in places]


def _summary(
    rows: list[dict[str, float]], baseline: list[dict[str, float]]
) -> Mapping[str, Mapping[str, float | None]]:
    found = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        gains = [row[name] - own[name] for row, own in zip(rows, baseline, strict=True)]
        error = statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else None
        found[name] = {
            "mean": round(statistics.fmean(values), 5),
            "gain": round(statistics.fmean(gains), 5),
            "error": None if error is None else round(error, 5),
        }
    return found


if __name__ == "__main__":
    main()
