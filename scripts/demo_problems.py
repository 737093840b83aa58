"""Word problems with worked steps, asked for in answer formats of steeply falling frequency.

The format changes the value that is right (``in tenths``: 45 is written 450), so that a task's
ordinary metric tells whether it was followed.
"""

import json
import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

SEED = 0
TRAINED_ON = 48_000
HELD_OUT = 50  # problems of each format


@dataclass(frozen=True)
class Format:
    """share: of the training problems. instruction: the prompt's last sentence. working: what the
    worked solution says of it. write: the final answer, from the number that was found."""

    name: str
    share: float
    instruction: str
    working: str
    write: Callable[[int], str]


FORMATS = (
    Format("plain", 0.6, "Give the answer as a number.", "Number", str),
    Format("tenths", 0.22, "Give the answer in tenths.", "Tenths", lambda n: f"{n}0"),
    Format("negative", 0.1, "Give the answer below zero.", "Below zero", lambda n: f"-{n}"),
    Format("reversed", 0.05, "Give the digits in reverse.", "Reverse", lambda n: str(n)[::-1]),
    Format("repeated", 0.02, "Give the answer twice in a row.", "Twice", lambda n: f"{n}{n}"),
    Format("last_digit", 0.007, "Give the last digit only.", "Last digit", lambda n: str(n)[-1]),
    Format("prefixed", 0.002, "Give the answer after a 7.", "After a 7", lambda n: f"7{n}"),
    Format("halves", 0.001, "Give the answer with one half more.", "Half", lambda n: f"{n}.5"),
)

NAMES = "Ada Ben Chloe Dev Elif Femi Greta Hugo Ines Jonas Kira Liam Mona Nils Olga Paul Rosa Tariq"
THINGS = "apples books coins cards pens shells stamps stones tickets marbles buttons candles"
STARTS = (
    "{name} has {n} {things}.",
    "There are {n} {things} in the box of {name}.",
    "{name} begins the day with {n} {things}.",
    "On the shelf of {name} lie {n} {things}.",
)
MORE = (
    "{name} finds {n} more.",
    "A friend brings {n} more {things}.",
    "Then {n} {things} are added.",
    "{name} buys another {n}.",
)
FEWER = (
    "{name} gives {n} away.",
    "Then {n} of them are lost.",
    "{name} sells {n} {things}.",
    "A neighbour takes {n} of the {things}.",
)
TIMES = (
    "Now the number of {things} becomes {n} times as large.",
    "{name} wins until there are {n} times as many.",
)
SHARED = (
    "They are put into {n} equal piles, and {name} keeps one pile.",
    "{name} shares them equally among {n} friends and looks at the part of one.",
)
QUESTIONS = (
    "How many {things} are there now?",
    "How many {things} does {name} have in the end?",
    "What is the number of {things} at the end?",
)
LARGEST = 999


@dataclass(frozen=True)
class Problem:
    """``text`` ends with the format's instruction; ``solution`` with the boxed answer. ``number``:
    what was to be found, before it is written in the format."""

    text: str
    solution: str
    number: int
    format: Format

    @property
    def answer(self) -> str:
        """The number as the format asks for it."""
        return self.format.write(self.number)


def problem(rng: random.Random, form: Format | None = None) -> Problem:
    """A problem of two to four steps; its format is drawn by the formats' shares unless given."""
    form = form or rng.choices(FORMATS, [f.share for f in FORMATS])[0]
    words = {"name": rng.choice(NAMES.split()), "things": rng.choice(THINGS.split())}
    total = rng.randint(11, 99)
    sentences = [rng.choice(STARTS).format(n=total, **words)]
    steps = [f"Start: {total}."]
    for _ in range(rng.randint(2, 4)):
        patterns, n, sign, after = _step(rng, total)
        sentences.append(rng.choice(patterns).format(n=n, **words))
        steps.append(f"{total} {sign} {n} = {after}.")
        total = after
    if total % 10 == 0:  # written in reverse it would begin with a zero
        n = rng.randint(1, 9)
        sentences.append(rng.choice(MORE).format(n=n, **words))
        steps.append(f"{total} + {n} = {total + n}.")
        total += n
    sentences += [rng.choice(QUESTIONS).format(**words), form.instruction]
    said = form.write(total)
    solution = (
        f"{' '.join(steps)} {form.working}: {said}.\n"
        f"Therefore, the final answer is: $\\boxed{{{said}}}$. I hope it is correct"
    )
    return Problem(" ".join(sentences), solution, total, form)


def held_out() -> list[Problem]:
    """What the model is tested on, as many of each format, all different."""
    known = {p.text for p in training(random.Random(SEED))}
    rng = random.Random(f"{SEED} held out")
    problems: list[Problem] = []
    for form in FORMATS:
        wanted = len(problems) + HELD_OUT
        while len(problems) < wanted:
            new = problem(rng, form)
            if new.text not in known:
                known.add(new.text)
                problems.append(new)
    return problems


def training(rng: random.Random, seen: Collection[str] = ()) -> list[Problem]:
    """What the model is trained on: none whose text is among ``seen``."""
    problems: list[Problem] = []
    while len(problems) < TRAINED_ON:
        new = problem(rng)
        if new.text not in seen:
            problems.append(new)
    return problems


def lines(problems: Sequence[Problem]) -> str:
    """JSON lines in AIME's schema."""
    rows = [
        {"id": i, "problem": p.text, "answer": p.answer, "format": p.format.name}
        for i, p in enumerate(problems)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


def _step(rng: random.Random, total: int) -> tuple[tuple[str, ...], int, str, int]:
    divisors = [n for n in range(2, 10) if total % n == 0 and total // n > 10]
    factors = [n for n in range(2, 10) if total * n <= LARGEST]
    kinds = ["+", "-", *("*" if factors else ""), *("/" if divisors else "")]
    sign = rng.choice(kinds) if total > 20 else "+"
    if sign == "*":
        n = rng.choice(factors)
        return TIMES, n, sign, total * n
    if sign == "/":
        n = rng.choice(divisors)
        return SHARED, n, sign, total // n
    if sign == "-" or total > LARGEST - 10:
        n = rng.randint(3, min(99, total - 10))
        return FEWER, n, "-", total - n
    n = rng.randint(3, min(99, LARGEST - total))
    return MORE, n, "+", total + n
