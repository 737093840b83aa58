"""What start-up refuses, resolves and leaves alone. No engine is started here."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.config import KVTransferConfig
from vllm.engine.arg_utils import EngineArgs

from slot_vllm import __version__
from slot_vllm.engine.frontend.hidden_cache_choice import choose
from slot_vllm.engine.vllm_contract import release
from slot_vllm.engine.vllm_contract.source import Source
from slot_vllm.engine.wire.engine_settings import EXTENSION, asks_for_slot, read_config
from slot_vllm.params import SlotConfig, SlotError
from tests.conftest import ROOT, starts

CONNECTOR = KVTransferConfig(kv_connector="ExampleConnector", kv_role="kv_both")


def config(model: str, **options: Any) -> Any:
    defaults: dict[str, Any] = {"worker_extension_cls": "slot_vllm", "enforce_eager": True}
    return EngineArgs(model, **{**defaults, **options}).create_engine_config()


def test_the_bare_name_is_expanded_and_the_settings_are_resolved(
    tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLOT_STEPS", "2")
    monkeypatch.setenv("SLOT_LR", "0.5")
    mine = {"slot": {"lr": 0.25}, "other": 1}
    vllm_config = config(tiny_model, additional_config=mine)
    assert vllm_config.parallel_config.worker_extension_cls == EXTENSION
    assert vllm_config.additional_config["other"] == 1
    assert mine == {"slot": {"lr": 0.25}, "other": 1}
    monkeypatch.delenv("SLOT_STEPS")
    resolved = read_config(vllm_config)
    assert (resolved.steps, resolved.lr) == (2, 0.25)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (
            {"tensor_parallel_size": 2, "decode_context_parallel_size": 2},
            "decode_context_parallel_size 2 (allowed: 1)",
        ),
        ({"kv_sharing_fast_prefill": True}, "--kv-sharing-fast-prefill"),
        ({"runner": "pooling"}, "pooling model"),
        ({"additional_config": {"slot": {"step": 1}}}, "slot.step: unknown key"),
        ({"additional_config": {"slot": {"lr": "x"}}}, "slot.lr='x'"),
        (
            {"worker_extension_cls": "", "additional_config": {"slot": {}}},
            "add --worker-extension slot_vllm",
        ),
    ],
)
def test_refused_at_start_up(options: dict[str, Any], part: str, tiny_model: str) -> None:
    with pytest.raises(SlotError) as error:
        config(tiny_model, **options)
    assert part in str(error.value)


@pytest.mark.parametrize(
    ("architecture", "options", "reason"),
    [
        ("qwen2", {}, None),
        ("llama", {"enable_prefix_caching": False}, "prefix caching off"),
        ("gemma2", {}, "not full attention (sliding_attention)"),
        ("qwen2", {"kv_cache_dtype": "fp8"}, "KV cache dtype fp8"),
        (
            "qwen2",
            {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2}},
            None,
        ),
        ("qwen2", {"kv_transfer_config": CONNECTOR}, "a KV connector"),
        ("qwen2", {"kv_offloading_size": 1.0}, "a KV connector"),
    ],
)
def test_where_hidden_states_are_kept(
    architecture: str,
    options: dict[str, Any],
    reason: str | None,
    tiny_models: Callable[[str, bool], str],
    slot_log: pytest.LogCaptureFixture,
) -> None:
    model = tiny_models(architecture, architecture != "llama")
    chosen = read_config(config(model, **options)).hidden_cache
    said = [r.getMessage() for r in slot_log.records if "hidden_cache is auto" in r.getMessage()]
    assert chosen == ("on" if reason is None else "off")
    assert len(said) == (reason is not None)
    assert reason is None or reason in said[0]
    wanted = {"additional_config": {"slot": {"hidden_cache": "on"}}}
    if reason is None or "prefix caching" in reason:
        assert read_config(config(model, **options, **wanted)).hidden_cache == "on"
    else:
        with pytest.raises(SlotError, match=r"slot\.hidden_cache='on'") as error:
            config(model, **options, **wanted)
        assert reason in str(error.value)


def test_draft_models_layouts_and_old_releases_keep_no_hidden_states(
    tiny_model: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    vllm_config = config(tiny_model)
    settings = SlotConfig(hidden_cache="auto")
    assert choose(settings, vllm_config).hidden_cache == "on"
    monkeypatch.setenv("VLLM_KV_CACHE_LAYOUT", "LHBNC")
    assert choose(settings, vllm_config).hidden_cache == "off"
    monkeypatch.delenv("VLLM_KV_CACHE_LAYOUT")
    vllm_config.speculative_config = SimpleNamespace(method="eagle3")
    assert choose(settings, vllm_config).hidden_cache == "off"
    vllm_config.speculative_config = None
    # Up to 0.28 the cache is laid out otherwise.
    path = Path("vllm/model_executor/models/extract_hidden_states.py")
    (tmp_path / path).parent.mkdir(parents=True)
    text = (release.installed().root / path).read_text()
    (tmp_path / path).write_text(text.replace("block_size, :, slot_mapping", "block_size, slot"))
    monkeypatch.setattr(release, "installed", lambda: Source(tmp_path))
    assert choose(settings, vllm_config).hidden_cache == "off"
    with pytest.raises(SlotError, match=r"HiddenStateCacheSpec is not there.*basic_cache does not"):
        choose(SlotConfig(hidden_cache="on"), vllm_config)


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("named", [False, True])
def test_a_limit_of_completions_sets_the_scheduler(
    asynchronous: bool, named: bool, tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.platforms.cpu import CpuPlatform
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.core.sched.scheduler import Scheduler

    from slot_vllm.engine.frontend.scheduler import LimitedAsyncScheduler, LimitedScheduler

    check = CpuPlatform.check_and_update_config

    def check_but_keep_asynchronous(_cls: Any, vllm_config: Any) -> None:
        check(vllm_config)
        vllm_config.scheduler_config.async_scheduling = asynchronous

    monkeypatch.setattr(
        CpuPlatform, "check_and_update_config", classmethod(check_but_keep_asynchronous)
    )
    limited = {"additional_config": {"slot": {"max_concurrent": 1}}}
    base = AsyncScheduler if asynchronous else Scheduler
    options = {"scheduler_cls": f"{base.__module__}.{base.__qualname__}"} if named else {}
    expected = LimitedAsyncScheduler if asynchronous else LimitedScheduler
    settings = config(tiny_model, **limited, **options).scheduler_config
    # By name: it is resolved in the engine's own process.
    assert isinstance(settings.scheduler_cls, str)
    assert settings.get_scheduler_cls() is expected
    assert config(tiny_model, **options).scheduler_config.get_scheduler_cls() is base


def test_other_schedulers_are_refused_with_a_limit_of_completions(tiny_model: str) -> None:
    from vllm.v1.core.sched.scheduler import Scheduler

    from slot_vllm.engine.frontend.scheduler import LimitedCompletions

    limited = {"additional_config": {"slot": {"max_concurrent": 1}}}
    own = type("Own", (Scheduler,), {})
    with pytest.raises(
        SlotError, match=r"slot\.max_concurrent: the scheduler .*\.Own is not known"
    ):
        config(tiny_model, scheduler_cls=own, **limited)
    assert config(tiny_model, scheduler_cls=own).scheduler_config.scheduler_cls is own
    both = type("Both", (LimitedCompletions, own), {})
    assert config(tiny_model, scheduler_cls=both, **limited).scheduler_config.scheduler_cls is both


class Combined:
    """Stands for a user's own extension that builds on ours."""


