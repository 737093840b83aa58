"""The scoring endpoints: which of their requests have SLOT (none), and which are refused."""

import asyncio
import importlib
from dataclasses import replace
from inspect import signature
from operator import attrgetter
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict
from vllm.exceptions import VLLMValidationError

from slot_vllm.engine.frontend import scoring
from slot_vllm.engine.frontend.admission import Admission
from slot_vllm.engine.vllm_contract.contact import Contact
from slot_vllm.engine.vllm_contract.server import SCORING_ENDPOINTS
from slot_vllm.engine.wire.resolved import RESOLVED
from slot_vllm.params import SlotConfig
from tests.engine.unadmitted import unadmitted


class Body(BaseModel):
    model_config = ConfigDict(extra="allow")


@pytest.fixture(params=SCORING_ENDPOINTS, ids=lambda at: at.name)
def endpoint(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The endpoint's method, whose body asks the engine's admission in a task, as vLLM's does."""
    at: Contact = request.param
    if at.optional:
        pytest.importorskip(at.path, reason="this release has no such endpoint")
    class_name, method = at.name.split(".")
    serving = getattr(importlib.import_module(at.path), class_name)

    async def read(self: Any, body: Any, raw_request: Any = None) -> dict[str, Any]:
        asked = attrgetter(SCORING_ENDPOINTS[at])(self).ask()
        return await asyncio.create_task(asked)

    monkeypatch.setattr(serving, method, read)
    scoring.install()
    scoring.install()
    return getattr(serving, method)


@pytest.mark.parametrize("at", SCORING_ENDPOINTS, ids=lambda at: at.name)
def test_its_object_has_the_engine_where_we_look(at: Contact) -> None:
    if at.optional:
        pytest.importorskip(at.path, reason="this release has no such endpoint")
    serving = getattr(importlib.import_module(at.path), at.name.partition(".")[0])
    engine = SimpleNamespace(model_config=None, renderer=None)
    strategy = SimpleNamespace(
        context=SimpleNamespace(engine_client=engine, model_config=None), limits=lambda: None
    )
    given = {"strategy": strategy, "engine_client": engine, "models": None}
    wanted = signature(serving.__init__).parameters
    made = serving(
        **{name: value for name, value in given.items() if name in wanted},
        **{
            name: None
            for name, parameter in wanted.items()
            if name not in {"self", *given} and parameter.default is parameter.empty
        },
    )
    assert attrgetter(SCORING_ENDPOINTS[at])(made) is engine


def serving_of(admission: Admission | None) -> Any:
    """Both ways in which endpoints have their engine."""

    async def ask() -> dict[str, Any]:
        made = unadmitted()
        if admission is not None:
            admission.admit(made, "x")
        return made.sampling_params.extra_args or {}

    processor = SimpleNamespace(**({} if admission is None else {"slot_admission": admission}))
    engine = SimpleNamespace(input_processor=processor, ask=ask)
    strategy = SimpleNamespace(context=SimpleNamespace(engine_client=engine))
    return SimpleNamespace(engine_client=engine, strategy=strategy)


def test_what_is_scored_is_left_alone(endpoint: Any) -> None:
    admission = Admission(SlotConfig(steps=5))
    serving = serving_of(admission)
    for _ in range(2):
        resolved = asyncio.run(endpoint(serving, Body()))[RESOLVED]
        assert resolved["bypassed"] == "scoring"
        assert resolved["counted"]
    # What is asked afterwards is an answer again.
    assert asyncio.run(serving.engine_client.ask())[RESOLVED]["bypassed"] is None


@pytest.mark.parametrize("body", [{"slot_steps": 3}, {"vllm_xargs": {"a": 1, "slot_steps": 0}}])
def test_a_named_setting_is_an_error(endpoint: Any, body: dict[str, Any]) -> None:
    serving = serving_of(Admission(SlotConfig()))
    with pytest.raises(VLLMValidationError, match=r"^slot_steps: .* this endpoint scores; allowed"):
        asyncio.run(endpoint(serving, Body(**body)))


def test_a_release_may_lack_an_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = Contact("scoring", "vllm.entrypoints.no_such.serving", "Serving.create", "a test")
    monkeypatch.setattr(scoring, "SCORING_ENDPOINTS", {absent: "engine"})
    scoring.install({absent.path})
    with pytest.raises(ModuleNotFoundError):
        scoring.install()
    monkeypatch.setattr(scoring, "SCORING_ENDPOINTS", {replace(absent, optional=True): "engine"})
    scoring.install()


def test_an_engine_without_slot_is_left_as_it_is(endpoint: Any) -> None:
    assert asyncio.run(endpoint(serving_of(None), Body.model_validate({"slot_steps": 3}))) == {}
