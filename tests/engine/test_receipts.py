"""What a receipt says, for how long there is one, and that without ``receipts`` nothing is done."""

from typing import Any

import pytest
import torch

from slot_vllm.engine.wire.receipt_dict import MOST_SECONDS
from slot_vllm.engine.worker import learning
from slot_vllm.engine.worker.receipts import Receipts
from slot_vllm.engine.worker.request import TrackedRequest
from slot_vllm.optim import optimize as optimize_module
from slot_vllm.optim.optimize import Prompt, optimize
from slot_vllm.optim.oracle import oracle
from slot_vllm.params import SlotParams
from tests.engine.test_step import (
    TOKENS,
    FixedHead,
    RunnerState,
    arrival,
    begin,
    hidden_of,
    make_state,
    step,
)

# None of what only happens to requests with a delta.
NOTHING = dict.fromkeys(
    (
        "tokens",
        "loss_before",
        "loss_after",
        "last_kl",
        "seconds",
        "prompts",
    )
)
LONG = [*TOKENS, *reversed(TOKENS), 7, 7, *TOKENS]


def assert_is_the_oracle_s(receipt: Any, tokens: list[int], **settings: Any) -> None:
    params = SlotParams(**settings)
    expected = oracle(FixedHead().head(), Prompt(hidden_of(tokens), torch.tensor(tokens), params))
    assert receipt["loss_before"] == pytest.approx(expected.losses[0].item(), rel=1e-4)
    assert receipt["loss_after"] == pytest.approx(expected.losses[-1].item(), rel=2e-3)
    assert expected.last_kl is not None
    assert receipt["last_kl"] == pytest.approx(expected.last_kl.item(), rel=2e-3)
    assert receipt["tokens"] == expected.rows


SETTINGS: dict[str, dict[str, Any]] = {
    "own": {},
    "far": {"lr": 0.3},
    "some": {"loss_tokens": 4},
}


def test_what_each_outcome_says() -> None:
    state = make_state(capacity=12, receipts=20, keep_deltas=0)
    new = [arrival(f"{name}-1", LONG, **settings) for name, settings in SETTINGS.items()]
    new += [
        arrival("same-1", LONG),
        arrival("one-1", [7]),
        arrival("by-1", TOKENS, steps=3, bypassed="prompt_embeddings"),
        arrival("plain-1", TOKENS, steps=0),
        arrival("old-1", TOKENS, version="9.9"),
        arrival("bad-1", [3, 10**6]),
        arrival("later-1", TOKENS),
    ]
    begin(state, new)
    # What is known of a prompt at its arrival; the others' are not complete.
    assert state.receipt("own") is None and state.receipt("plain") is not None
    step(
        state,
        *((f"{name}-1", LONG, 0) for name in (*SETTINGS, "same")),
        ("one-1", [7], 0),
        ("bad-1", [3, 0], 0),
        ("later-1", TOKENS[:3], 0),
    )

    def read() -> dict[str, Any]:
        names = (n.req_id.partition("-")[0] for n in new)
        return {name: state.receipt(name) for name in names}

    receipts = read()
    assert receipts.pop("later") is None
    for name, settings in SETTINGS.items():
        receipt = receipts[name]
        assert (receipt["request_id"], receipt["outcome"]) == (name, "applied")
        assert (receipt["steps"], receipt["lr"]) == (2, settings.get("lr", 0.1))
        assert_is_the_oracle_s(receipt, LONG, steps=2, **settings)
        # Those of one token, and of a token that is none, came to be learned from too.
        assert receipt["seconds"] > 0 and receipt["prompts"] == len(SETTINGS) + 2
    own, same = receipts["own"], receipts["same"]
    differs = {"request_id": "same", "outcome": "shared", "seconds": None, "prompts": None}
    assert same == {**own, **differs}
    for name, outcome, reason, steps in (
        ("one", "one_token", None, 2),
        ("by", "bypassed", "prompt_embeddings", 3),
        ("plain", "plain", None, None),
        ("old", "failed", "arrival", None),
        ("bad", "failed", "vocabulary", 2),
    ):
        expected = {"request_id": name, "outcome": outcome, "reason": reason, "steps": steps}
        assert receipts[name] == {**NOTHING, **expected, "lr": 0.1 if steps else None}

    # Departure changes nothing; one that was aborted within its prompt has none.
    begin(state, finished={n.req_id for n in new})
    assert not state.registry.requests
    after = read()
    assert after.pop("later") is None
    assert after == receipts
    # Nothing as large as a delta is kept.
    kept = [r.learned.delta for r in state.registry.receipts._finished.values() if r.learned]
    assert kept and all(delta.untyped_storage().nbytes() == 0 for delta in kept)


