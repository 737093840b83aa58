"""vLLM where SLOT is installed and not asked for: an engine, and servers with the plugins that
VLLM_PLUGINS names, each in a process forked from this one, which has imported vLLM and no more.

``python -m tests.engine.untouched MODEL PLUGINS...`` prints, in JSON, each one's exit code and what
it wrote.
"""

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
from vllm import LLM
from vllm.engine.arg_utils import EngineArgs
from vllm.entrypoints.generate.base.serving import GenerateBaseServing
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.api_server.entry import build_async_engine_client
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.entrypoints.serve.instrumentator.metrics import attach_router
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.engine.input_processor import InputProcessor
from vllm.v1.engine.output_processor import OutputProcessor, RequestState
from vllm.v1.worker.gpu_worker import Worker

from tests.engine.forked import run_forked
from tests.engine.vllm_command import fork, forks

ENGINE = "engine"
WRAPPED_WITH_SLOT: tuple[Any, ...] = (
    InputProcessor.__init__,
    InputProcessor.process_inputs,
    Worker.load_model,
    GenerateBaseServing.__init__,
    attach_router,
    OutputProcessor.do_tracing,
    RequestState.from_new_request,
)


def loaded() -> list[str]:
    return sorted(module for module in sys.modules if module.startswith("slot_vllm"))


def ours(value: Any) -> bool:
    origins = (getattr(value, "__module__", None), type(value).__module__)
    return any(str(origin).startswith("slot_vllm") for origin in origins)


def run_engine(model: str) -> None:
    llm: Any = LLM(
        model,
        enforce_eager=True,
        max_model_len=64,
        kv_cache_memory_bytes=1 << 24,
        skip_tokenizer_init=True,
    )
    assert hasattr(EngineArgs.create_engine_config, "__wrapped__")
    for function in WRAPPED_WITH_SLOT:
        assert not hasattr(function, "__wrapped__"), function
    engine = llm.llm_engine
    runner = engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner
    for owner in (runner, engine.input_processor, runner.model.logits_processor):
        mine = [
            k for k, v in vars(owner).items() if getattr(v, "__module__", "").startswith("slot")
        ]
        assert not mine, (owner, mine)
    print("loaded", loaded())
    assert "slot_vllm.engine.worker.extension" not in loaded()
    assert "slot_vllm.engine.frontend.admission" not in loaded()


async def serve(model: str) -> None:
    options = f"--model {model} --served-model-name tiny --enforce-eager --dtype float32"
    options += f" --max-model-len 64 --kv-cache-memory-bytes {1 << 24}"
    args = make_arg_parser(FlexibleArgumentParser()).parse_args(options.split())
    async with build_async_engine_client(args) as client:
        tasks = await client.get_supported_tasks()
        app = build_app(args, tasks, client.model_config)
        await init_app_state(client, app.state, args, tasks)
        state = app.state._state
        servings = [v for v in state.values() if type(v).__module__.startswith("vllm.entrypoints")]
        names = {type(serving).__name__ for serving in servings}
        assert {"OpenAIServingChat", "OpenAIServingCompletion"} <= names, names
        whole: Any = client
        owners = [whole, whole.input_processor, whole.output_processor, whole.engine_core]
        owners += [whole.renderer, app, app.router, *servings]
        mine = [
            (type(owner).__name__, name)
            for owner in owners
            for name, value in vars(owner).items()
            if ours(value)
        ]
        assert not mine, mine
        plugins = [type(plugin).__name__ for plugin in app.state.endpoint_plugins]
        endpoints: list[Any] = [r for r in app.routes if ours(getattr(r, "endpoint", None))]
        routes = [route.path for route in endpoints]
        print("ours", plugins, routes, [name for name, value in state.items() if ours(value)])
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as http:
            # Nobody looks at it.
            body: dict[str, Any] = {"model": "tiny", "prompt": "7", "max_tokens": 2}
            body["vllm_xargs"] = {"slot_steps": -1}
            for stream in (False, True):
                answer = await http.post("/v1/completions", json=body | {"stream": stream})
                assert answer.status_code == 200 and "error" not in answer.text, answer.text
            metrics = await http.get("/metrics")
            assert metrics.status_code == 200 and "vllm:num_requests_running" in metrics.text
            assert "slot" not in metrics.text
            stats = await http.get("/slot/stats")
            print("stats", stats.status_code, stats.text)


def run_server(model: str) -> None:
    asyncio.run(serve(model))
    assert "slot_vllm.engine.frontend.server" not in loaded()
    assert "slot_vllm.engine.frontend.admission" not in loaded()


def _run(work: Callable[[str], None], model: str, plugins: str | None) -> None:
    if plugins is not None:
        os.environ["VLLM_PLUGINS"] = plugins
    if forks():
        fork()
    work(model)


def main(model: str, plugins: Sequence[str]) -> None:
    found: dict[str, tuple[int, str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder) / "said"
        for name in (ENGINE, *plugins):
            arguments = (run_engine, model, None) if name == ENGINE else (run_server, model, name)
            found[name] = run_forked(said, _run, *arguments), said.read_text()
    print(json.dumps(found))


if __name__ == "__main__":
    assert not loaded(), loaded()
    main(sys.argv[1], sys.argv[2:])
