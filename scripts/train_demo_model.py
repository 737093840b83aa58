"""Train the demo model of the tests: a small Qwen2 that solves word problems with worked steps.

    python scripts/train_demo_model.py [DIRECTORY] [--problems FILE]

Writes weights (bfloat16), tokenizer and model card to DIRECTORY, and held-out problems in AIME's
schema, none of which it was trained on, to FILE. Everything follows from one seed. On two CPU
cores with nothing else to do it takes less than half an hour.
"""

import argparse
import os
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from textwrap import fill

import torch
from demo_problems import (
    FORMATS,
    HELD_OUT,
    SEED,
    TRAINED_ON,
    Problem,
    held_out,
    lines,
    training,
)
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

BATCH = 16
SORTED_TOGETHER = 32  # batches, whose problems are grouped by length

VOCABULARY = 1024
PAD, END = "<|pad|>", "<|end|>"
SPECIAL_TOKENS = [PAD, END, "<|system|>", "<|user|>", "<|assistant|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


STEPS = TRAINED_ON // BATCH
PEAK_LR = 1.5e-3
THREADS = 2  # The result's bits depend on them.
SHAPE = {
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
}


def train(
    training: list[Problem], rng: random.Random
) -> tuple[Qwen2ForCausalLM, PreTrainedTokenizerFast, list[float]]:
    """The model, its tokenizer, and the seconds at step 0, 100, ... and at the end."""
    tokenizer = _tokenizer(training[:5000])
    torch.manual_seed(SEED)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        **SHAPE,
    )
    model = Qwen2ForCausalLM(config)
    seconds = train_on(model, tokenizer, training, rng)
    return model.to(torch.bfloat16).eval(), tokenizer, seconds


def train_on(
    model: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    training: list[Problem],
    rng: random.Random,
) -> list[float]:
    """One pass over the problems; the seconds at step 0, 100, ... and at the end."""
    texts = [prompt_text(tokenizer, p) + p.solution + END for p in training]
    encoded = [e.ids for e in tokenizer.backend_tokenizer.encode_batch(texts)]
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_LR, betas=(0.9, 0.95))
    steps = len(encoded) // BATCH
    schedule = OneCycleLR(optimizer, PEAK_LR, total_steps=steps, pct_start=0.05, div_factor=10)
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


def _card(
    model: Qwen2ForCausalLM, solved: dict[str, int], seconds: Sequence[float], cpu: float
) -> str:
    parameters = sum(p.numel() for p in model.parameters())
    # The last of them may be of less than a hundred steps.
    fastest = min(after - before for before, after in pairwise(seconds[:-1]))
    rows = [
        f"| {form.name} | {form.share * 100:g} % | {form.instruction} "
        f"| {form.write(45)} | {solved[form.name]} of {HELD_OUT} |"
        for form in FORMATS
    ]
    what = (
        f"A Qwen2 of {parameters / 1e6:.2f} million parameters that solves word problems of two to "
        "four steps and writes the answer in the format that the prompt asks for. It is "
        "what this project's tests run on, and knows nothing else."
    )
    made = (
        f"- Made by `python scripts/train_demo_model.py` from seed {SEED}, on {TRAINED_ON} "
        "generated problems (`scripts/demo_problems.py`), each seen once, in lighteval's prompt "
        "for AIME; loss on all tokens, AdamW, bfloat16 autocast. It took "
        f"{seconds[-1] / 60:.0f} minutes on two CPU cores, where the fastest hundred of {STEPS} "
        f"steps took {fastest:.0f} s ({cpu / 60:.0f} minutes of CPU time)."
    )
    return f"""# The demo model of slot-vllm

{fill(what, 100)}

{fill(made, 100, subsequent_indent="  ")}
- Tokenizer: byte-level BPE trained on the same texts, one token per digit; chat template; 2048
  positions.
- Weights: bfloat16. Licence: that of this repository.

The formats fall off steeply in the training problems, so that the last ones are rare instructions.
Held out: `configs/data/demo.jsonl`, {HELD_OUT} problems of each format, none of them trained on.
Solved by greedy decoding with transformers in float32:

| format | share in training | instruction | 45 is written | solved |
| --- | --- | --- | --- | --- |
{chr(10).join(rows)}
| all | | | | {sum(solved.values())} of {HELD_OUT * len(FORMATS)} |
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path, nargs="?", default=ROOT / "models" / "demo")
    parser.add_argument(
        "--problems", type=Path, default=ROOT / "configs" / "data" / "demo.jsonl", metavar="FILE"
    )
    options = parser.parse_args()
    tested = held_out()
    rng = random.Random(SEED)
    trained_on = training(rng, {p.text for p in tested})
    torch.set_num_threads(THREADS)
    model, tokenizer, seconds = train(trained_on, rng)
    cpu = sum(os.times()[:2])
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(options.directory)
    tokenizer.save_pretrained(options.directory)
    options.problems.write_text(lines(tested), encoding="utf-8")
    print(f"trained in {seconds[-1]:.0f} s, {cpu:.0f} s of CPU time")
    solved = accuracy(model, tokenizer, tested)
    print(solved)
    card = _card(model, solved, seconds, cpu)
    (options.directory / "README.md").write_text(card, encoding="utf-8")


if __name__ == "__main__":
    main()
