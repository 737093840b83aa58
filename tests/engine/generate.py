"""Running cases through an engine."""

from collections.abc import Sequence
from typing import Any

import torch

from tests.engine.cases import Case


def sampling_params(case: Case, **options: Any) -> Any:
    from vllm import SamplingParams

    defaults = {
        "temperature": 0,
        "max_tokens": case.new_tokens,
        "ignore_eos": True,
        "detokenize": False,
        "extra_args": {
            "slot_steps": case.steps,
            "slot_lr": case.lr,
            **{f"slot_{key}": value for key, value in case.settings},
        },
    }
    return SamplingParams(**{**defaults, **options})


def run(llm: Any, cases: Sequence[Case], **options: Any) -> list[Any]:
    """One RequestOutput per case, in order."""
    prompts = [{"prompt_token_ids": list(case.tokens)} for case in cases]
    outputs: list[Any] = llm.generate(
        prompts, [sampling_params(case, **options) for case in cases], use_tqdm=False
    )
    return outputs


def tokens_of(outputs: Sequence[Any]) -> list[list[int]]:
    return [list(output.outputs[0].token_ids) for output in outputs]


def delta_of(llm: Any, output: Any) -> list[float] | None:
    (delta,) = llm.collective_rpc("slot_delta", args=(output.request_id,))
    return delta


def shifts_of(llm: Any, output: Any) -> torch.Tensor | None:
    (shifts,) = llm.collective_rpc("slot_token_shifts", args=(output.request_id,))
    return None if shifts is None else torch.frombuffer(bytearray(shifts), dtype=torch.float32)


def stats_of(llm: Any) -> dict[str, Any]:
    """What an engine of the fixture ``engine`` counted in this test, and its gauges."""
    (stats,) = llm.collective_rpc("slot_stats")
    before = getattr(llm, "stats_before", {})
    return {name: value - before.get(name, 0) for name, value in stats.items()}
