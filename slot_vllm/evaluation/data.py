"""A task's data from a local file or directory."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from slot_vllm.evaluation import columns, data_files
from slot_vllm.evaluation.config import ConfigError
from slot_vllm.evaluation.data_files import Item, Row

Dataset = Mapping[str, Sequence[Row]]

_SPLITS = ("train", "validation", "val", "dev", "test")


def read(
    path: Path, task: str, subset: str, splits: Sequence[str], examples: str | None = None
) -> Dataset:
    """A task's dataset from a file or a directory: the splits that are evaluated, and the one
    that examples in the prompt come from.

    A file, a directory with just one, or one whose files are parts of one (names that differ in a
    number) serves every evaluated split. Any other directory is read as a local copy of a hub
    dataset, with its subsets and splits. Raises ConfigError.
    """
    found = [path] if path.is_file() else data_files.files(path)
    if not found:
        allowed = ", ".join(data_files.READERS)
        raise ConfigError(f"{path}: no data file in this directory; allowed: {allowed}")
    wanted = columns.of(task)
    if len({_part_of(file) for file in found}) == 1:
        if examples is not None:
            raise ConfigError(
                f"{path}: one file, but {task} takes examples from split {examples!r}; allowed: a "
                "directory with a file for each split"
            )
        return dict.fromkeys(splits, columns.checked(_parts(found), wanted))
    dataset = _directory(path, found, subset)
    splits = [*splits, *([examples] if examples else [])]
    missing = [split for split in splits if split not in dataset]
    if missing:
        raise ConfigError(f"{path}: no split {missing[0]!r}; it has: {', '.join(dataset)}")
    return {split: columns.checked(dataset[split], wanted) for split in splits}


def _part_of(file: Path) -> tuple[Path, str, str]:
    """The same for parts of one: part-0.csv and part-1.csv."""
    return file.parent, re.sub(r"\d+", "#", file.stem), file.suffix


def _parts(files: Sequence[Path]) -> list[Item]:
    def numbers(file: Path) -> list[int]:
        return [int(number) for number in re.findall(r"\d+", file.stem)]

    return [item for file in sorted(files, key=numbers) for item in data_files.read(file)]


def _directory(path: Path, files: Sequence[Path], subset: str) -> Mapping[str, list[Item]]:
    import datasets

    # Without a hub's metadata, a file named as the subset is the subset, and files named as
    # splits are those.
    named = [file for file in files if file.stem == subset]
    if len(named) == 1:
        return _EverySplit(data_files.read(named[0]))
    if {file.stem for file in files} <= set(_SPLITS):
        in_order = sorted(files, key=lambda file: _SPLITS.index(file.stem))
        return {file.stem: data_files.read(file) for file in in_order}
    try:
        subsets = datasets.get_dataset_config_names(str(path))
        if subset in subsets or subset == "default":
            loaded = datasets.load_dataset(str(path), subset if subset in subsets else None)
            return _items(path, loaded)
        loaded = datasets.load_dataset(str(path), None)
        if {file.stem for file in files} <= set(loaded):
            return _items(path, loaded)
    except Exception as error:  # whatever a builder raises for files that it cannot read
        raise ConfigError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None
    raise ConfigError(
        f"{path}: no subset {subset!r} in this directory; allowed: a file of that name, or files "
        f"named as splits; it has: {', '.join(sorted({file.stem for file in files}))}"
    )


def _items(path: Path, loaded: Dataset) -> dict[str, list[Item]]:
    return {
        split: [Item(f"{path}: {split}, item {n}", dict(row)) for n, row in enumerate(rows, 1)]
        for split, rows in loaded.items()
    }


class _EverySplit(dict[str, list[Item]]):
    """The same rows for every split that is asked for."""

    def __init__(self, items: list[Item]) -> None:
        self._items = items

    def __contains__(self, split: object) -> bool:
        return True

    def __missing__(self, split: str) -> list[Item]:
        return self._items
