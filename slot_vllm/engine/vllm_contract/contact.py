"""One thing of vLLM that is relied on, as data. Imports nothing of vLLM."""

from dataclasses import dataclass
from typing import Literal, get_args

# Where a contact is needed: in every front end (start-up, admission), in the OpenAI-compatible
# server's, in every worker, in one with that model runner, to keep hidden states in the KV cache;
# behind vLLM's Rust front end, with a KV connector, for max_concurrent, for SLOT's part of
# /metrics, to leave scoring endpoints alone, for traces, among several tensor-parallel ranks.
Part = Literal[
    "front end",
    "server",
    "worker",
    "V1 runner",
    "V2 runner",
    "hidden-state cache",
    "hidden-state cache, V1 runner",
    "hidden-state cache, V2 runner",
    "Rust front end",
    "KV connector",
    "limited scheduler",
    "metrics",
    "scoring",
    "tracing",
    "tensor parallel",
]
PARTS: tuple[Part, ...] = get_args(Part)


@dataclass(frozen=True)
class Contact:
    """One name of vLLM. Lists of names are separated by spaces.

    path: the module. name: dotted, below it: a class, a function or a method. why: what SLOT uses
    it for. attributes: what the class or its instances must have. takes: of a function, as Python
    writes it: the parameters that must come first, ``self`` left out; after ``*`` those that it
    must have, wherever; without ``...`` at the end it may require no others. calls: what its body
    must call, by the last name. returns: what it must return first, as variables of its body.
    contains: expressions that its body must have, as ``ast.unparse`` writes them. optional:
    whether its module may be absent. until: of what is replaced or extended, when that can end;
    None for what is only read or called.
    """

    part: Part
    path: str
    name: str
    why: str
    attributes: str = ""
    takes: str | None = None
    calls: str = ""
    returns: str = ""
    contains: tuple[str, ...] = ()
    optional: bool = False
    until: str | None = None

    def __str__(self) -> str:
        return f"{self.path}.{self.name}"


# Why admission is wrapped, wherever that is.
ADMISSION = "an admission hook may refuse a request, as HTTP 400, and rewrite its parameters"
