"""lighteval's task definitions by name, with their problems built once for all arms."""

import contextlib
import copy
import difflib
import importlib
import io
import itertools
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import lighteval.tasks
import numpy as np
from lighteval.metrics.metrics_sample import AvgAtN
from lighteval.tasks.lighteval_task import LightevalTask, LightevalTaskConfig
from lighteval.tasks.registry import Registry
from lighteval.tasks.requests import Doc, SamplingMethod

from slot_vllm.evaluation import benchmarks, data, ready_files, requirements
from slot_vllm.evaluation.benchmarks import ceval
from slot_vllm.evaluation.columns import GROUPS, group, own_id
from slot_vllm.evaluation.config import RunConfig, Task
from slot_vllm.evaluation.errors import ConfigError, bad_input, one_line

# The seed of lighteval's own pipeline: GPQA's choices come in the order that it gives them.
SEED = 1234

ROOT = Path(lighteval.tasks.__file__).parent
DOWNLOAD_ON_IMPORT = {"tiny_benchmarks", "ifbench", "ifeval", "mix_eval", "mt_bench"}


@dataclass(frozen=True)
class EvaluationTask:
    """A lighteval task and its problems.

    groups: by a column that the data has (level, subject, ...) and a problem's id, its group.
    own_ids: by a problem's id, which is its position, what the data calls it, if it does.
    """

    name: str
    task: LightevalTask
    docs: list[Doc]
    groups: dict[str, dict[str, str]]
    own_ids: dict[str, str] = field(default_factory=dict)


def load(config: RunConfig) -> list[EvaluationTask]:
    """The tasks of a run with their problems, from local data or the hub. Raises ConfigError."""
    found = [
        loaded
        for index, task in enumerate(config.tasks)
        for loaded in _load(f"tasks.{index}", task, config)
    ]
    twice = [name for name, count in Counter(task.name for task in found).items() if count > 1]
    if twice:
        raise ConfigError(f"tasks: {twice[0]} is asked for twice; every task runs once")
    return found


def _load(key: str, named: Task, config: RunConfig) -> Iterator[EvaluationTask]:
    for definition in definitions(named.name, f"{key}.name", config.custom_tasks):
        if named.answers is not None:
            _draw(definition, named.answers, key)
        task = LightevalTask(definition)
        name = task.full_name.removesuffix("|0")
        _check(key, name, task, config)
        task.dataset = dataset = _dataset(key, named, task)
        docs = _docs(key, name, task, named)
        # Of several splits, positions do not tell the rows.
        splits = task.evaluation_split
        rows = [*dataset[splits[0]]] if len(splits) == 1 else []
        own = {str(i): found for i, row in enumerate(rows) if (found := own_id(row))}
        groups: dict[str, dict[str, str]] = {}
        for column, (i, row) in itertools.product(GROUPS, enumerate(rows)):
            if found := group(row, column):
                groups.setdefault(column, {})[str(i)] = found
        yield EvaluationTask(name, task, docs, groups, own)


def definitions(name: str, key: str, custom_tasks: str | None = None) -> list[LightevalTaskConfig]:
    """The definitions behind a task's name; a group (``mmlu``) has several.

    Our own benchmarks come first. lighteval's registry imports every task file, and some of them
    download on import; here a file that spells the name is imported alone, and otherwise all but
    those. ``custom_tasks`` is a file with a TASKS_TABLE of the user's own. Raises ConfigError with
    the nearest names.
    """
    base = re.split(r"[:|@]", name)[0]
    own = [benchmarks, *([_custom(custom_tasks)] if custom_tasks else [])]
    if name == ceval.WHOLE.name:
        # One task with one value here, and as many tasks as subsets in lighteval.
        return [copy.deepcopy(ceval.WHOLE)]
    registry = _Registry(name, own)
    files = {} if registry.knows(base) else _task_files()
    if files:
        spelled = re.compile(rf'\bname="{re.escape(base)}[":]')
        modules = [_import(file, key, name) for file in files if spelled.search(files[file])]
        registry = _Registry(name, [*modules, *own])
    if not registry.knows(base):
        modules = []
        for file in files:
            # Where one of lighteval's extras is missing it is not one of its tasks.
            with contextlib.suppress(Exception):
                if not _downloads(file):
                    modules.append(_module(file))
        registry = _Registry(name, [*modules, *own])
    # Of files that are not imported: what they spell; others also spell what they do not offer.
    left_out = "".join(text for file, text in files.items() if _downloads(file))
    known = {*registry.names, *re.findall(r'\bname="([^"{}]+)"', left_out)}
    near = difflib.get_close_matches(name, sorted(known), n=5, cutoff=0.5)
    nearest = f"near names: {', '.join(near) or 'none'}"
    if not registry.knows(base):
        raise ConfigError(
            f"{key}={name!r}: lighteval has no such task that can be imported here (some need its "
            f"extras, such as lighteval[multilingual]); {nearest}"
        )
    try:
        return registry.resolve()
    except ValueError as error:
        raise ConfigError(f"{key}={name!r}: {error}; {nearest}") from None


