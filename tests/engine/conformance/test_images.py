"""Models that see images: text requests equal the language model alone, and what is text of a
prompt with an image is learned from."""

import hashlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image
from torch import Tensor

from tests.conftest import starts
from tests.engine import tiny_vlm
from tests.engine.cases import (
    Case,
    assert_delta_equal,
    assert_tokens_equal,
    mixed_cases,
    random_tokens,
    reference,
)
from tests.engine.engines import ROOMY, runner_of
from tests.engine.generate import delta_of, run, sampling_params, stats_of, tokens_of
from tests.engine.own_answers import own_answer
from tests.engine.tiny_vlm import IMAGE_TOKEN, IMAGE_TOKENS, SIZE, VOCABULARY

NEW = 6
OPTIONS: dict[str, Any] = {"skip_tokenizer_init": False, "limit_mm_per_prompt": {"image": 2}}


@pytest.fixture(scope="module")
@starts
def vlm(tiny_models: Callable[[str, bool, int], str]) -> tuple[str, str]:
    """The paths of a model that sees images and of its language model, beside which it is kept."""
    language = tiny_models("llama", False, VOCABULARY)
    script = Path(tiny_vlm.__file__)
    key = hashlib.sha256(script.read_bytes()).hexdigest()[:16]
    model = Path(language).with_name(f"idefics3-{key}")
    with FileLock(f"{model}.lock"):
        if not model.exists():
            # In a process of its own: importing transformers' models first disturbs vLLM's.
            command = [sys.executable, "-m", tiny_vlm.__name__, language, str(model)]
            subprocess.run(command, check=True, cwd=script.parents[2])
    return str(model), language


def picture(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def ask(llm: Any, text: tuple[int, ...], before: int, image: Image.Image) -> tuple[Case, Any]:
    """A prompt with an image after so many tokens of ``text``, as vLLM makes it, and its output."""
    case = Case((*text[:before], IMAGE_TOKEN, *text[before:]), 5, 0.3, NEW)
    prompt = {"prompt_token_ids": list(case.tokens), "multi_modal_data": {"image": image}}
    (output,) = llm.generate([prompt], sampling_params(case), use_tqdm=False)
    tokens = tuple(output.prompt_token_ids)
    after = tokens[len(tokens) - len(text) + before :]
    assert tokens[:before] + after == text
    counts = tuple(token != IMAGE_TOKEN for token in tokens)
    # The others are marks around it.
    assert counts.count(False) == IMAGE_TOKENS < len(tokens) - len(text)
    return replace(case, tokens=tokens, counts=counts), output


@contextmanager
def recorded(llm: Any) -> Iterator[list[Tensor]]:
    """The hidden states of each step meanwhile, of whatever is in it."""
    steps: list[Tensor] = []
    model = runner_of(llm).get_model()
    handle = model.register_forward_hook(lambda _, inputs, output: steps.append(output.clone()))
    yield steps
    handle.remove()


def test_text_requests_equal_the_language_model(
    vlm: tuple[str, str], engine: Callable[..., Any]
) -> None:
    model, language = vlm
    cases = mixed_cases(8, NEW)
    llm = engine(model, slot={}, **ROOMY, **OPTIONS)
    outputs = run(llm, cases)
    expected = reference(language, cases)
    assert_tokens_equal(tokens_of(outputs), expected)
    for case, output, answer in zip(cases, outputs, expected, strict=True):
        if case.steps:
            assert_delta_equal(delta_of(llm, output), answer, case.lr)
    assert stats_of(llm)["bypassed"] == 0


# Before an image, after it; in the last one the prompt is split over steps, within the image.
@pytest.mark.parametrize(("before", "after"), [(7, 5), (0, 9), (6, 0), (40, 30)])
def test_the_text_of_a_prompt_with_an_image_is_learned_from(
    before: int, after: int, vlm: tuple[str, str], engine: Callable[..., Any]
) -> None:
    llm = engine(vlm[0], slot={}, **ROOMY, **OPTIONS)
    text = random_tokens(before + after, seed=3000 + before)
    with recorded(llm) as steps:
        case, output = ask(llm, text, before, picture(1))
    states = torch.cat(steps)[: len(case.tokens) + NEW - 1]
    assert (len(steps) > NEW) == (len(case.tokens) > 48)
    expected = own_answer(runner_of(llm).slot_state.linear_head.head(), case, states)
    assert_tokens_equal(tokens_of([output]), [expected])
    assert_delta_equal(delta_of(llm, output), expected, case.lr)
    (losses,) = llm.collective_rpc("slot_losses", args=(output.request_id,))
    assert losses == pytest.approx(expected.losses, rel=2e-4, abs=2e-4)
    assert stats_of(llm)["optimized"] == 1


def test_equal_prompts_share_a_delta_if_their_images_are_equal(
    vlm: tuple[str, str], engine: Callable[..., Any]
) -> None:
    llm = engine(vlm[0], slot={}, **ROOMY, **OPTIONS)
    text = random_tokens(49, seed=3100)
    asked = [ask(llm, text[:40], 20, picture(seed)) for seed in (1, 2, 1)]
    deltas = [delta_of(llm, output) for _, output in asked]
    assert [stats_of(llm)[name] for name in ("optimized", "shared")] == [2, 1]
    assert deltas[0] == deltas[2] != deltas[1]
    # What goes on from it reads its hidden states from the prefix cache.
    before = stats_of(llm)["hidden_rows_cached"]
    case, output = ask(llm, text, 20, picture(1))
    assert stats_of(llm)["hidden_rows_cached"] >= before + 64
    cached = delta_of(llm, output)
    llm.reset_prefix_cache()
    llm.collective_rpc("slot_forget_shared")
    cold = delta_of(llm, ask(llm, text, 20, picture(1))[1])
    assert stats_of(llm)["optimized"] == 4
    assert cached is not None and cold is not None
    assert cached == pytest.approx(cold, abs=2e-3 * case.lr)
