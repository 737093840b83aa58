"""Prompts and settings that the engine tests and the transformers reference share."""

import json
import subprocess
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from tests.engine.answers import answers_of, recording

VOCABULARY = 256
LENGTHS = (1, 2, 3, 17, 33, 64, 130, 200)
# (steps, lr) of the prompts in turn.
SETTINGS = ((5, 0.1), (3, 0.5), (0, 0.1), (10, 0.01), (1, 1.0))
NEAR_TIE = 1e-3


@dataclass(frozen=True)
class Case:
    """allowed: if any, only these tokens may be generated. last: if any, so many of the prompt's
    last tokens are learned from. settings: further ones of SlotParams, by name. counts: what
    ``loss_tokens`` means by itself, of the whole prompt, as the reference is to take it."""

    tokens: tuple[int, ...]
    steps: int
    lr: float
    new_tokens: int
    allowed: tuple[int, ...] = ()
    last: int = 0
    settings: tuple[tuple[str, Any], ...] = ()
    counts: tuple[bool, ...] | None = None


@dataclass(frozen=True)
class Answer:
    """tokens: greedy. gaps: difference of the two best logits where each token was chosen.
    losses: the mean prompt loss before each step and after the last. last_hidden: (d,), the hidden
    state of the prompt's last token."""

    tokens: list[int]
    gaps: list[float]
    delta: list[float]
    losses: list[float]
    last_hidden: list[float] = field(default_factory=list)


def random_tokens(length: int, seed: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(2, VOCABULARY, (length,), generator=generator).tolist())


def mixed_cases(count: int = 16, new_tokens: int = 40) -> list[Case]:
    """Every length twice, with settings that differ between neighbours."""
    return [
        Case(
            random_tokens(LENGTHS[i % len(LENGTHS)], seed=i),
            *SETTINGS[i % len(SETTINGS)],
            new_tokens,
        )
        for i in range(count)
    ]


def computed(model: str, cases: Sequence[Case]) -> list[Answer]:
    """What plain transformers makes of ``cases``, with the paper's loop."""
    # In a process of its own: vLLM changes some transformers classes in place.
    request = {"model": model, "cases": [asdict(case) for case in cases]}
    result = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("reference.py"))],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return [Answer(**answer) for answer in json.loads(result.stdout)]


# Of models and cases that are not recorded.
_computed: dict[tuple[str, Case], Answer] = {}


def reference(model: str, cases: Sequence[Case], last_hidden: bool = False) -> list[Answer]:
    """The same, recorded where it is; ``last_hidden`` only if asked for."""
    recorded = answers_of(model)
    found = {case: recorded.find(asdict(case), last_hidden) for case in cases}
    answers = {case: Answer(**answer) for case, answer in found.items() if answer is not None}
    missing = [c for c in found if c not in answers and (model, c) not in _computed]
    if missing:
        new = computed(model, missing)
        _computed.update(((model, case), answer) for case, answer in zip(missing, new, strict=True))
        if recording():
            pairs = ((asdict(c), asdict(a)) for c, a in zip(missing, new, strict=True))
            recorded.record(pairs, last_hidden)
        else:
            name = Path(model).name
            warnings.warn(f"{len(missing)} answers of {name} are not recorded", stacklevel=2)
    return [answers.get(case) or _computed[model, case] for case in cases]


def assert_tokens_equal(got: list[list[int]], expected: list[Answer]) -> None:
    """Equal, or first different where the reference's two best logits nearly tie; at most 0.1 % of
    the tokens may be such."""
    ties = total = 0
    for i, (tokens, answer) in enumerate(zip(got, expected, strict=True)):
        total += len(answer.tokens)
        assert len(tokens) == len(answer.tokens)
        for position, (a, b) in enumerate(zip(tokens, answer.tokens, strict=True)):
            if a != b:
                gap = answer.gaps[position]
                assert gap < NEAR_TIE, f"case {i}, token {position}: {a} != {b}, gap {gap}"
                ties += 1
                break
    assert ties <= 0.001 * total, f"{ties} near ties in {total} tokens"


def delta_tolerance(lr: float) -> float:
    return max(2e-3 * lr, 2e-5)


def assert_delta_equal(got: list[float] | None, expected: Answer, lr: float) -> None:
    assert got is not None
    error = (torch.tensor(got) - torch.tensor(expected.delta)).abs().max().item()
    assert error <= delta_tolerance(lr), error
