"""What identifies a task and its problems, so that runs of the same are told from others."""

import hashlib
import inspect
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from typing import Any

from lighteval.tasks.requests import Doc

from slot_vllm.evaluation.record import TaskDefinition
from slot_vllm.evaluation.run_settings import text_hash
from slot_vllm.evaluation.tasks import EvaluationTask

_DIGITS = 12
# What a scorer is made of is followed so far, and no further than into code that scores.
_DEPTH = 6
_SCORING = ("lighteval", "slot_vllm")


def definition(task: EvaluationTask) -> TaskDefinition:
    """Of a task as it is defined today."""
    doc = task.docs[0]
    prompt, metrics = prompt_and_scorers(task.task.formatter, task.task.metrics)
    return TaskDefinition(
        prompt=prompt,
        metrics=metrics,
        lighteval=version("lighteval"),
        answers=doc.num_samples,
        token_limit=doc.generation_size,
    )


def prompt_and_scorers(prompt: Any, metrics: Iterable[Any]) -> tuple[str, dict[str, str]]:
    """Of a task's prompt function and metrics, as a TaskDefinition says them."""
    return _named(prompt), {
        name: _scorer(metric.sample_level_fn)
        for metric in metrics
        for name in metric.get_corpus_aggregations()
    }


def item_hash(doc: Doc) -> str:
    """Of a problem and its gold answers."""
    return text_hash(doc.query, *doc.get_golds())


def _scorer(scorer: Any) -> str:
    """Its name, and a hash of its source, its parameters and the scorers within it."""
    kind = scorer if inspect.isroutine(scorer) else type(scorer)
    return f"{_named(kind)} {text_hash(*_parts(scorer))[:_DIGITS]}"


def _parts(thing: Any, depth: int = 0) -> Iterator[str]:
    if thing is None or isinstance(thing, str | int | float | bool):
        yield repr(thing)
    elif isinstance(thing, Mapping):
        for key, value in thing.items():
            yield str(key)
            yield from _parts(value, depth + 1)
    elif isinstance(thing, list | tuple | set | frozenset):
        found = [" ".join(_parts(item, depth + 1)) for item in thing]
        yield from found if isinstance(thing, list | tuple) else sorted(found)
    else:
        kind = thing if inspect.isroutine(thing) or inspect.isclass(thing) else type(thing)
        yield _named(kind)
        if kind.__module__.split(".")[0] in _SCORING and depth < _DEPTH:
            yield _source(kind)
            yield from _parts(_held(thing), depth + 1)


def _held(thing: Any) -> dict[str, Any]:
    """What a function closes over, or the fields of an object."""
    if inspect.isfunction(thing):
        return dict(inspect.getclosurevars(thing).nonlocals)
    return {} if inspect.isclass(thing) else dict(getattr(thing, "__dict__", {}))


def _named(thing: Any) -> str:
    name = getattr(thing, "__qualname__", type(thing).__qualname__)
    return f"{getattr(thing, '__module__', '?')}.{name}"


def _source(thing: Any) -> str:
    try:
        return hashlib.sha256(inspect.getsource(thing).encode()).hexdigest()
    except (OSError, TypeError):  # made at run time, or not written in Python
        return "no source"
