"""vLLM's Rust front end: its requests are admitted in the engine core."""

import asyncio
from pathlib import Path
from typing import Any

import openai
import pytest
import vllm
from vllm import SamplingParams
from vllm.engine.arg_utils import EngineArgs
from vllm.exceptions import VLLMValidationError
from vllm.usage.usage_lib import UsageContext
from vllm.v1.engine.core import EngineCore

from slot_vllm.engine.frontend import rust_front_end
from slot_vllm.engine.vllm_contract import release
from slot_vllm.engine.wire.resolved import RESOLVED
from slot_vllm.params import SlotError
from tests.conftest import starts
from tests.engine.cases import Case, assert_tokens_equal, mixed_cases, reference
from tests.engine.server import MODEL, ask_all, body, serving
from tests.engine.unadmitted import unadmitted


@pytest.fixture
def rust(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_USE_RUST_FRONTEND", "1")
    monkeypatch.setenv("VLLM_RUST_FRONTEND_PATH", "/somewhere/vllm-rs")


def configured(model: str, slot: dict[str, Any] | None = None, rank: int = -1) -> Any:
    """rank: -1 as of ``vllm serve``, before it starts a front end."""
    arguments = EngineArgs(
        model,
        worker_extension_cls="slot_vllm",
        enforce_eager=True,
        additional_config={"slot": slot or {}},
    )
    arguments._api_process_rank = rank
    return arguments.create_engine_config(UsageContext.OPENAI_API_SERVER)


def core_of(vllm_config: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An engine core that gives back what it would preprocess."""
    monkeypatch.setattr(EngineCore, "preprocess_add_request", lambda self, request: request)
    rust_front_end.install()
    core = object.__new__(EngineCore)
    core.vllm_config = vllm_config
    return core


@pytest.mark.usefixtures("rust")
def test_a_core_admits_what_comes_from_there(
    tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Releases differ in whether they can say why; here it is raised.
    monkeypatch.setattr(release, "missing", lambda *parts: [])
    config = configured(tiny_model, {"lr": 0.5})
    core = core_of(config, monkeypatch)

    def admitted(**xargs: Any) -> Any:
        params = SamplingParams(extra_args=xargs)
        request = unadmitted(params, request_id="inner", external_req_id="outer")
        return core.preprocess_add_request(request).sampling_params.extra_args[RESOLVED]

    found = admitted(slot_steps=3)
    assert found["request_id"] == "outer"
    assert (found["params"]["steps"], found["params"]["lr"]) == (3, 0.5)
    with pytest.raises(VLLMValidationError, match="slot_step: unknown key"):
        admitted(slot_step=3)
    with pytest.raises(VLLMValidationError, match=f"{RESOLVED}: unknown key"):
        admitted(**{RESOLVED: dict(found)})


@pytest.mark.usefixtures("rust")
def test_a_core_behind_a_python_front_end_does_not(
    tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = core_of(configured(tiny_model, rank=0), monkeypatch)
    params = SamplingParams(extra_args={"slot_step": 3})
    assert core.preprocess_add_request(unadmitted(params)).sampling_params is params


@pytest.mark.usefixtures("rust")
def test_it_is_refused_where_no_reason_could_be_told(
    tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lacking = {"Rust front end": [(release.CONTACTS[0], "is gone")]}
    monkeypatch.setattr(release, "missing", lambda *parts: lacking.get(parts[0], []))
    with pytest.raises(SlotError, match="is gone"):
        configured(tiny_model)
    configured(tiny_model, rank=0)


@starts
def test_a_server(tiny_model: str, tmp_path: Path) -> None:
    if not (Path(vllm.__file__).parent / "vllm-rs").is_file():
        pytest.skip("this build of vLLM has no vllm-rs")
    cases = [case for case in mixed_cases(16, 12) if len(case.tokens) > 1]
    options = ("--dtype", "float32", "--max-model-len", "320")
    environment = {"VLLM_USE_RUST_FRONTEND": "1"}
    slot = {"max_prompt_tokens": 200}
    with serving(tiny_model, slot, tmp_path / "log", *options, environment=environment) as server:
        assert_tokens_equal(asyncio.run(ask_all(server, cases, 8)), reference(tiny_model, cases))
        complete, unknown = server.client.completions.create, body(cases[0], slot_step=3)
        with pytest.raises(openai.BadRequestError, match="slot_step: unknown key"):
            complete(**unknown)
        with pytest.raises(openai.BadRequestError, match="long_prompt"):
            complete(**body(Case((5,) * 201, 3, 0.1, 2)))
        with pytest.raises(openai.APIError, match="slot_step: unknown key"):
            list(complete(**unknown, stream=True))
        # Turns are found in the engine core, too.
        server.client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "abc"}],
            max_tokens=2,
            extra_body={"vllm_xargs": {"slot_steps": 2, "slot_loss_tokens": "user"}},
        )
        assert "Rust front end serves SLOT" in server.said()