def test_a_delta_that_is_lost_later() -> None:
    state = make_state(receipts=4)
    begin(state, [arrival("a-1", TOKENS), arrival("b-1", LONG)])
    step(state, ("a-1", TOKENS, 0), ("b-1", LONG, 0))
    state.step._adapted = [q for q in state.registry.with_slot if q.req_id == "a-1"]

    def fail() -> Any:
        raise RuntimeError("injected")

    assert state.step.attempt(fail) is None
    state.linear_head.weight[3, 2] = float("inf")  # type: ignore[attr-defined]
    begin(state, [arrival("c-1", LONG[:-1])], finished={"a-1", "b-1"})
    step(state, ("c-1", LONG[:-1], 0))
    found: dict[str, Any] = {name: state.receipt(name) for name in "abc"}
    assert [(r["outcome"], r["reason"]) for r in found.values()] == [
        ("failed", "logits"),
        ("applied", None),
        ("failed", "non_finite"),
    ]
    assert all(found[name][key] is None for name in "ac" for key in NOTHING)


def test_a_preempted_request_has_one_receipt() -> None:
    state = make_state(receipts=4)
    begin(state, [arrival("a-1", TOKENS), arrival("p-1", TOKENS, steps=0)])
    step(state, ("a-1", TOKENS[:5], 0))
    begin(state, preempted={"a-1", "p-1"})
    assert state.receipt("a") is None
    begin(state, [arrival("a-1", TOKENS), arrival("p-1", TOKENS, steps=0)])
    step(state, ("a-1", TOKENS, 0))
    learned = state.receipt("a")
    begin(state, preempted={"a-1"})
    begin(state, [arrival("a-1", TOKENS)])
    step(state, ("a-1", [*TOKENS, 1], 0))
    begin(state, finished={"a-1", "p-1"})
    assert state.receipt("a") == learned and learned is not None
    assert_is_the_oracle_s(learned, TOKENS, steps=2)
    assert len(state.registry.receipts._finished) == 2


def finish(receipts: Receipts, name: str) -> None:
    receipts.finish(f"{name}-1", TrackedRequest(f"{name}-1", "plain"))


def test_how_many_are_kept_and_for_how_long() -> None:
    now = 0.0
    receipts = Receipts(2, lambda: now)
    for name in "abc":
        finish(receipts, name)
        now += 1

    def known() -> str:
        return "".join(
            name for name in "abc" if receipts.of_responses([f"{name}-1"], ())[f"{name}-1"]
        )

    assert known() == "bc"
    now = MOST_SECONDS + 0.5
    assert known() == "bc"
    now += 1
    assert known() == "c"
    now += 1
    assert known() == "" and not len(receipts._finished)


def test_an_id_that_is_used_again_is_the_newest_s() -> None:
    receipts = Receipts(2)
    for name in ("a", "b", "a", "c"):
        finish(receipts, name)
    assert [receipt.external_id for receipt in receipts._finished.values()] == ["a-1", "c-1"]
    state = make_state(receipts=4)
    for req_id, tokens in (("a-1", TOKENS), ("a-2", LONG)):
        begin(state, [arrival(req_id, tokens)], finished={"a-1"})
        step(state, (req_id, tokens, 0))
    receipt = state.receipt("a")
    assert receipt is not None and receipt["tokens"] == len(LONG) - 1


def test_several_answers_to_one_prompt_have_the_receipt_of_the_one_that_learned() -> None:
    state = make_state(receipts=4)
    # As vLLM names the requests that n makes of one, after admission.
    names = ["x-0", "x-1", "x-2"]
    begin(state, [arrival(name, TOKENS) for name in names])
    step(state, *((name, TOKENS, 0) for name in names))
    for finished in ({"x-0"}, {"x-1", "x-2"}):
        receipt = state.receipt("x")
        assert receipt is not None and receipt["outcome"] == "applied" and receipt["seconds"]
        begin(state, finished=finished)


def test_a_beam_search_has_one_receipt() -> None:
    state = make_state(receipts=2)
    begin(state, [arrival("p-1", TOKENS, steps=0)])
    begin(state, finished={"p-1"})
    for i in range(6):
        new = arrival(f"b-{i}", TOKENS, bypassed="beam_search")
        name = f"cmpl-a-{i:016x}-beam-{i % 2}"
        # As admission says it.
        new.sampling_params.extra_args["slot"] |= {"request_id": name, "counted": i == 0}
        begin(state, [new])
        (receipt,) = state.receipts_of(["cmpl-a"])["cmpl-a"]
        assert (receipt["outcome"], receipt["reason"]) == ("bypassed", "beam_search")
        begin(state, finished={new.req_id})
    (again,) = state.receipts_of(["cmpl-a"])["cmpl-a"]
    assert again == receipt
    # It cost no other its place.
    assert state.receipt("p") is not None


