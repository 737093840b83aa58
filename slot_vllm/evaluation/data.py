"""A task's data from a local file or directory."""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from slot_vllm.evaluation.config import ConfigError

Row = dict[str, Any]
Dataset = Mapping[str, Sequence[Row]]

# The columns that the prompt functions of lighteval's tasks read. Their text is taken as text:
# an answer `204` in a JSON file is the string "204" that the task's metric expects.
COLUMNS = {
    **dict.fromkeys(
        ("aime24", "aime24_avg", "aime24_gpassk", "aime25", "aime25_avg", "aime25_gpassk"),
        ("problem", "answer"),
    ),
    "math_500": ("problem", "solution"),
    "gpqa:diamond": (
        "Question",
        "Correct Answer",
        "Incorrect Answer 1",
        "Incorrect Answer 2",
        "Incorrect Answer 3",
    ),
    **dict.fromkeys(("gsm8k", "published:gsm8k"), ("question", "answer")),
}


def read(
    path: Path, task: str, subset: str, splits: Sequence[str], examples: str | None = None
) -> Dataset:
    """A task's dataset from a file or a directory: the splits that are evaluated, and the one
    that examples in the prompt come from.

    A file, or a directory with just one, serves every evaluated split. A directory with more is
    read as a local copy of a hub dataset, with its subsets and splits. Raises ConfigError.
    """
    files = [path] if path.is_file() else _data_files(path)
    if not files:
        raise ConfigError(f"{path}: no data file in this directory; allowed: {', '.join(READERS)}")
    if len(files) == 1:
        if examples is not None:
            raise ConfigError(
                f"{path}: one file, but {task} takes examples from split {examples!r}; allowed: a "
                "directory with a file for each split"
            )
        rows = _checked(files[0], _rows(files[0]), COLUMNS.get(task, ()))
        return dict.fromkeys(splits, rows)
    dataset = _directory(path, subset)
    splits = [*splits, *([examples] if examples else [])]
    missing = [split for split in splits if split not in dataset]
    if missing:
        raise ConfigError(f"{path}: no split {missing[0]!r}; it has: {', '.join(dataset)}")
    columns = COLUMNS.get(task, ())
    return {split: _checked(path, list(dataset[split]), columns) for split in splits}


def _data_files(directory: Path) -> list[Path]:
    return [file for file in sorted(directory.rglob("*")) if file.suffix in READERS]


def _directory(path: Path, subset: str) -> Dataset:
    import datasets

    # Without a hub's metadata, a file named as the subset is the subset.
    named = [file for file in _data_files(path) if file.stem == subset]
    if len(named) == 1:
        return _EverySplit(_rows(named[0]))
    try:
        subsets = datasets.get_dataset_config_names(str(path))
        if subset in subsets or subset == "default":
            return datasets.load_dataset(str(path), subset if subset in subsets else None)
        loaded = datasets.load_dataset(str(path), None)
        files = {file.stem for file in _data_files(path)}
        if files <= set(loaded):
            return loaded
    except Exception as error:  # whatever a builder raises for files that it cannot read
        raise ConfigError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None
    raise ConfigError(
        f"{path}: no subset {subset!r} in this directory; allowed: a file of that name, or files "
        f"named as splits; it has: {', '.join(sorted(files))}"
    )


class _EverySplit(dict[str, Sequence[Row]]):
    """The same rows for every split that is asked for."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows

    def __contains__(self, split: object) -> bool:
        return True

    def __missing__(self, split: str) -> Sequence[Row]:
        return self._rows


def _rows(path: Path) -> list[Row]:
    reader = READERS.get(path.suffix)
    if reader is None:
        raise ConfigError(f"{path}: unknown kind of file; allowed: {', '.join(READERS)}")
    try:
        return reader(path)
    except (OSError, ValueError, csv.Error) as error:  # ValueError: JSON, Unicode, Arrow
        raise ConfigError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None


def _json(path: Path) -> list[Row]:
    rows = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(rows, list):
        raise ValueError("a list of objects is required")
    return rows


def _json_lines(path: Path) -> list[Row]:
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        try:
            if line.strip():
                rows.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
    return rows


def _csv(path: Path) -> list[Row]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _parquet(path: Path) -> list[Row]:
    from pyarrow import parquet  # type: ignore[import-untyped]

    return parquet.read_table(path).to_pylist()


READERS: dict[str, Callable[[Path], list[Row]]] = {
    ".json": _json,
    ".jsonl": _json_lines,
    ".csv": _csv,
    ".parquet": _parquet,
}


def _checked(path: Path, rows: list[Row], columns: Sequence[str]) -> list[Row]:
    if not rows:
        raise ConfigError(f"{path}: it holds no problems")
    return [_row(path, number, row, columns) for number, row in enumerate(rows, 1)]


def _row(path: Path, number: int, row: Any, columns: Sequence[str]) -> Row:
    if not isinstance(row, dict):
        raise ConfigError(f"{path}: item {number}: an object is required")
    texts = {}
    for column in columns:
        if column not in row:
            raise ConfigError(
                f"{path}: item {number}: no {column!r}; required: {', '.join(columns)}; "
                f"it has: {', '.join(map(str, row))}"
            )
        value = row[column]
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ConfigError(f"{path}: item {number}: {column}={value!r}: a text is required")
        texts[column] = str(value)
    return {**row, **texts}
