"""A task's data from a local file or directory."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from slot_vllm.evaluation import columns, data_files, data_layout
from slot_vllm.evaluation.data_files import Row
from slot_vllm.evaluation.errors import ConfigError

Dataset = Mapping[str, Sequence[Row]]


def read(
    path: Path, task: str, subset: str, splits: Sequence[str], examples: str | None = None
) -> Dataset:
    """A task's dataset from a file or a directory: the splits that are evaluated, and the one
    that examples in the prompt come from.

    A file, or a directory whose files are of one split or of none, serves every evaluated split.
    Raises ConfigError.
    """
    required = [*splits, *([examples] if examples else [])]
    one = {data_layout.UNNAMED: [path]}
    layout = one if path.is_file() else data_layout.by_split(path, subset, required)
    wanted = columns.of(task)
    if len(layout) == 1 and not {*required} <= {*layout}:
        if examples is not None:
            raise ConfigError(
                f"{path}: one file, but {task} takes examples from split {examples!r}; allowed: a "
                "directory with a file for each split"
            )
        [files] = layout.values()
        layout = dict.fromkeys(splits, files)
    missing = [split for split in required if split not in layout]
    if missing:
        raise ConfigError(f"{path}: no split {missing[0]!r}; it has: {', '.join(layout)}")
    return {
        split: columns.checked(
            (item for file in layout[split] for item in data_files.read(file)), wanted
        )
        for split in dict.fromkeys(required)
    }
