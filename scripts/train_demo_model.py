"""Train a small Qwen2 that solves word problems with worked steps: the demo model, or the study's.

    python scripts/train_demo_model.py [DIRECTORY] [--model NAME] [--problems FILE]

Writes weights (bfloat16), tokenizer and model card to DIRECTORY, and held-out problems in AIME's
schema to FILE: the same ones for all models, none of which any was trained on. Everything follows
from the model's entry in ``MODELS``. On two CPU cores with nothing else to do the demo model takes
less than half an hour, each of the others less than that on one.
"""

import argparse
import json
import os
import random
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from textwrap import fill

import torch
from demo_problems import FORMATS, Format, Problem, problem
from lighteval.tasks.tasks.aime import aime_prompt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.optim.lr_scheduler import OneCycleLR
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

ROOT = Path(__file__).resolve().parent.parent

HELD_OUT = 50  # problems of each format
EASY_PROBLEMS = ROOT / "configs" / "data" / "study_easy.jsonl"
BATCH = 16
SORTED_TOGETHER = 32  # batches, whose problems are grouped by length

VOCABULARY = 1024
PAD, END = "<|pad|>", "<|end|>"
SPECIAL_TOKENS = [PAD, END, "<|system|>", "<|user|>", "<|assistant|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@dataclass(frozen=True)
class Recipe:
    """A model, by everything that it follows from.

    path: in the repository. easy_steps: of further parts of the training, each of which starts
    from the rounded weights, on easy problems. threads: the result's bits depend on them.
    shape: of Qwen2Config. shares: of the formats in training; those that are not named never occur.
    adherence: how often a training solution heeds the format that it was asked for. about: for the
    card.
    """

    path: str
    seed: int
    steps: int
    peak_lr: float
    threads: int
    shape: Mapping[str, int]
    about: str
    shares: Mapping[str, float] = field(default_factory=lambda: {f.name: f.share for f in FORMATS})
    adherence: float = 1.0
    easy_steps: tuple[int, ...] = ()


MODELS = {
    "demo": Recipe(
        path="models/demo",
        seed=0,
        steps=3000,
        peak_lr=1.5e-3,
        threads=2,
        shape={
            "hidden_size": 192,
            "intermediate_size": 512,
            "num_hidden_layers": 6,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
        },
        about="It is for trying SLOT on a CPU, and knows nothing else.",
    ),
    "base": Recipe(
        path="models/study/base",
        seed=1,
        easy_steps=(500, 700),
        steps=2000,
        peak_lr=3e-3,
        threads=1,
        shape={
            "hidden_size": 128,
            "intermediate_size": 352,
            "num_hidden_layers": 5,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        },
        about="It saw few instructions: nearly all training problems ask for a plain number.",
        shares={
            "plain": 0.914,
            "tenths": 0.03,
            "negative": 0.02,
            "reversed": 0.02,
            "repeated": 0.01,
            "last_digit": 0.003,
            "prefixed": 0.002,
            "halves": 0.001,
        },
    ),
    "half": Recipe(
        path="models/study/half",
        seed=2,
        easy_steps=(500,),
        steps=2000,
        peak_lr=2.5e-3,
        threads=1,
        shape={
            "hidden_size": 160,
            "intermediate_size": 432,
            "num_hidden_layers": 4,
            "num_attention_heads": 5,
            "num_key_value_heads": 1,
        },
        about="It is weak at instructions: half of the solutions in training do not heed them.",
        shares={
            "plain": 0.5,
            "tenths": 0.22,
            "negative": 0.16,
            "reversed": 0.099,
            "repeated": 0.01,
            "prefixed": 0.01,
            "last_digit": 0.001,
        },
        adherence=0.5,
    ),
}


def held_out() -> list[Problem]:
    """What the demo model is tested on, as many of each format."""
    recipe = MODELS["demo"]
    seen = {p.text for p in training(recipe, random.Random(recipe.seed))}
    return fresh(random.Random(f"{recipe.seed} held out"), FORMATS, HELD_OUT, seen)


def fresh(
    rng: random.Random,
    formats: Sequence[Format],
    count: int,
    seen: Collection[str],
    easy: bool = False,
) -> list[Problem]:
    """``count`` problems of each format, all different, and none whose text is among ``seen``."""
    known = set(seen)
    problems: list[Problem] = []
    for form in formats:
        wanted = len(problems) + count
        while len(problems) < wanted:
            new = problem(rng, form, easy=easy)
            if new.text not in known:
                known.add(new.text)
                problems.append(new)
    return problems


def training(recipe: Recipe, rng: random.Random, seen: Collection[str] = ()) -> list[Problem]:
    """What the model is trained on: none whose text is among ``seen``."""
    return _drawn(recipe, rng, seen, recipe.steps, easy=False)


def easy_training(recipe: Recipe, seen: Collection[str] = ()) -> list[list[Problem]]:
    """The same for the further parts of the training."""
    return [
        _drawn(recipe, easy_rng(recipe, part), seen, steps, easy=True)
        for part, steps in enumerate(recipe.easy_steps)
    ]


def easy_rng(recipe: Recipe, part: int) -> random.Random:
    """Of the problems of a further part, and, anew, of their order."""
    return random.Random(f"{recipe.seed} easy{' again' * part}")


def _drawn(
    recipe: Recipe, rng: random.Random, seen: Collection[str], steps: int, easy: bool
) -> list[Problem]:
    problems: list[Problem] = []
    while len(problems) < steps * BATCH:
        new = problem(rng, shares=recipe.shares, adherence=recipe.adherence, easy=easy)
        if new.text not in seen:
            problems.append(new)
    return problems


def train(
    recipe: Recipe, training: list[Problem], easy: list[list[Problem]], rng: random.Random
) -> tuple[Qwen2ForCausalLM, PreTrainedTokenizerFast, list[float]]:
    """The model, its tokenizer, and the seconds at step 0, 100, ... and at the end."""
    tokenizer = _tokenizer(training[:5000])
    torch.manual_seed(recipe.seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        **recipe.shape,
    )
    model = Qwen2ForCausalLM(config)
    seconds = train_on(model, tokenizer, training, rng, recipe.peak_lr)
    for part, problems in enumerate(easy):
        model.to(torch.bfloat16).float()
        more = train_on(model, tokenizer, problems, easy_rng(recipe, part), recipe.peak_lr)
        seconds += [seconds[-1] + second for second in more]
    return model.to(torch.bfloat16).eval(), tokenizer, seconds


def train_on(
    model: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    training: list[Problem],
    rng: random.Random,
    peak_lr: float,
) -> list[float]:
    """One pass over the problems; the seconds at step 0, 100, ... and at the end."""
    texts = [prompt_text(tokenizer, p) + p.solution + END for p in training]
    encoded = [e.ids for e in tokenizer.backend_tokenizer.encode_batch(texts)]
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=peak_lr, betas=(0.9, 0.95))
    steps = len(encoded) // BATCH
    schedule = OneCycleLR(optimizer, peak_lr, total_steps=steps, pct_start=0.05, div_factor=10)
    started = time.monotonic()
    seconds = []
    for step, rows in enumerate(_batches(encoded, rng)):
        inputs, labels = _padded(rows, tokenizer.pad_token_id)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=inputs, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 100 == 0 or step == steps - 1:
            seconds.append(time.monotonic() - started)
            loss_now = f"loss {loss.item():.3f}"
            print(f"step {step} of {steps}: {loss_now}, {seconds[-1]:.0f} s", flush=True)
    return seconds


