"""What start-up finds out about the vLLM that runs, and what its source says about any other."""

import ast
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import vllm

from slot_vllm.engine.frontend import plugin
from slot_vllm.engine.vllm_contract import release
from slot_vllm.engine.vllm_contract.contact import PARTS, Contact
from slot_vllm.engine.vllm_contract.release import CONTACTS, TESTED
from slot_vllm.engine.vllm_contract.source import Source
from slot_vllm.engine.worker.runner_in_use import V2
from slot_vllm.params import SlotConfig, SlotError
from tests.conftest import ROOT

RUNNER = "vllm.v1.worker.gpu.model_runner.GPUModelRunner"


def contact(name: str) -> Contact:
    return next(c for c in CONTACTS if str(c) == name)


def test_the_installed_release_has_everything_and_both_looks_agree() -> None:
    # A core that can say why it refuses a request is new in 0.33.
    parts = [part for part in PARTS if part != "Rust front end"]
    assert release.missing(*parts) == []
    assert release.missing_in(release.installed(), *parts) == []
    assert release.missing("Rust front end") == release.missing_in(
        release.installed(), "Rust front end"
    )


# Each kind of contact, changed so that vLLM does not fulfil it.
WRONG = [
    (f"{RUNNER}.sample", {"name": "GPUModelRunner.sampled"}, "is not there"),
    (f"{RUNNER}.sample", {"path": "vllm.v1.worker.gpu.runner"}, "is not there: "),
    (f"{RUNNER}.sample", {"takes": "input_batch, ..."}, "instead of (input_batch, ...)"),
    (
        f"{RUNNER}.execute_model",
        {"takes": "scheduler_output, *, dummy, ..."},
        "instead of (scheduler_output, *, dummy",
    ),
    (
        f"{RUNNER}.sample",
        {"takes": "hidden_states, input_batch"},
        "takes (hidden_states, input_batch, grammar_output)",
    ),
    (f"{RUNNER}.sample", {"calls": "logits"}, "does not call logits"),
    (f"{RUNNER}.sample", {"contains": ("hidden_states[rows]",)}, "does not contain hidden_states"),
    (RUNNER, {"attributes": "device block_map"}, "has no block_map"),
    (
        "vllm.v1.worker.gpu_model_runner.GPUModelRunner._prepare_inputs",
        {"returns": "spec_decode_metadata"},
        "does not return spec_decode_metadata first",
    ),
    ("vllm.v1.core.sched.output.SchedulerOutput", {"attributes": "finished"}, "no finished"),
    ("vllm.sampling_params.SamplingParams", {"takes": "n, ..."}, "is not a function"),
]


