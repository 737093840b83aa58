"""What is said of a vLLM that has only a part of a patch, or that of another version."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace

import pytest
import vllm

from slot_vllm.engine import compat, native
from slot_vllm.engine.hooks import HOOKS
from slot_vllm.engine.source import Source
from slot_vllm.params import SlotError
from tests.conftest import ROOT

PATCH = ROOT / "patches/vllm-0.32.0.patch"


def patched_by(text: str, path: str, target: Path) -> Source:
    """The file ``path`` of the installed vLLM in ``target``, patched by ``text``."""
    file = target / path
    file.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(Path(vllm.__file__).parents[1] / path, file)
    subprocess.run(
        ["patch", "--directory", str(target), "--strip=1", "--force", "--quiet"],
        input=text,
        text=True,
        check=True,
    )
    return Source(target)


def files() -> dict[str, list[str]]:
    """Of each file of vLLM's that the patch changes: what stands before its hunks, and they."""
    changed = (
        re.split(r"^(?=@@ )", part, flags=re.MULTILINE)
        for part in re.split(r"^(?=diff --git )", PATCH.read_text(), flags=re.MULTILINE)[1:]
    )
    paths = ((re.search(r"^--- a/(\S+)", parts[0], re.MULTILINE), parts) for parts in changed)
    return {path[1]: parts for path, parts in paths if path is not None}


FILES = files()


@pytest.mark.parametrize("path", FILES)
def test_every_hunk_is_looked_for(path: str, tmp_path: Path) -> None:
    head, *hunks = FILES[path]
    module = path.removesuffix(".py").replace("/", ".")
    hooks = [hook for hook in HOOKS if hook.path == module]
    assert compat.lacking_in(patched_by(head + "".join(hunks), path, tmp_path), hooks) == []
    for lost in hunks:
        if re.search(r"^\+.*\bimport\b.*\bslot_hooks$", lost, re.MULTILINE):
            continue  # without it there is a NameError
        rest = [hunk for hunk in hunks if hunk is not lost]
        tree = patched_by(head + "".join(rest), path, tmp_path) if rest else unpatched(path)
        assert compat.lacking_in(tree, hooks), lost


def unpatched(path: str) -> Source:
    assert (Path(vllm.__file__).parents[1] / path).is_file()
    return compat.installed()


@pytest.fixture
def slot_hooks(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """Its file alone, as an upgrade of a patched vLLM leaves it behind."""
    module = SimpleNamespace(VERSION=native.VERSION)
    spec = ModuleSpec("vllm.slot_hooks", None, origin="/here/vllm/slot_hooks.py")
    monkeypatch.setattr(native, "find_spec", {"vllm.slot_hooks": spec}.get)
    monkeypatch.setattr(native, "import_module", {"vllm.slot_hooks": module}.get)
    native.available.cache_clear()
    yield module
    monkeypatch.undo()
    native.available.cache_clear()


def configure(model: str, **options: object) -> None:
    from vllm.engine.arg_utils import EngineArgs

    EngineArgs(model, enforce_eager=True, **options).create_engine_config()


def test_hooks_left_behind_stop_an_engine_that_asks(
    tiny_model: str, slot_hooks: SimpleNamespace
) -> None:
    configure(tiny_model)
    with pytest.raises(SlotError) as error:
        configure(tiny_model, worker_extension_cls="slot_vllm")
    said = str(error.value)
    assert "/here/vllm/slot_hooks.py, but not all hunks of the patch" in said
    assert "EngineArgs.create_engine_config does not call before_configuration, configured" in said
    assert "gpu_model_runner.GPUModelRunner has no slot_hook" in said
    assert "scripts/patch_vllm.sh revert" in said


def test_another_version_stops_only_an_engine_that_asks(
    tiny_model: str, slot_hooks: SimpleNamespace
) -> None:
    slot_hooks.VERSION = native.VERSION - 1
    # Whose worker extension is not ours.
    configure(tiny_model, worker_extension_cls="collections.OrderedDict")
    reason = f"version {native.VERSION - 1} of SLOT's hooks, and this is {native.VERSION}"
    with pytest.raises(SlotError, match=reason):
        configure(tiny_model, worker_extension_cls="slot_vllm")


def test_tools_of_a_response_make_prompts_that_are_no_error_any_more() -> None:
    from vllm.exceptions import VLLMValidationError
    from vllm.sampling_params import SamplingParams

    from slot_vllm.engine.admission import LONG_PROMPT, Admission
    from slot_vllm.params import SlotConfig

    admission = Admission(SlotConfig(max_prompt_tokens=3))
    params = SamplingParams(extra_args={"slot_steps": 2})
    long, short = ({"type": "token", "prompt_token_ids": [1] * n} for n in (4, 3))
    with pytest.raises(VLLMValidationError, match="long_prompt"):
        native.check_generation(admission, long, params, None)
    native.check_generation(admission, short, params, None)
    assert admission.check(params.extra_args, LONG_PROMPT)[1] == LONG_PROMPT