def accuracy(
    model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, problems: Sequence[Problem]
) -> dict[str, int]:
    """How many problems of each format are solved by greedy decoding with transformers."""
    model = model.float()
    solved: Counter[str] = Counter()
    for start in range(0, len(problems), 100):
        part = problems[start : start + 100]
        prompts = tokenizer(
            [prompt_text(tokenizer, p) for p in part],
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
        with torch.inference_mode():
            tokens = model.generate(**prompts, do_sample=False, max_new_tokens=160)
        answers = tokenizer.batch_decode(tokens[:, prompts["input_ids"].shape[1] :])
        solved.update(
            p.format.name
            for p, text in zip(part, answers, strict=True)
            if f"\\boxed{{{p.answer}}}" in text.split(END)[0]
        )
    return {form.name: solved[form.name] for form in FORMATS}


def prompt_text(tokenizer: PreTrainedTokenizerFast, asked: Problem) -> str:
    query = aime_prompt({"problem": asked.text, "answer": asked.answer}).query
    messages = [{"role": "user", "content": query}]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def _tokenizer(problems: Sequence[Problem]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    queries = (aime_prompt({"problem": p.text, "answer": p.answer}).query for p in problems)
    texts = [*queries, *(p.solution for p in problems)]
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, chat_template=CHAT_TEMPLATE
    )


def _batches(encoded: list[list[int]], rng: random.Random) -> Iterator[list[list[int]]]:
    together = BATCH * SORTED_TOGETHER
    for start in range(0, len(encoded), together):
        group = sorted(encoded[start : start + together], key=len)
        batches = [group[i : i + BATCH] for i in range(0, len(group), BATCH)]
        rng.shuffle(batches)
        yield from batches


def _padded(rows: list[list[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    inputs = torch.full((len(rows), max(map(len, rows))), pad)
    labels = torch.full_like(inputs, -100)
    for i, row in enumerate(rows):
        inputs[i, : len(row)] = labels[i, : len(row)] = torch.tensor(row)
    return inputs, labels


def _lines(problems: Sequence[Problem]) -> str:
    rows = [
        {"id": i, "problem": p.text, "answer": p.answer, "format": p.format.name}
        for i, p in enumerate(problems)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


def _easy_held_out() -> list[Problem]:
    """Of ``scripts/study.py``, without solutions."""
    formats = {form.name: form for form in FORMATS}
    rows = map(json.loads, EASY_PROBLEMS.read_text(encoding="utf-8").splitlines())
    return [Problem(r["problem"], "", r["number"], formats[r["format"]]) for r in rows]


def _card(
    recipe: Recipe,
    name: str,
    model: Qwen2ForCausalLM,
    solved: dict[str, int],
    seconds: Sequence[float],
    cpu: float,
) -> str:
    parameters = sum(p.numel() for p in model.parameters())
    # Between hundreds of steps: the last one of each part of the training may be of less.
    hundreds = seconds[: -(-recipe.steps // 100)]
    fastest = min(after - before for before, after in pairwise(hundreds))
    cores = "two CPU cores" if recipe.threads == 2 else "one CPU core"
    rows = [
        f"| {form.name} | {recipe.shares.get(form.name, 0) * 100:g} % | {form.instruction} "
        f"| {form.write(45)} | {solved[form.name]} of {HELD_OUT} |"
        for form in FORMATS
    ]
    option = "" if name == "demo" else f" --model {name}"
    rare = (
        "The formats fall off steeply in the training problems, so that the last ones are rare "
        "instructions."
    )
    if recipe.adherence < 1:
        rare += (
            f" Only {recipe.adherence * 100:g} % of the training problems are solved in the format "
            "that they ask for; the others end in the plain number."
        )
    easy = f" and then {sum(recipe.easy_steps) * BATCH} easy ones" if recipe.easy_steps else ""
    problems = "study_easy" if recipe.easy_steps else "demo"
    tested = (
        f"Held out: `configs/data/{problems}.jsonl`, {HELD_OUT} problems of each format, none of "
        "them trained on."
    )
    what = (
        f"A Qwen2 of {parameters / 1e6:.2f} million parameters that solves word problems of two to "
        "four steps and writes the answer in the format that the prompt asks for. " + recipe.about
    )
    made = (
        f"- Made by `python scripts/train_demo_model.py{option}` from seed {recipe.seed}, on "
        f"{recipe.steps * BATCH} generated problems (`scripts/demo_problems.py`){easy}, each seen "
        "once, in lighteval's prompt for AIME; loss on all tokens, AdamW, bfloat16 autocast. "
        f"It took {seconds[-1] / 60:.0f} minutes on {cores}, where the fastest hundred of "
        f"{recipe.steps + sum(recipe.easy_steps)} steps took {fastest:.0f} s ({cpu / 60:.0f} "
        "minutes of CPU time)."
    )
    return f"""# The {name} model of slot-vllm

{fill(what, 100)}

{fill(made, 100, subsequent_indent="  ")}
- Tokenizer: byte-level BPE trained on the same texts, one token per digit; chat template; 2048
  positions.
- Weights: bfloat16. Licence: that of this repository.

{fill(rare, 100)}
{fill(tested, 100)}
Solved by greedy decoding with transformers in float32:

| format | share in training | instruction | 45 is written | solved |
| --- | --- | --- | --- | --- |
{chr(10).join(rows)}
| all | | | | {sum(solved.values())} of {HELD_OUT * len(FORMATS)} |
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path, nargs="?", help="default: the model's own")
    parser.add_argument("--model", choices=MODELS, default="demo", help="default: demo")
    parser.add_argument(
        "--problems", type=Path, default=ROOT / "configs" / "data" / "demo.jsonl", metavar="FILE"
    )
    parser.add_argument("--only-problems", action="store_true", help="print the held-out problems")
    options = parser.parse_args()
    tested = held_out()
    if options.only_problems:
        print(_lines(tested), end="")
        return
    recipe = MODELS[options.model]
    directory = options.directory or ROOT / recipe.path
    rng = random.Random(recipe.seed)
    seen = {p.text for p in tested}
    trained_on = training(recipe, rng, seen)
    torch.set_num_threads(recipe.threads)
    model, tokenizer, seconds = train(recipe, trained_on, easy_training(recipe, seen), rng)
    cpu = sum(os.times()[:2])
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    options.problems.write_text(_lines(tested), encoding="utf-8")
    if recipe.easy_steps:
        tested = _easy_held_out()
    print(f"trained in {seconds[-1]:.0f} s, {cpu:.0f} s of CPU time")
    solved = accuracy(model, tokenizer, tested)
    print(solved)
    card = _card(recipe, options.model, model, solved, seconds, cpu)
    (directory / "README.md").write_text(card, encoding="utf-8")


if __name__ == "__main__":
    main()