@pytest.mark.parametrize(("name", "changes", "part"), WRONG)
def test_what_is_missing_is_named_by_both_looks(
    name: str, changes: dict[str, Any], part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = replace(contact(name), **changes)
    monkeypatch.setattr(release, "CONTACTS", (contact(name), wrong))
    live = release.missing(wrong.part)
    assert [c for c, _ in live] == [wrong]
    assert part in live[0][1]
    source = release.missing_in(release.installed(), wrong.part)
    assert [c for c, _ in source] == [wrong]
    if "no module" not in source[0][1]:
        assert source == live


def test_the_error_names_the_piece_and_the_tested_releases(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from vllm.v1.engine.input_processor import InputProcessor

    with monkeypatch.context() as patch:
        patch.delattr(InputProcessor, "assign_request_id")
        with pytest.raises(SlotError) as error:
            release.check_front_end(serves=False)
    said = str(error.value)
    assert f"SLOT cannot work with vLLM {vllm.__version__}" in said
    assert "vllm.v1.engine.input_processor.InputProcessor.assign_request_id is not there" in said
    assert "needed: admission of ready-made requests" in said
    assert f"Tested: vLLM {', '.join(TESTED)}" in said

    other = replace(contact("vllm.v1.core.sched.output.NewRequestData"), attributes="id")
    monkeypatch.setattr(release, "CONTACTS", (*CONTACTS, other))
    with pytest.raises(SlotError, match="NewRequestData has no id"):
        release.check_worker(v2=False, hidden_cache=True)


class Replacing:
    """An object that is called as a function of vLLM's is."""

    def __call__(self, request: Any) -> None:
        pass


# Of what another plugin may put in the place of a function: what start-up says of each.
REPLACEMENTS: list[tuple[Any, str | None, str | None]] = [
    (len, None, "replaced .* by builtins.len"),
    (partial(print, "x"), None, r"replaced .* by functools.partial"),
    (Replacing(), None, r"replaced .* by tests.engine.test_release.Replacing"),
    (lambda self, request: request.assign(), None, None),
    (lambda processor, request: request.assign(), None, None),
    (lambda request: request.assign(), "takes () instead of (request)", None),
    (lambda self, prompt: prompt.assign(), "takes (prompt) instead of (request)", None),
    (lambda self, request: request, "does not call assign", None),
    ((lambda self: 1, lambda self, request: 2)[0], None, "replaced .* by tests.*<lambda>"),
]


@pytest.mark.parametrize(("value", "problem", "warning"), REPLACEMENTS)
def test_what_another_plugin_puts_there_is_judged_or_named(
    value: Any,
    problem: str | None,
    warning: str | None,
    monkeypatch: pytest.MonkeyPatch,
    slot_log: pytest.LogCaptureFixture,
) -> None:
    from vllm.v1.engine.input_processor import InputProcessor

    wanted = contact("vllm.v1.engine.input_processor.InputProcessor.assign_request_id")
    wanted = replace(wanted, takes="request", calls="assign")
    monkeypatch.setattr(release, "CONTACTS", (wanted,))
    monkeypatch.setattr(release, "_look_in_source", lambda tree, contact: None)
    monkeypatch.setattr(InputProcessor, "assign_request_id", value)
    found = [said for _, said in release.missing(wanted.part)]
    assert found == ([] if problem is None else [problem])
    said = [record.getMessage() for record in slot_log.records]
    assert len(said) == (warning is not None)
    if warning is not None:
        assert re.search(warning, said[0])


def test_a_worker_needs_nothing_of_the_other_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner

    monkeypatch.delattr(GPUModelRunner, "sample")
    release.check_worker(v2=False, hidden_cache=True)
    with pytest.raises(SlotError, match=r"model_runner\.GPUModelRunner\.sample is not there"):
        release.check_worker(v2=True, hidden_cache=False)


@pytest.mark.parametrize(
    ("version", "said"),
    [
        (vllm.__version__, None),
        ("0.31.0", "a few tests were run on it"),
        ("0.99.1.dev3+g1234", "it is unknown to SLOT"),
    ],
)
def test_a_release_that_is_not_tested_warns(
    version: str,
    said: str | None,
    monkeypatch: pytest.MonkeyPatch,
    slot_log: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(vllm, "__version__", version)
    release.check_front_end(serves=True)
    warnings = [r.getMessage() for r in slot_log.records if "not tested with" in r.getMessage()]
    assert bool(warnings) == (said is not None)
    if said is not None:
        assert version in warnings[0] and said in warnings[0]


def test_a_tested_release_on_another_device_warns(
    monkeypatch: pytest.MonkeyPatch, slot_log: pytest.LogCaptureFixture
) -> None:
    from vllm.platforms import current_platform

    release.check_front_end(serves=False)
    assert not slot_log.records
    monkeypatch.setattr(current_platform, "device_type", "cuda")
    monkeypatch.setattr(current_platform, "device_name", "a GPU")
    release.check_front_end(serves=False)
    (record,) = slot_log.records
    said = f"SLOT is not tested on this device, a GPU. Tested: vLLM {', '.join(TESTED)} on cpu"
    assert record.getMessage() == said


def test_what_only_some_engines_use_is_looked_for_there(
    tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.engine.arg_utils import EngineArgs
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.engine.core_client import AsyncMPClient

    def configure(**settings: int) -> None:
        EngineArgs(
            tiny_model,
            enforce_eager=True,
            worker_extension_cls="slot_vllm",
            additional_config={"slot": settings},
        ).create_engine_config(UsageContext.OPENAI_API_SERVER)

    monkeypatch.delattr(AsyncMPClient, "call_utility_all_async")
    monkeypatch.delattr(Scheduler, "_handle_blocked_waiting_request")
    said: list[str] = []
    monkeypatch.setattr(plugin.logger, "warning", lambda text, *args: said.append(text % args))
    configure()
    (warning,) = (text for text in said if "shows nothing on /metrics" in text)
    assert "AsyncMPClient.call_utility_all_async is not there" in warning
    with pytest.raises(SlotError, match="_handle_blocked_waiting_request is not there"):
        configure(max_concurrent=1)


def test_an_engine_that_asks_for_slot_is_checked(
    tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    def add_request(self: Any, request_id: str) -> None:
        """Without admission."""

    monkeypatch.setattr(LLMEngine, "add_request", add_request)
    EngineArgs(tiny_model, enforce_eager=True).create_engine_config()
    with pytest.raises(SlotError, match=r"add_request does not call process_inputs, assign_req"):
        EngineArgs(
            tiny_model, enforce_eager=True, worker_extension_cls="slot_vllm"
        ).create_engine_config()


class V2Runner:
    """Known by its name."""

    __module__, __qualname__ = V2


def test_a_worker_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    from slot_vllm.engine.worker import common_settings, extension

    def refuse(v2: bool, hidden_cache: bool) -> None:
        raise SlotError(f"{v2} {hidden_cache}")

    monkeypatch.setattr(release, "check_worker", refuse)
    monkeypatch.setattr(common_settings, "read_config", lambda _: SlotConfig(hidden_cache="on"))
    for group in ("get_tp_group", "get_pp_group"):
        monkeypatch.setattr(common_settings, group, lambda: SimpleNamespace(world_size=1))
    with pytest.raises(SlotError, match="True True"):
        extension.install(SimpleNamespace(model_runner=V2Runner(), vllm_config=None))


def copied(target: Path, *paths: str) -> Path:
    """Modules of the installed vLLM in another tree."""
    for path in paths:
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(vllm.__file__).parents[1] / path, target / path)
    return target


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda text: text, None),
        (lambda text: text.replace("def sample(", "def sample_it("), "is not there"),
        (lambda text: text.replace("compute_logits(", "make_logits("), "does not call compute_l"),
        (lambda text: text.replace("        hidden_states: torch.Tensor,\n", ""), "takes ("),
        # Below a condition, and of a base class.
        (lambda text: f"if True:\n{indented(text)}", None),
        (
            lambda text: (
                text.replace("class GPUModelRunner(", "class Base(")
                + "\n\nclass GPUModelRunner(Base):\n    pass\n"
            ),
            None,
        ),
    ],
)
def test_another_source_tree(
    change: Callable[[str], str], problem: str | None, tmp_path: Path
) -> None:
    path = "vllm/v1/worker/gpu/model_runner.py"
    file = copied(tmp_path, path) / path
    file.write_text(change(file.read_text()))
    wanted = contact(f"{RUNNER}.sample")
    found = dict(release.missing_in(Source(tmp_path), "V2 runner")).get(wanted)
    assert (found is None) == (problem is None)
    assert problem is None or (found is not None and found.startswith(problem))


def indented(text: str) -> str:
    return ast.unparse(ast.parse(text)).replace("\n", "\n    ").join(("    ", ""))


def test_a_name_is_followed_to_where_it_is_defined(tmp_path: Path) -> None:
    package = tmp_path / "vllm"
    (package / "config").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "config/__init__.py").write_text("from .model import Model as ModelConfig\n")
    (package / "config/model.py").write_text(
        "from vllm.base import Base\nclass Model(Base[int]):\n    a: int\n"
    )
    (package / "base.py").write_text(
        "class Base:\n    def __init__(self):\n        self.b: int = 1\n    def c(self, x): ...\n"
    )
    source = Source(tmp_path)
    found = source.find("vllm.config", "ModelConfig")
    assert found is not None
    assert source.attributes(found) == {"a", "b", "c", "__init__"}
    method = source.find("vllm.config", "ModelConfig.c")
    assert method is not None and method.module.name == "vllm.base"
    assert source.find("vllm.config", "Other") is None


