"""Both scoring endpoints: which of their requests have SLOT (none), and which are refused."""

import asyncio
import importlib
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict
from vllm.exceptions import VLLMValidationError

from slot_vllm.engine.frontend import scoring
from slot_vllm.engine.frontend.admission import Admission
from slot_vllm.engine.vllm_contract.server import SCORING_ENDPOINTS
from slot_vllm.engine.wire.resolved import RESOLVED
from slot_vllm.params import SlotConfig
from tests.engine.unadmitted import unadmitted


class Body(BaseModel):
    model_config = ConfigDict(extra="allow")


@pytest.fixture(params=SCORING_ENDPOINTS, ids=lambda endpoint: endpoint[1])
def endpoint(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The endpoint's method, whose body asks the engine's admission in a task, as vLLM's does."""
    path, name, method = request.param
    serving = getattr(importlib.import_module(path), name)

    async def read(self: Any, body: Any, raw_request: Any = None) -> dict[str, Any]:
        asked = self.engine_client.ask()
        return await asyncio.create_task(asked)

    monkeypatch.setattr(serving, method, read)
    scoring.install()
    scoring.install()
    return getattr(serving, method)


def serving_of(admission: Admission | None) -> Any:
    async def ask() -> dict[str, Any]:
        made = unadmitted()
        if admission is not None:
            admission.admit(made, "x")
        return made.sampling_params.extra_args or {}

    processor = SimpleNamespace(**({} if admission is None else {"slot_admission": admission}))
    return SimpleNamespace(engine_client=SimpleNamespace(input_processor=processor, ask=ask))


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
    absent = ("vllm.entrypoints.generate.no_such.serving", "Serving", "create")
    monkeypatch.setattr(scoring, "SCORING_ENDPOINTS", (absent,))
    scoring.install({absent[0]})
    with pytest.raises(ModuleNotFoundError):
        scoring.install()


def test_an_engine_without_slot_is_left_as_it_is(endpoint: Any) -> None:
    assert asyncio.run(endpoint(serving_of(None), Body.model_validate({"slot_steps": 3}))) == {}
