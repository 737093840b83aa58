"""Python source as it stands in files: looked at, never imported."""

import ast
from dataclasses import dataclass
from importlib.util import resolve_name
from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


@dataclass(frozen=True)
class Module:
    """package: what its relative imports start from. definitions: what its own statements bind."""

    name: str
    package: str
    definitions: dict[str, ast.AST]


@dataclass(frozen=True)
class Found:
    """A definition and the module that it stands in."""

    module: Module
    node: ast.AST


class Source:
    """The packages below ``root``, the folder that contains ``vllm/``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._modules: dict[str, Module | None] = {}

    def module(self, name: str) -> Module | None:
        if name not in self._modules:
            path = self.root.joinpath(*name.split("."))
            package = path / "__init__.py"
            file = package if package.is_file() else path.with_suffix(".py")
            self._modules[name] = (
                Module(
                    name,
                    name if file == package else name.rpartition(".")[0],
                    _bound(ast.parse(file.read_text(encoding="utf-8"))),
                )
                if file.is_file()
                else None
            )
        return self._modules[name]

    def find(self, path: str, name: str) -> Found | None:
        """A name of a module, or a dotted one of a class in it, wherever it is defined."""
        module = self.module(path)
        if module is None:
            return None
        first, _, rest = name.partition(".")
        found = self._resolve(module, first)
        if found is None or not rest:
            return found
        return self._member(found, rest)

    def attributes(self, found: Found) -> set[str]:
        """What a class and its bases in these packages define, or set on ``self``."""
        return {
            name for c in self._lineage(found) for name in (*_bound(c.node), *_set_on_self(c.node))
        }

    def _resolve(self, module: Module, name: str, depth: int = 0) -> Found | None:
        node = module.definitions.get(name)
        if isinstance(node, ast.ImportFrom) and depth < 8:
            alias = next(a for a in node.names if (a.asname or a.name) == name)
            written = "." * node.level + (node.module or "")
            origin = self.module(resolve_name(written, module.package))
            return None if origin is None else self._resolve(origin, alias.name, depth + 1)
        return None if node is None else Found(module, node)

    def _member(self, found: Found, name: str) -> Found | None:
        for owner in self._lineage(found):
            node = _bound(owner.node).get(name)
            if node is not None:
                return Found(owner.module, node)
        return None

    def _lineage(self, found: Found) -> list[Found]:
        """The class and its bases, depth first."""
        lineage = [found]
        if isinstance(found.node, ast.ClassDef):
            for base in found.node.bases:
                base = base.value if isinstance(base, ast.Subscript) else base
                name = base.id if isinstance(base, ast.Name) else None
                parent = None if name is None else self._resolve(found.module, name)
                if parent is not None:
                    lineage += self._lineage(parent)
        return lineage


def parameters(node: Function, of_class: bool) -> tuple[list[str], list[str], set[str]]:
    """Those that can be given by position, a method's first one left out; those that are given by
    name alone; and which of both have no default."""
    arguments = node.args
    positional = [a.arg for a in (*arguments.posonlyargs, *arguments.args)]
    required = positional[: len(positional) - len(arguments.defaults)]
    decorators = getattr(node, "decorator_list", ())
    static = any(isinstance(d, ast.Name) and d.id == "staticmethod" for d in decorators)
    bound = of_class and not static
    named = {a.arg: d for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)}
    needed = {*required[bound:], *(name for name, default in named.items() if default is None)}
    return positional[bound:], list(named), needed


def calls(node: ast.AST) -> set[str]:
    """The last names of what is called in it."""
    called = (n.func for n in ast.walk(node) if isinstance(n, ast.Call))
    return {f.attr if isinstance(f, ast.Attribute) else getattr(f, "id", "") for f in called}


def returned(node: ast.AST) -> list[list[str]]:
    """Per ``return`` with a value, the names in its tuple, or its one name."""
    values = [n.value for n in ast.walk(node) if isinstance(n, ast.Return) and n.value]
    return [
        [getattr(e, "id", "") for e in (v.elts if isinstance(v, ast.Tuple) else [v])]
        for v in values
    ]


def expressions(node: ast.AST) -> set[str]:
    """Its calls, subscripts and attributes, each as ``ast.unparse`` writes it."""
    kinds = ast.Subscript | ast.Call | ast.Attribute
    return {ast.unparse(n) for n in ast.walk(node) if isinstance(n, kinds)}


def _set_on_self(node: ast.AST) -> set[str]:
    """The attributes that a class's methods assign to ``self``."""
    return {
        n.attr
        for n in ast.walk(node)
        if isinstance(n, ast.Attribute)
        and isinstance(n.ctx, ast.Store)
        and isinstance(n.value, ast.Name)
        and n.value.id == "self"
    }


def _bound(node: ast.AST) -> dict[str, ast.AST]:
    """What its own statements bind, also below ``if`` and ``try``."""
    bound: dict[str, ast.AST] = {}
    for statement in ast.iter_child_nodes(node):
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            bound[statement.name] = statement
        elif isinstance(statement, ast.Import | ast.ImportFrom):
            bound |= {a.asname or a.name: statement for a in statement.names}
        elif isinstance(statement, ast.Assign):
            bound |= {t.id: statement for t in statement.targets if isinstance(t, ast.Name)}
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            bound[statement.target.id] = statement
        elif isinstance(statement, ast.If | ast.Try):
            # The first one: the rest stand in for it where it cannot be imported.
            bound = _bound(statement) | bound
    return bound