class _Registry(Registry):
    """lighteval's reading of task names, over the definitions of some of its modules."""

    def __init__(self, name: str, modules: Sequence[ModuleType]) -> None:
        self.tasks_list = [name]
        self._task_registry: dict[str, LightevalTaskConfig] = {}
        for module in modules:
            self._task_registry.update(Registry._extract_configs(module))
        self.names = list(self._task_registry)

    def knows(self, base: str) -> bool:
        return any(name.split(":")[0] == base for name in self.names)

    def resolve(self) -> list[LightevalTaskConfig]:
        return [config for configs in self._update_task_configs().values() for config in configs]


def _task_files() -> dict[Path, str]:
    folders = [ROOT / "tasks", ROOT / "multilingual" / "tasks"]
    files = [f for folder in folders for f in [*folder.glob("*.py"), *folder.glob("*/main.py")]]
    return {f: f.read_text(encoding="utf-8") for f in sorted(files) if f.name != "__init__.py"}


def _downloads(file: Path) -> bool:
    return bool(DOWNLOAD_ON_IMPORT & {file.stem, file.parent.name})


def _module(file: Path) -> ModuleType:
    parts = file.with_suffix("").relative_to(ROOT).parts
    silent = io.StringIO()  # some download, and say so
    with contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
        return importlib.import_module(".".join(["lighteval", "tasks", *parts]))


def _import(file: Path, key: str, name: str) -> ModuleType:
    try:
        module = _module(file)
        requirements.prepare(file.parent.name)
    except ImportError as error:
        raise ConfigError(f"{key}={name!r}: {requirements.missing(error)}") from None
    except ConfigError as error:
        raise ConfigError(f"{key}={name!r}: {error}") from None
    except Exception as error:  # a download that failed
        said = f"{key}={name!r}: {file.name} cannot be imported: {one_line(error)}"
        raise ConfigError(said) from None
    return module


def _custom(file: str) -> ModuleType:
    # Whatever the user's file raises.
    with bad_input(f"custom_tasks={file!r}: cannot be imported", Exception):
        module = Registry.create_custom_tasks_module(file)
        found = Registry._extract_configs(module)
    names = [task.name for task in benchmarks.TASKS_TABLE]
    ours = {name.split(":")[0] for name in names}
    for name, config in found.items():
        if name.split(":")[0] in ours and not any(config is t for t in benchmarks.TASKS_TABLE):
            raise ConfigError(
                f"custom_tasks={file!r}: it defines {name}, a name of this project's own tasks; "
                f"allowed: names that do not begin with {' or '.join(sorted(ours))}"
            )
    return module


def _draw(definition: LightevalTaskConfig, answers: int, key: str) -> None:
    """Has the task's metrics judge this many answers per problem, and their names say so."""
    for metric in definition.metrics:
        name, _, settings = str(metric.metric_name).partition(":")
        if isinstance(metric.sample_level_fn, AvgAtN) and "avg@n" not in name:
            name = f"{name}_avg@n"
        several = isinstance(metric.metric_name, str) and hasattr(metric.sample_level_fn, "n")
        if not several:
            raise ConfigError(
                f"{key}.answers={answers}: {definition.name} has the metric {metric.metric_name}, "
                "which judges one answer; allowed: tasks whose metrics are all avg@n, maj@n or "
                "pass@k"
            )
        least = getattr(metric.sample_level_fn, "k", None) or 1
        if answers < least:
            raise ConfigError(
                f"{key}.answers={answers}: {definition.name} has the metric {metric.metric_name}; "
                f"allowed: {least} or more"
            )
        metric.sample_level_fn.n = answers
        known = dict(setting.split("=") for setting in settings.split("&") if setting)
        parameters = "&".join(f"{k}={v}" for k, v in {**known, "n": str(answers)}.items())
        metric.metric_name = f"{name}:{parameters}"


