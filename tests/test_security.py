"""Nothing in the package unpickles, evaluates text, or opens what a request names."""

import ast
from collections.abc import Iterator
from pathlib import Path
from types import NoneType

import pytest
import yaml
from pydantic import ValidationError

from slot_vllm.evaluation.config import _Loader
from slot_vllm.params import SlotParams
from slot_vllm.setting import Setting
from tests.conftest import ROOT

PACKAGE = ROOT / "slot_vllm"
MODULES = ("pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "torch.serialization")
CALLS = ("eval", "exec", "compile", "__import__")
ATTRIBUTES = {
    "torch": ("load", "save"),
    "torch.jit": ("load",),
    "numpy": ("load", "fromfile"),
    "np": ("load", "fromfile"),
    "os": ("system", "popen"),
    "yaml": ("load", "unsafe_load", "full_load", "load_all"),
}


# A run's file is read by a subclass of SafeLoader; an evaluation hands on the engine option that
# its own user set.
ALLOWED = {
    "evaluation/config.py": {"yaml.load"},
    "evaluation/models/in_transformers.py": {
        "trust_remote_code=bool(run.engine.get('trust_remote_code', False))"
    },
    "evaluation/lighteval_model.py": {
        "trust_remote_code=bool(run.engine.get('trust_remote_code', False))"
    },
}


def _found(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            if node.module in MODULES:
                yield node.module
            names = ATTRIBUTES.get(node.module or "", ())
            yield from (f"{node.module}.{a.name}" for a in node.names if a.name in names)
        elif isinstance(node, ast.Attribute):
            owner = ast.unparse(node.value)
            if node.attr in ATTRIBUTES.get(owner, ()):
                yield f"{owner}.{node.attr}"
        elif isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id in CALLS:
                yield node.func.id
            for keyword in node.keywords:
                risky = keyword.arg in ("shell", "allow_pickle", "trust_remote_code")
                if risky and not (
                    isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                ):
                    yield f"{keyword.arg}={ast.unparse(keyword.value)}"


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from torch.serialization import x",
        "from torch import load",
        "import torch\ntorch.load('x', weights_only=True)",
        "eval('1')",
        "np.load('x', allow_pickle=True)",
        "subprocess.run('ls', shell=True)",
        "AutoModel.from_pretrained(x, trust_remote_code=flag)",
        "yaml.load(text, Loader)",
    ],
)
def test_the_scan_finds_it(source: str) -> None:
    assert list(_found(source))


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.stem)
def test_no_unpickling_and_no_code_from_text(path: Path) -> None:
    allowed = ALLOWED.get(path.relative_to(PACKAGE).as_posix(), set())
    assert set(_found(path.read_text(encoding="utf-8"))) == allowed


def test_yaml_makes_no_objects() -> None:
    assert issubclass(_Loader, yaml.SafeLoader)


def test_a_request_sets_numbers_and_words_from_fixed_lists() -> None:
    """Anything else, a path say, would need a bound."""
    settings = SlotParams().model_dump()
    assert {type(value) for value in settings.values()} == {int, float, tuple, str, NoneType}
    for name in ("preset", *(name for name, value in settings.items() if isinstance(value, str))):
        with pytest.raises(ValidationError):
            SlotParams.model_validate({name: "/etc/passwd"})
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    for name, field in SlotParams.model_fields.items():
        [row] = [line for line in page.splitlines() if line.startswith(f"| `slot_{name}` |")]
        assert Setting.of(field).cost in row
