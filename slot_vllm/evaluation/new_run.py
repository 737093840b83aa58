"""``slot-vllm init``: the file of a first run, made from what the data are."""

import contextlib
import json
import math
import os
import re
from pathlib import Path

import yaml
from jinja2 import Template
from vllm.platforms import current_platform

from slot_vllm.evaluation import benchmarks, columns, data_files, ready_files, tasks
from slot_vllm.evaluation.config import RunConfig, check_paths
from slot_vllm.evaluation.errors import ConfigError, valid, writing
from slot_vllm.evaluation.models.catalog import PREFIX

_TEMPLATE = Path(__file__).with_name("first_run.yaml.jinja")
# For editors.
SCHEMA = Path(__file__).parents[1] / "configs" / "schema.json"
# At most, of a prompt and its answer.
_LENGTH = 2048

# What a file's columns can tell a benchmark by, and what is said of it.
_BY_COLUMNS = {
    "ifeval": "IFEval: a program checks whether instructions were followed.",
    "published:gpqa:diamond": "GPQA: questions with four choices.",
    "ceval": "C-Eval: questions with four choices, in Chinese.",
}
_WORKED = (
    "published:gsm8k",
    "GSM8K as published: <think> </think><answer> </answer>; form and number are scored.",
)
_PROBLEMS = (
    "published:math_500",
    "The answer is asked for in \\boxed{}, and compared with the data's as a number or a formula.",
)
_NAMED = "On the hub's data, unless `data:` names a local file or directory."


def write(model: str, data: str, output: Path | None) -> Path:
    """Writes the file, by default NAME.yaml here, and returns its path.

    Raises ConfigError, also for a file that exists and for data that no run could use.
    """
    path = ready_files.find(Path(data).expanduser())
    local = path.exists()
    task, about = _of_data(path) if local else _of_name(data)
    stem = data_files.stem(Path(data.rstrip("/"))) if local else data
    of_model = Path(model.removeprefix(PREFIX)).name
    name = re.sub(r"[^A-Za-z0-9._]+", "-", f"{of_model}-{stem}").strip("-._")
    output = output or Path(f"{name}.yaml")
    template = Template(_TEMPLATE.read_text("utf-8"), trim_blocks=True, keep_trailing_newline=True)
    text = template.render(
        schema=os.path.relpath(SCHEMA.resolve(), output.expanduser().absolute().parent),
        file=output,
        name=_scalar(name),
        model=_scalar(model),
        length=_length(model),
        on_cpu=current_platform.is_cpu(),
        about=about,
        task=_scalar(task),
        data=_scalar(data) if local else None,
    )
    with valid(RunConfig):
        config = RunConfig(**yaml.safe_load(text))
    check_paths(config)
    if local:
        tasks.load(config)
    if output.exists():
        raise ConfigError(f"{output}: it exists; --output FILE writes another one")
    with writing(output), output.open("x", encoding="utf-8") as file:
        file.write(text)
    return output


def _of_data(path: Path) -> tuple[str, str]:
    """The task for a file or directory, and what it is."""
    files = data_files.files(path) if path.is_dir() else [path]
    if not files:
        raise ConfigError(f"{path}: no data file in this directory")
    first = data_files.read(files[0])[0]
    for task, about in _BY_COLUMNS.items():
        with contextlib.suppress(ConfigError):
            columns.checked([first], columns.of(task))
            return task, about
    return _WORKED if "####" in str(first.row.get("answer")) else _PROBLEMS


def _of_name(name: str) -> tuple[str, str]:
    if "/" in name or Path(name).suffix in (*data_files.READERS, ".gz"):
        raise ConfigError(f"DATA={name!r}: no such path (from {Path.cwd()})")
    published = f"published:{name}"
    own = any(task.name == published for task in benchmarks.TASKS_TABLE)
    task = published if own else name
    tasks.definitions(task, "DATA")
    return task, _NAMED


def _length(model: str) -> int:
    """What the model has positions for, where that can be seen and is less."""
    try:
        settings = json.loads((Path(model).expanduser() / "config.json").read_text("utf-8"))
        return min(_LENGTH, int(settings["max_position_embeddings"]))
    except (OSError, ValueError, KeyError, TypeError):
        return _LENGTH


def _scalar(text: str) -> str:
    """As YAML writes it, in quotes where it needs them."""
    written: str = yaml.safe_dump([text], width=math.inf, allow_unicode=True)
    return written.removeprefix("- ").rstrip("\n")
