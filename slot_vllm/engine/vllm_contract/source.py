"""Python source as it stands in files: looked at, never imported."""

import ast
from dataclasses import dataclass
from functools import cached_property
from importlib.util import resolve_name
from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


@dataclass(frozen=True)
class Parameter:
    """positional: whether it can be given by position. required: whether it has no default."""

    name: str
    positional: bool
    required: bool


@dataclass(frozen=True)
class Found:
    """A definition and the module that it stands in."""

    module: "Module"
    node: ast.AST


class Module:
    def __init__(self, name: str, is_package: bool, text: str) -> None:
        self.name = name
        self.is_package = is_package
        self.tree = ast.parse(text)

    @cached_property
    def definitions(self) -> dict[str, ast.AST]:
        """What the module's own statements bind, also below ``if`` and ``try``."""
        return _bound(self.tree)

    def absolute(self, statement: ast.ImportFrom) -> str:
        """The module that ``from X import Y`` names."""
        package = self.name if self.is_package else self.name.rpartition(".")[0]
        return resolve_name("." * statement.level + (statement.module or ""), package)


class Source:
    """The packages below ``root``, the folder that contains ``vllm/``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._modules: dict[str, Module | None] = {}
        self._on_self: dict[ast.AST, frozenset[str]] = {}

    def module(self, name: str) -> Module | None:
        if name not in self._modules:
            path = self.root.joinpath(*name.split("."))
            package = path / "__init__.py"
            file = package if package.is_file() else path.with_suffix(".py")
            self._modules[name] = (
                Module(name, file == package, file.read_text(encoding="utf-8"))
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

    def has_attribute(self, found: Found, name: str) -> bool:
        """Whether a class, or one of its bases in these packages, has it or sets it on ``self``."""
        return any(
            name in _bound(c.node) or name in self._set_on_self(c.node)
            for c in self._lineage(found)
        )

    def _set_on_self(self, node: ast.AST) -> frozenset[str]:
        """The attributes that a class's methods assign to ``self``."""
        if node not in self._on_self:
            self._on_self[node] = frozenset(
                n.attr
                for n in ast.walk(node)
                if isinstance(n, ast.Attribute)
                and isinstance(n.ctx, ast.Store)
                and isinstance(n.value, ast.Name)
                and n.value.id == "self"
            )
        return self._on_self[node]

    def _resolve(self, module: Module, name: str, depth: int = 0) -> Found | None:
        node = module.definitions.get(name)
        if isinstance(node, ast.ImportFrom) and depth < 8:
            alias = next(a for a in node.names if (a.asname or a.name) == name)
            origin = self.module(module.absolute(node))
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


def parameters(node: Function) -> list[Parameter]:
    """In order, ``self`` or ``cls`` of a method included, what starts with a star left out."""
    arguments = node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    required = len(positional) - len(arguments.defaults)
    return [
        *(Parameter(a.arg, True, i < required) for i, a in enumerate(positional)),
        *(
            Parameter(a.arg, False, default is None)
            for a, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
        ),
    ]


def is_static(node: Function) -> bool:
    decorators = getattr(node, "decorator_list", ())
    return any(isinstance(d, ast.Name) and d.id == "staticmethod" for d in decorators)


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


def _bound(node: ast.AST) -> dict[str, ast.AST]:
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