def _check(key: str, name: str, task: LightevalTask, config: RunConfig) -> None:
    if any(metric.category != SamplingMethod.GENERATIVE for metric in task.metrics):
        raise ConfigError(
            f"{key}.name={name!r}: its metrics score log-likelihoods, which SLOT does not serve; "
            "allowed: generative tasks (for GPQA: gpqa:diamond)"
        )
    if max(task.num_samples) > 1 and min(config.temperatures) == 0:
        whose = "generation" if config.generation.temperature == 0 else "control"
        raise ConfigError(
            f"{whose}.temperature=0: {name} draws {max(task.num_samples)} answers per problem; "
            "allowed: a temperature above 0"
        )
    controls = [arm.control for arm in config.all_arms if arm.control]
    examples = config.examples or any(control.examples for control in controls)
    if task.dataset_config.num_fewshots and examples:
        raise ConfigError(
            f"{key}.name={name!r}: its prompts have examples of its own, and the run or an arm "
            "says `examples`; allowed: one of the two"
        )


def _dataset(key: str, named: Task, task: LightevalTask) -> data.Dataset:
    source = benchmarks.SOURCES.get(task.name.split(":")[0])
    if source is not None and named.data is not None:
        rows = source.read(ready_files.find(named.data), task.dataset_config_name or None)
        return dict.fromkeys(task.evaluation_split, rows)
    if named.data is not None:
        examples = task.fewshot_split if task.dataset_config.num_fewshots else None
        path, subset = ready_files.find(named.data), task.dataset_config_name
        read = data.read(path, task.name, subset, task.evaluation_split, examples)
        keep = task.dataset_filter or (lambda row: True)
        return {split: [row for row in rows if keep(row)] for split, rows in read.items()}
    try:
        if source is not None:
            rows = source.download(task.dataset_config_name or None)
            return dict.fromkeys(task.evaluation_split, rows)
        return LightevalTask.download_dataset_worker(task)
    except Exception as error:  # offline, gated, moved: whatever the hub's client raises
        raise ConfigError(
            f"{key}: {task.dataset_path} cannot be read from the hub ({one_line(error)}); "
            f"{key}.data takes a local copy"
        ) from None


def _docs(key: str, name: str, task: LightevalTask, named: Task) -> list[Doc]:
    random.seed(SEED)
    np.random.seed(SEED)
    try:
        docs = task.get_docs(named.max_samples and named.skip + named.max_samples)
    except KeyError as error:
        raise ConfigError(f"{key}.data: {name} reads a column {error}, which is missing") from None
    except Exception as error:  # whatever a task's prompt function raises for data it cannot use
        if lacking := requirements.missing(error):
            raise ConfigError(f"{key}.name={name!r}: {lacking}") from None
        said = f"{key}.data: {name} cannot make a prompt of it: {one_line(error)}"
        raise ConfigError(said) from None
    for doc in docs:
        if not all(isinstance(gold, str) for gold in doc.get_golds()):
            raise ConfigError(
                f"{key}.data: {name}, problem {doc.id}: the answer {doc.get_golds()} is not a text"
            )
    if any(doc.images for doc in docs):
        raise ConfigError(f"{key}.name={name!r}: its prompts hold images; allowed: text tasks")
    seen: Counter[str] = Counter()
    for doc in docs:  # ids start anew in each evaluation split
        seen[doc.id] += 1
        if seen[doc.id] > 1:
            doc.id = f"{doc.id}.{seen[doc.id]}"
    if named.skip >= len(docs):
        raise ConfigError(
            f"{key}.skip={named.skip}: {name} has {len(docs)} problems; allowed: fewer than that"
        )
    return docs[named.skip :]
