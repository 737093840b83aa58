"""Every request of an engine is counted once, whatever the scheduler does with it."""

from collections.abc import Callable
from typing import Any

from slot_vllm.engine.frontend.metrics import OUTCOMES
from tests.engine.cases import Case, random_tokens
from tests.engine.engines import scheduler_of
from tests.engine.generate import run
from tests.engine.runner import V2


def test_preempted_requests_are_counted_once(
    tiny_model: str, engine: Callable[..., Any], monkeypatch: Any
) -> None:
    llm = engine(tiny_model, slot={}, num_gpu_blocks_override=7, max_model_len=160)
    scheduler = scheduler_of(llm)
    preempted: set[int] = set()
    original = scheduler._preempt_request

    def preempt(request: Any, *args: Any, **kwargs: Any) -> Any:
        preempted.add(len(request.prompt_token_ids))
        return original(request, *args, **kwargs)

    monkeypatch.setattr(scheduler, "_preempt_request", preempt)
    # Odd lengths without SLOT.
    cases = [
        Case(random_tokens(40 + i, seed=i), (i + 1) % 2 * 2, 0.1, 40 if V2 else 60)
        for i in range(6)
    ]
    (before,) = llm.collective_rpc("slot_metrics")
    run(llm, cases)
    (after,) = llm.collective_rpc("slot_metrics")
    assert any(length % 2 for length in preempted), "no request without SLOT was preempted"
    assert any(not length % 2 for length in preempted), "no request with SLOT was preempted"
    stats, earlier = after["stats"], before["stats"]
    counts = {name: stats[name] - earlier[name] for name in OUTCOMES}
    assert {name: n for name, n in counts.items() if n} == {"optimized": 3, "plain": 3}
    drops = [sum(m["histograms"]["loss_drop"]["counts"]) for m in (before, after)]
    assert drops[1] - drops[0] == 3
    steps = [sum(m["histograms"]["optimize_seconds"]["counts"]) for m in (before, after)]
    assert 1 <= steps[1] - steps[0] <= 3
