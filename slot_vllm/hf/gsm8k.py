"""``python -m slot_vllm.hf.gsm8k --model MODEL --data FILE``: the published GSM8K run.

As published: one system and one user message through the chat template, greedy, at most 512 tokens,
bfloat16. Answers are scored by the published rules (gsm8k_rules.py). The system prompt asks for the
published format in words of our own; ``--system-prompt`` takes another.

Exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted.
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from slot_vllm.hf.gsm8k_rules import (
    MAX_NEW_TOKENS,
    SYSTEM_PROMPT,
    gold,
    is_correct,
    is_format_correct,
)
from slot_vllm.hf.slot import Slot, slot
from slot_vllm.params import SlotConfig, SlotError

DTYPES = ("bfloat16", "float16", "float32", "auto")
_EXIT_FAILED, _EXIT_BAD_INPUT, _EXIT_INTERRUPTED = 1, 2, 130


class BadInput(ValueError):
    """An option, or a file that one names, that cannot be used."""


@dataclass(frozen=True)
class Problem:
    """gold: what stands after ``####`` in the data's answer."""

    question: str
    gold: str


@dataclass(frozen=True)
class ScoredAnswer:
    """first_loss, last_loss: of the prompt, nats per token, before the first and after the last
    step; None without SLOT. tokens: how many were generated, the end of text included."""

    question: str
    gold: str
    completion: str
    correct: bool
    format_correct: bool
    tokens: int
    first_loss: float | None
    last_loss: float | None