def test_every_import_of_vllm_in_the_engine_is_a_contact() -> None:
    known = {(c.path, c.name.partition(".")[0]) for c in CONTACTS}
    known |= {tuple(c.path.rsplit(".", 1)) for c in CONTACTS}  # type: ignore[misc]
    for file in sorted((ROOT / "slot_vllm/engine").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vllm":
                for alias in node.names:
                    assert (node.module, alias.name) in known, (
                        f"{file.name} imports {alias.name} of {node.module}, which is no contact: "
                        "add it to slot_vllm/engine/vllm_contract"
                    )


def test_every_method_of_the_server_s_that_is_replaced_is_a_contact() -> None:
    from slot_vllm.engine.frontend import server

    names = {c.name.rpartition(".")[2] for c in CONTACTS if c.part in ("front end", "server")}
    assert set(server._ENTRIES) <= names
    assert {"_log_inputs", "_generate_with_builtin_tools"} <= names


def test_a_renamed_method_of_the_server_s_stops_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses

    monkeypatch.delattr(OpenAIServingResponses, "_generate_with_builtin_tools")
    release.check_front_end(serves=False)
    with pytest.raises(SlotError, match="_generate_with_builtin_tools is not there"):
        release.check_front_end(serves=True)


def test_contacts_are_stated_once() -> None:
    names = [(c.part, c.path, c.name) for c in CONTACTS]
    assert len(names) == len(set(names))
