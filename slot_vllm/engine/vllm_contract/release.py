"""Which releases of vLLM this package works with, found out by looking.

A release is judged by what it has, not by its number alone: all of vLLM that is relied on is looked
for in the vLLM that runs and, without importing it, in the source of any other
(``scripts/check_vllm.py``, which also writes docs/contacts.md from it).
"""

import ast
import importlib
import inspect
import logging
import textwrap
from collections.abc import Container, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from slot_vllm.engine.vllm_contract import source
from slot_vllm.engine.vllm_contract.contact import Contact, Part
from slot_vllm.engine.vllm_contract.front_end import FRONT_END
from slot_vllm.engine.vllm_contract.hidden_cache import HIDDEN_CACHE
from slot_vllm.engine.vllm_contract.scheduler import SCHEDULER
from slot_vllm.engine.vllm_contract.server import SERVER
from slot_vllm.engine.vllm_contract.source import Source
from slot_vllm.engine.vllm_contract.worker import WORKER
from slot_vllm.params import SlotError

logger = logging.getLogger("vllm.slot_vllm")

CONTACTS = (*FRONT_END, *SERVER, *WORKER, *HIDDEN_CACHE, *SCHEDULER)

# Whose methods other plugins wrap, too.
_WRAPPED_BY_OTHERS = ("worker", "V1 runner", "V2 runner")

# Releases that are supported: conformance tests pass on both model runners (docs/releases.md
# says how many). The types of devices as vLLM names them.
TESTED = ("0.32", "0.33")
DEVICES = ("cpu",)
# Older ones on which some of these tests were run, on one runner at least, and passed.
CHECKED = ("0.29", "0.30", "0.31")


def release_of(version: str) -> str:
    """``0.32`` of ``0.32.0+cpu``."""
    return ".".join(version.split(".")[:2])


def missing_in(tree: Source, *parts: Part) -> list[tuple[Contact, str]]:
    """What of these parts a source tree lacks, and what is wrong with each."""
    problems = ((c, _look_in_source(tree, c)) for c in CONTACTS if c.part in parts)
    return [(contact, problem) for contact, problem in problems if problem is not None]


def missing(*parts: Part) -> list[tuple[Contact, str]]:
    """What the vLLM of this process lacks. It imports the modules of these parts."""
    tree = installed()
    problems = ((c, _look_at_live(tree, c)) for c in CONTACTS if c.part in parts)
    return [(contact, problem) for contact, problem in problems if problem is not None]


def installed() -> Source:
    """The source of the vLLM of this process. Not kept: what is read of it takes 60 MB, through
    which each collection of garbage would go, and an engine's start asks for nine."""
    import vllm

    return Source(Path(vllm.__file__).parents[1])


def describe(problems: Sequence[tuple[Contact, str]]) -> str:
    return "; ".join(
        f"{contact} {problem} (needed: {contact.why})" for contact, problem in problems
    )


def check_front_end(serves: bool) -> None:
    """Raise SlotError if the vLLM of this process lacks something; warn if nobody tested it.
    serves: whether this is the OpenAI-compatible server's front end."""
    parts: tuple[Part, ...] = ("front end", "server") if serves else ("front end",)
    # Not imported in a front end; but the worker extension cannot even be imported without.
    _refuse(missing(*parts) + missing_in(installed(), "worker"))
    from vllm.platforms import current_platform

    version = _version()
    release = release_of(version)
    if release not in TESTED:
        known = "a few tests were run on it" if release in CHECKED else "it is unknown to SLOT"
        logger.warning(
            "SLOT is not tested with vLLM %s: %s. What it needs of vLLM was looked for and found. "
            "Tested: vLLM %s",
            version,
            known,
            ", ".join(TESTED),
        )
    elif current_platform.device_type not in DEVICES:
        logger.warning(
            "SLOT is not tested on this device, %s. Tested: vLLM %s on %s",
            current_platform.device_name,
            ", ".join(TESTED),
            ", ".join(DEVICES),
        )


def require(part: Part) -> None:
    """The same for what only some engines use."""
    _refuse(missing(part))