def read_problems(path: Path, limit: int | None) -> list[Problem]:
    """The first ``limit`` problems of a file of JSON lines. Raises BadInput."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"--data {path}: {error}") from error
    problems = []
    for number, line in enumerate(lines[:limit], start=1):
        try:
            item = json.loads(line)
            problems.append(Problem(item["question"], gold(item["answer"])))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadInput(
                f"--data {path}, line {number}: a JSON object with the texts question and answer "
                f"is required ({type(error).__name__}: {error})"
            ) from error
    if not problems:
        raise BadInput(f"--data {path}: no problems")
    return problems


def answer(
    model: Any, tokenizer: Any, context: Slot, problems: Sequence[Problem], system_prompt: str
) -> list[ScoredAnswer]:
    """One batch of greedy answers. The tokenizer pads on the left and has a padding token."""
    texts = [
        tokenizer.apply_chat_template(
            [
                {"role": "system", "content": system_prompt},
                {"role": "user", "content": problem.question},
            ],
            tokenize=False,
            add_generation_prompt=True,
        )
        for problem in problems
    ]
    inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    inputs = {k: inputs[k].to(model.device) for k in ("input_ids", "attention_mask")}
    output = model.generate(
        **inputs,
        do_sample=False,
        max_new_tokens=MAX_NEW_TOKENS,
        pad_token_id=tokenizer.pad_token_id,
    )[:, inputs["input_ids"].shape[1] :]
    ends = _ends(model)
    return [
        _scored(problem, row, tokenizer, ends, losses)
        for problem, row, losses in zip(problems, output.tolist(), context.losses, strict=True)
    ]


def _ends(model: Any) -> set[int]:
    """The tokens that end a text."""
    end = model.generation_config.eos_token_id
    if end is None:
        return set()
    return {end} if isinstance(end, int) else set(end)


def _scored(
    problem: Problem, row: list[int], tokenizer: Any, ends: set[int], losses: torch.Tensor
) -> ScoredAnswer:
    length = next((i + 1 for i, token in enumerate(row) if token in ends), len(row))
    completion = tokenizer.decode(row[:length], skip_special_tokens=True)
    values = losses.tolist()
    return ScoredAnswer(
        problem.question,
        problem.gold,
        completion,
        is_correct(completion, problem.gold),
        is_format_correct(completion),
        length,
        values[0] if values else None,
        values[-1] if values else None,
    )


def summary(answers: Sequence[ScoredAnswer], config: SlotConfig) -> dict[str, Any]:
    """Accuracies with their binomial standard errors."""

    def rate(name: str, hits: Iterable[bool]) -> dict[str, float]:
        value = sum(hits) / len(answers)
        return {name: value, f"{name}_stderr": math.sqrt(value * (1 - value) / len(answers))}

    return {
        "problems": len(answers),
        "steps": config.steps,
        "lr": config.lr,
        **rate("accuracy", (a.correct for a in answers)),
        **rate("format_accuracy", (a.format_correct for a in answers)),
        "truncated": sum(a.tokens == MAX_NEW_TOKENS for a in answers),
    }


def main(arguments: Sequence[str]) -> int:
    """Runs it; returns the exit code."""
    try:
        options = _parse(arguments)
        settings = {k: v for k in ("steps", "lr") if (v := getattr(options, k)) is not None}
        config = SlotConfig.load_for_all(settings, os.environ)
        problems = read_problems(options.data, options.limit)
        system_prompt = _system_prompt(options.system_prompt)
        if options.output is not None and options.output.exists():
            raise BadInput(f"--output {options.output}: is there already")
        model, tokenizer = _load(options)
    except (BadInput, SlotError) as error:
        print(f"error: {error}", file=sys.stderr)
        return _EXIT_BAD_INPUT
    try:
        answers = _run(options, config, problems, system_prompt, model, tokenizer)
    except SlotError as error:
        print(f"error: {error}", file=sys.stderr)
        return _EXIT_FAILED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return _EXIT_INTERRUPTED
    results = {
        "model": options.model,
        "data": str(options.data),
        "dtype": options.dtype,
        "batch_size": options.batch_size,
        "system_prompt": system_prompt,
        **summary(answers, config),
    }
    text = json.dumps(results, indent=2, ensure_ascii=False) + "\n"
    if options.output is not None:
        (options.output / "results.json").write_text(text, encoding="utf-8")
    print(text, end="")
    return 0


def _run(
    options: argparse.Namespace,
    config: SlotConfig,
    problems: Sequence[Problem],
    system_prompt: str,
    model: Any,
    tokenizer: Any,
) -> list[ScoredAnswer]:
    """The answers, which are also written as they come."""
    answers: list[ScoredAnswer] = []
    with ExitStack() as stack:
        samples = None
        if options.output is not None:
            options.output.mkdir(parents=True)
            path = options.output / "samples.jsonl"
            samples = stack.enter_context(path.open("w", encoding="utf-8"))
        settings = {"steps": config.steps, "lr": config.lr, "report_loss": True}
        context = stack.enter_context(slot(model, **settings))
        for batch in _batches(problems, options.batch_size):
            new = answer(model, tokenizer, context, batch, system_prompt)
            answers += new
            if samples is not None:
                samples.writelines(json.dumps(asdict(a), ensure_ascii=False) + "\n" for a in new)
                samples.flush()
            correct = sum(a.correct for a in answers)
            print(f"{len(answers)}/{len(problems)}: {correct} correct", file=sys.stderr)
    return answers


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise BadInput(f"{message} (--help shows what is allowed)")


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(
        prog="slot_vllm.hf.gsm8k",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, help="a local path or a hub name")
    parser.add_argument(
        "--data", type=Path, required=True, metavar="FILE", help="JSON lines: question, answer"
    )
    parser.add_argument("--steps", type=int, help="0: without SLOT; default: SLOT_STEPS, or 5")
    parser.add_argument("--lr", type=float, help="default: SLOT_LR, or 0.1")
    parser.add_argument("--limit", type=_positive, metavar="N", help="only the first N problems")
    parser.add_argument("--batch-size", type=_positive, default=1, metavar="N", help="default: 1")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="writes results.json and samples.jsonl there"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="default: bfloat16")
    parser.add_argument(
        "--device", help="a device of torch; default: cuda where there is one, else cpu"
    )
    parser.add_argument(
        "--system-prompt", type=Path, metavar="FILE", help="a text in place of ours"
    )
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value}: an integer from 1 is required")
    return value


def _system_prompt(path: Path | None) -> str:
    if path is None:
        return SYSTEM_PROMPT
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"--system-prompt {path}: {error}") from error


def _load(options: argparse.Namespace) -> tuple[Any, Any]:
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        tokenizer = AutoTokenizer.from_pretrained(options.model, padding_side="left")
        model = AutoModelForCausalLM.from_pretrained(options.model, dtype=options.dtype)
    except (OSError, ValueError) as error:
        raise BadInput(f"--model {options.model}: {error}") from error
    if tokenizer.chat_template is None:
        raise BadInput(f"--model {options.model}: its tokenizer has no chat template")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    try:
        return model.to(device).eval(), tokenizer
    except RuntimeError as error:
        raise BadInput(f"--device {device}: {error}") from error


def _batches(problems: Sequence[Problem], size: int) -> Iterator[Sequence[Problem]]:
    for start in range(0, len(problems), size):
        yield problems[start : start + size]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