@pytest.mark.parametrize(
    ("response", "prompts"),
    [
        ("cmpl-a", ["cmpl-a-0", "cmpl-a-2", "cmpl-a-10"]),
        ("cmpl-a-2", ["cmpl-a-2"]),
        ("cmpl-a-b", ["cmpl-a-b-0"]),
        ("chatcmpl-a", ["chatcmpl-a"]),
        ("chatcmpl-b", ["chatcmpl-b_0", "chatcmpl-b_1"]),
        ("generate-tokens-a", ["generate-tokens-a"]),
        ("resp_a", ["resp_a_0"]),
        # None of these may tell what others are called.
        ("cmpl", []),
        ("cmpl-", []),
        ("chatcmpl", []),
        ("chatcmpl-", []),
        ("generate-tokens", []),
        ("resp_", []),
        ("", []),
        ("7", []),
        ("c", []),
        (".*", []),
    ],
)
def test_which_requests_a_response_is_made_of(response: str, prompts: list[str]) -> None:
    receipts = Receipts(40)
    names = ["cmpl-a-10", "cmpl-a-0", "cmpl-a-2", "cmpl-a-b-0", "chatcmpl-a", "chatcmpl-b_1"]
    names += ["chatcmpl-b_0", "generate-tokens-a", "generate-tokens-3", "resp_a_0", "chatcmpl-3"]
    for name in names:
        receipts.finish(f"{name}-1f", TrackedRequest(name, "plain"))
    found = receipts.of_responses([response, "cmpl-unknown"], ())
    assert [receipt.external_id for receipt in found[response]] == prompts
    assert found["cmpl-unknown"] == []


def served(state: RunnerState) -> None:
    """A request of each kind, from arrival to departure."""
    new = [
        arrival("a-1", LONG, loss_tokens=6),
        arrival("b-1", LONG),
        arrival("p-1", LONG, steps=0),
        arrival("m-1", LONG, bypassed="prompt_embeddings"),
        arrival("o-1", LONG, version="9.9"),
    ]
    begin(state, new)
    step(state, ("a-1", LONG, 0), ("b-1", LONG, 0))
    begin(state, finished={n.req_id for n in new})


@pytest.mark.parametrize("receipts", [0, 8])
def test_without_them_nothing_is_asked_for_and_nothing_kept(
    receipts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    looks: list[int] = []
    last_kl = optimize_module.last_kl

    def watched(*args: Any, **kwargs: Any) -> Any:
        asked.append(kwargs)
        return optimize(*args, **kwargs)

    def looked(*args: Any) -> Any:
        looks.append(1)
        return last_kl(*args)

    monkeypatch.setattr(learning, "optimize", watched)
    monkeypatch.setattr(optimize_module, "last_kl", looked)
    state = make_state(receipts=receipts, keep_deltas=2)
    served(state)
    wanted = receipts > 0
    assert [(a["final_loss"], a["with_last_kl"]) for a in asked] == [(wanted, wanted)]
    assert len(looks) == wanted
    (one, other) = (learned for _, learned in state.registry.kept.values())
    assert len(one.losses) == len(other.losses) == 2 + wanted
    assert (one.last_kl is not None) == wanted
    assert len(state.registry.receipts._finished) == (5 if wanted else 0)
    assert not state.registry.requests
    assert all((state.receipt(name) is not None) == wanted for name in "abpmo")


def test_nothing_is_read_before_a_receipt_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU each of these would wait for the device."""
    watching = False
    read: list[str] = []

    def watch(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def call(*args: Any) -> Any:
            nonlocal watching
            watching = True
            try:
                return original(*args)
            finally:
                watching = False

        monkeypatch.setattr(owner, name, call)

    for name in ("item", "tolist", "cpu", "__float__", "__bool__"):
        original = getattr(torch.Tensor, name)

        def reading(self: Any, *args: Any, original: Any = original, name: str = name) -> Any:
            if watching:
                read.append(name)
            return original(self, *args)

        monkeypatch.setattr(torch.Tensor, name, reading)
    watch(optimize_module, "last_kl")
    watch(Receipts, "finish")
    state = make_state(receipts=8)
    begin(state, [arrival("a-1", LONG)])
    step(state, ("a-1", LONG, 0))
    begin(state, finished={"a-1"})
    assert not read
    watch(RunnerState, "receipt")
    receipt = state.receipt("a")
    assert receipt is not None and receipt["last_kl"] is not None and read