@pytest.mark.parametrize(
    "name", ["slot_vllm.engine.worker.extension.SlotWorkerExtension", "subclass"]
)
def test_other_names_of_the_extension_ask_for_slot_too(
    name: str, tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "subclass":
        from slot_vllm import SlotWorkerExtension

        combined = type("Combined", (SlotWorkerExtension,), {})
        monkeypatch.setattr("tests.engine.test_startup.Combined", combined)
        name = "tests.engine.test_startup.Combined"
    settings = {"slot": {"steps": 3}}
    vllm_config = config(tiny_model, worker_extension_cls=name, additional_config=settings)
    assert asks_for_slot(vllm_config)
    assert read_config(vllm_config).steps == 3
    vllm_config.parallel_config.worker_extension_cls = "collections.OrderedDict"
    assert not asks_for_slot(vllm_config)


@pytest.mark.parametrize(("slot", "steps"), [(None, 0), ({"max_steps": 9}, 0), ({"lr": 0.2}, 5)])
def test_requests_that_name_nothing_have_slot_where_the_engine_names_a_setting(
    slot: dict[str, Any] | None, steps: int, tiny_model: str
) -> None:
    named: dict[str, Any] = {} if slot is None else {"additional_config": {"slot": slot}}
    assert read_config(config(tiny_model, **named)).steps == steps


def test_a_worker_whose_front_end_never_loaded_the_plugin_refuses(tiny_model: str) -> None:
    vllm_config = config(tiny_model)
    vllm_config.additional_config = {"slot": {"steps": 5}}
    with pytest.raises(SlotError, match="VLLM_PLUGINS is set, it must name slot_vllm"):
        read_config(vllm_config)


@pytest.mark.parametrize(
    "options",
    [
        {"tensor_parallel_size": 2},
        {"tensor_parallel_size": 2, "additional_config": {"slot": {"loss_tokens": 9}}},
        {"pipeline_parallel_size": 2, "enforce_eager": False},
        {"data_parallel_size": 2},
        {"tensor_parallel_size": 2, "pipeline_parallel_size": 2, "data_parallel_size": 2},
    ],
)
def test_parallel_engines_are_not_refused(options: dict[str, Any], tiny_model: str) -> None:
    assert read_config(config(tiny_model, **options)).hidden_cache == "on"


def test_a_worker_with_another_version_refuses(
    tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    vllm_config = config(tiny_model)
    monkeypatch.setattr("slot_vllm.engine.wire.engine_settings.__version__", "9.9")
    monkeypatch.setattr("platform.node", lambda: "second-node")
    with pytest.raises(SlotError) as error:
        read_config(vllm_config)
    assert f"slot_vllm {__version__} configured the engine" in str(error.value)
    assert "on second-node slot_vllm 9.9 is installed" in str(error.value)


def test_a_workspace_too_small_for_the_head_is_refused(
    tiny_model: str, engine: Callable[..., Any]
) -> None:
    with pytest.raises(SlotError, match=r"slot.workspace_mb=1: too small .* allowed: \d+ or more"):
        import torch

        from slot_vllm.engine.worker.ranks import ALONE
        from slot_vllm.engine.worker.runner_state import RunnerState
        from slot_vllm.optim.head import Head
        from slot_vllm.params import SlotConfig

        class BigHead:
            ranks = ALONE

            def head(self) -> Head:
                return Head(torch.empty(200_000, 4))

            def shard(self) -> None:
                """It is whole."""

            def describe(self) -> str:
                return "200000 x 4"

        RunnerState(SlotConfig(workspace_mb=1), BigHead(), 4, torch.device("cpu"))  # type: ignore[arg-type]


SERVERS = {
    "slot_vllm": ("ours [] [] []", 404),
    "slot_vllm,slot_stats": (
        "ours ['StatsEndpoint'] ['/slot/stats', '/slot/requests/{response_id}'] "
        "['slot_stats', 'slot_receipts']",
        501,
    ),
}


@pytest.fixture(scope="module")
@starts
def untouched(tiny_model: str) -> dict[str, tuple[int, str]]:
    """The exit codes and what was written, of ``untouched.py``."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.engine.untouched", tiny_model, *SERVERS],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, tuple[int, str]] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_installed_but_not_asked_for_it_wraps_one_start_up_function(
    untouched: dict[str, tuple[int, str]],
) -> None:
    code, said = untouched["engine"]
    assert code == 0, said[-3000:]
    assert "slot_vllm.engine.frontend.plugin" in said


@pytest.mark.parametrize("plugins", SERVERS)
def test_a_server_that_does_not_ask_for_it_is_untouched(
    plugins: str, untouched: dict[str, tuple[int, str]]
) -> None:
    ours, status = SERVERS[plugins]
    code, said = untouched[plugins]
    assert code == 0, said[-3000:]
    assert ours in said
    assert f"stats {status} " in said
    assert ("started without SLOT" in said) == (status == 501)