def check_worker(v2: bool, hidden_cache: bool) -> None:
    """The same in a worker, which may be on another machine. v2: its model runner. hidden_cache:
    whether hidden states are kept in the KV cache."""
    parts: list[Part] = ["worker", "V2 runner" if v2 else "V1 runner"]
    if hidden_cache:
        parts.append("hidden-state cache")
        parts.append("hidden-state cache, V2 runner" if v2 else "hidden-state cache, V1 runner")
    _refuse(missing(*parts))


def _version() -> str:
    # Here: a release's source can be checked where no vLLM is installed.
    import vllm

    return str(vllm.__version__)


def _refuse(problems: Sequence[tuple[Contact, str]]) -> None:
    if problems:
        raise SlotError(
            f"SLOT cannot work with vLLM {_version()}: {describe(problems)}. "
            f"Tested: vLLM {', '.join(TESTED)}"
        )


def _look_in_source(tree: Source, contact: Contact) -> str | None:
    found = tree.find(contact.path, contact.name)
    if found is None:
        if tree.module(contact.path):
            return "is not there"
        return None if contact.optional else f"is not there: no module {contact.path}"
    return _problem(contact, found.node, tree.attributes(found) if contact.attributes else ())


def _look_at_live(tree: Source, contact: Contact) -> str | None:
    """Its module is imported, and what does not show there is looked for in the source. A function
    that another plugin put in the place of vLLM's is judged as it is, if it can be read."""
    try:
        value: Any = importlib.import_module(contact.path)
    except ImportError as error:
        absent = isinstance(error, ModuleNotFoundError) and contact.optional
        return None if absent else f"is not there: {error}"
    for part in contact.name.split("."):
        if not hasattr(value, part):
            return "is not there"
        value = getattr(value, part)
    body = contact.takes or contact.calls or contact.contains
    if (
        inspect.isclass(value)
        and not body
        and all(hasattr(value, name) for name in contact.attributes.split())
    ):
        return None
    # What functools.wraps made of vLLM's own names its module.
    module = str(getattr(value, "__module__", None))
    if callable(value) and not inspect.isclass(value) and not module.startswith("vllm."):
        node = None if contact.part in _WRAPPED_BY_OTHERS else _node_of(value)
        if node is not None:
            return _problem(contact, node)
        logger.warning(
            "SLOT: another plugin replaced %s by %s.%s. If that does not call what was there "
            "before, SLOT may not work",
            contact,
            module,
            getattr(value, "__qualname__", type(value).__qualname__),
        )
    return _look_in_source(tree, contact)


def _node_of(value: Any) -> ast.AST | None:
    """A function's source; None if it has none of its own: it is compiled, or an object, or one of
    several lambdas in a statement."""
    with suppress(OSError, SyntaxError, TypeError, ValueError):
        tree = ast.parse(textwrap.dedent(inspect.getsource(value)))
        lambdas = (node for node in ast.walk(tree) if isinstance(node, ast.Lambda))
        (node,) = lambdas if value.__name__ == "<lambda>" else tree.body
        return node
    return None


def _problem(contact: Contact, node: ast.AST, attributes: Container[str] = ()) -> str | None:
    """What is wrong with what was found."""
    lacking = [name for name in contact.attributes.split() if name not in attributes]
    if lacking:
        return f"has no {', '.join(lacking)}"
    if contact.takes is not None:
        if not isinstance(node, source.Function):
            return "is not a function"
        first, others = (
            [name for name in text.removesuffix("...").split(", ") if name]
            for text in contact.takes.partition("*, ")[::2]
        )
        positional, named, required = source.parameters(node, "." in contact.name)
        names = [*positional, *named]
        unknown = set() if contact.takes.endswith("...") else required - {*first, *others}
        if positional[: len(first)] != first or set(others) - set(names) or unknown:
            return f"takes ({', '.join(names)}) instead of ({contact.takes})"
    lacking = [name for name in contact.calls.split() if name not in source.calls(node)]
    if lacking:
        return f"does not call {', '.join(lacking)}"
    first_names = contact.returns.split()
    lists = source.returned(node) if first_names else [[]]
    if not lists or any(names[: len(first_names)] != first_names for names in lists):
        return f"does not return {', '.join(first_names)} first"
    lacking = [e for e in contact.contains if e not in source.expressions(node)]
    return f"does not contain {', '.join(lacking)}" if lacking else None
