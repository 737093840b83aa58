"""What identifies a task and its problems, so that runs of the same are told from others."""

import hashlib
import inspect
from importlib.metadata import version
from typing import Any

from lighteval.tasks.requests import Doc

from slot_vllm.evaluation.record import TaskDefinition
from slot_vllm.evaluation.run_settings import text_hash
from slot_vllm.evaluation.tasks import EvaluationTask

_DIGITS = 12


def definition(task: EvaluationTask) -> TaskDefinition:
    """Of a task as it is defined today."""
    doc = task.docs[0]
    return TaskDefinition(
        prompt=_named(task.task.formatter),
        metrics={_name(metric): _scorer(metric) for metric in task.task.metrics},
        lighteval=version("lighteval"),
        answers=doc.num_samples,
        token_limit=doc.generation_size,
    )


def item_hash(doc: Doc) -> str:
    """Of a problem and its gold answers."""
    return text_hash(doc.query, *doc.get_golds())


def _name(metric: Any) -> str:
    names = metric.metric_name
    return names if isinstance(names, str) else ", ".join(names)


def _scorer(metric: Any) -> str:
    scorer = metric.sample_level_fn
    kind = scorer if inspect.isroutine(scorer) else type(scorer)
    return f"{_named(kind)} {_source(kind)}"


def _named(thing: Any) -> str:
    name = getattr(thing, "__qualname__", type(thing).__qualname__)
    return f"{getattr(thing, '__module__', '?')}.{name}"


def _source(thing: Any) -> str:
    try:
        source = inspect.getsource(thing)
    except (OSError, TypeError):  # made at run time, or not written in Python
        return "without source"
    return hashlib.sha256(source.encode()).hexdigest()[:_DIGITS]
