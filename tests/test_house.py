"""Which part of the package may import which: the layout's arrows go one way."""

import ast
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "slot_vllm"
# Lowest first. A part imports nothing that stands in a later line, nor another part of its line.
ORDER = (
    (
        *("params", "presets", "removed", "setting", "validation_errors"),
        *("chat_turns", "loss_tokens", "processor", "__init__"),
    ),
    ("kernels",),
    ("optim",),
    ("engine.wire", "engine.vllm_contract"),
    ("engine.worker", "engine.frontend"),
    ("hf",),
    ("evaluation",),
    ("bench",),
    ("doctor",),
    ("cli",),
)
RANK = {part: rank for rank, parts in enumerate(ORDER) for part in parts}


def part_of(module: str) -> str | None:
    """``slot_vllm.engine.worker.step`` -> ``engine.worker``."""
    names = module.split(".")[1:] or ["__init__"]
    return next((p for p in (".".join(names[:2]), names[0]) if p in RANK), None)


def imports(path: Path) -> set[str]:
    """The modules of the package that a file imports, wherever in it."""
    found = set()
    tree = ast.parse(path.read_text())
    # The package itself finds the worker's extension for who asks for it by the package's name.
    for node in tree.body if path == PACKAGE / "__init__.py" else ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("slot_vllm"):
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                file = ROOT / (submodule.replace(".", "/"))
                there = file.with_suffix(".py").is_file() or file.is_dir()
                found.add(submodule if there else str(node.module))
    return found


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_arrows_go_one_way(path: Path) -> None:
    module = "slot_vllm." + str(path.relative_to(PACKAGE).with_suffix("")).replace("/", ".")
    own = part_of(module.removesuffix(".__init__"))
    if own is None:
        assert path == PACKAGE / "engine/__init__.py"
        return
    for name in imports(path):
        other = part_of(name)
        assert other is not None, name
        same_level = RANK[other] == RANK[own] and other != own and RANK[own] > 0
        assert RANK[other] <= RANK[own] and not same_level, f"{module} imports {name}"


def test_no_module_imports_itself_by_a_circle() -> None:
    graph = {
        "slot_vllm." + str(p.relative_to(PACKAGE).with_suffix("")).replace("/", "."): imports(p)
        for p in FILES
    }
    done: set[str] = set()

    def walk(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join((*way, module))
        if module in done:
            return
        for name in graph.get(module, ()):
            walk(name, (*way, module))
        done.add(module)

    for module in graph:
        walk(module, ())


def test_no_two_classes_share_a_name() -> None:
    places: dict[str, list[str]] = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(str(path.relative_to(PACKAGE)))
    assert {name: files for name, files in places.items() if len(files) > 1} == {}
