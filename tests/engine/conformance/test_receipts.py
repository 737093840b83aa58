"""Receipts of a mixed batch, some of it split and preempted, against the float64 oracle."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from slot_vllm.engine.frontend.origins import Origin, submitting
from slot_vllm.engine.wire.resolved import BEAM_SEARCH
from slot_vllm.engine.worker import learning
from tests.engine.cases import Answer, Case, mixed_cases, random_tokens, reference
from tests.engine.conformance.test_settings import mixed
from tests.engine.engines import scheduler_of
from tests.engine.generate import run, sampling_params
from tests.engine.runner import V2

# A prompt that begins with it fails.
BAD = 255
# None of its lengths is another's, nor are its settings.
LOST = Case((BAD, *random_tokens(30, seed=5)), 3, 0.5, 4)


def last_kl(weight: torch.Tensor, answer: Answer) -> float:
    hidden, delta = (
        torch.tensor(x, dtype=torch.float64) for x in (answer.last_hidden, answer.delta)
    )
    z, shift = weight @ hidden, weight @ delta
    own, adapted = (y.log_softmax(dim=0) for y in (z, z + shift))
    return float((adapted.exp() * (adapted - own)).sum())


def test_receipts_of_a_mixed_batch(
    tiny_model: str, engine: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = engine(tiny_model, slot={"receipts": 64})
    learn, scheduler = learning.optimize, scheduler_of(llm)
    preempted: list[str] = []
    preempt = scheduler._preempt_request

    def optimize(head: Any, prompts: Any, *args: Any, **kwargs: Any) -> Any:
        if any(int(p.tokens[0]) == BAD for p in prompts):
            raise RuntimeError("injected")
        return learn(head, prompts, *args, **kwargs)

    def watched(request: Any, *args: Any, **kwargs: Any) -> Any:
        preempted.append(request.request_id.rpartition("-")[0])
        return preempt(request, *args, **kwargs)

    monkeypatch.setattr(learning, "optimize", optimize)
    monkeypatch.setattr(scheduler, "_preempt_request", watched)
    new = 40
    cases = [c for c in mixed_cases(16, new) if len(c.tokens) > 1]
    cases += [replace(case, new_tokens=new) for case in mixed(5 if V2 else 10)]
    told = [i for i, case in enumerate(cases) if case.steps]
    expected_of = reference(tiny_model, [cases[i] for i in told], last_hidden=True)
    answers = dict(zip(told, expected_of, strict=True))
    core = llm.llm_engine

    def add(name: str, case: Case, **options: Any) -> None:
        prompt = {"prompt_token_ids": list(case.tokens)}
        core.add_request(name, prompt, sampling_params(case, **options))

    for i, case in enumerate(cases):
        add(f"case-{i}", case)
    add("same", cases[told[-1]])
    add("lost", LOST)
    add("one", Case((7,), 5, 0.1, 2))
    with submitting(Origin(BEAM_SEARCH, 1)):
        add("beam", Case(random_tokens(20, seed=6), 5, 0.1, 4), extra_args={})

    def receipt(name: str) -> Any:
        (found,) = llm.collective_rpc("slot_receipt", args=(name,))
        return found

    while core.has_unfinished_requests():
        core.step()
        if core.get_num_unfinished_requests() == len(cases) // 2:
            # Some run, some have finished, some wait.
            assert receipt("unknown") is None
    # Departures reach the worker with the next step.
    run(llm, [Case(random_tokens(4, seed=1), 0, 0.1, 1)])
    assert any(f"case-{i}" in preempted for i in told)

    weight = load_file(f"{tiny_model}/model.safetensors")["model.embed_tokens.weight"].double()
    for i, case in enumerate(cases):
        found = receipt(f"case-{i}")
        if not case.steps:
            assert (found["outcome"], found["loss_before"]) == ("plain", None)
            continue
        answer = answers[i]
        assert (found["outcome"], found["steps"], found["lr"]) == ("applied", case.steps, case.lr)
        assert found["loss_before"] == pytest.approx(answer.losses[0], rel=2e-4, abs=2e-4)
        assert found["loss_after"] == pytest.approx(answer.losses[-1], rel=5e-3, abs=2e-4)
        expected = last_kl(weight, answer)
        assert found["last_kl"] == pytest.approx(expected, rel=5e-3, abs=1e-5)
        assert found["seconds"] > 0 and found["prompts"] >= 1
    same, original = receipt("same"), receipt(f"case-{told[-1]}")
    assert {same["outcome"], original["outcome"]} == {"applied", "shared"}
    learned = ("tokens", "loss_before", "loss_after", "last_kl")
    assert [same[name] for name in learned] == [original[name] for name in learned]
    told_of = {name: receipt(name) for name in ("lost", "one", "beam")}
    assert [(r["outcome"], r["reason"]) for r in told_of.values()] == [
        ("failed", "optimizer"),
        ("one_token", None),
        ("bypassed", "beam_search"),
    ]
