"""A task's data from a local file or directory: which files hold which split, and their rows."""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from slot_vllm.evaluation import columns, data_files
from slot_vllm.evaluation.data_files import Row
from slot_vllm.evaluation.errors import ConfigError, bad_input

Dataset = Mapping[str, Sequence[Row]]

# The split of files whose names say none.
_UNNAMED = ""

_SPLITS = ("train", "validation", "valid", "val", "dev", "test")
_CARD = "README.md"
# What a card may say of a subset; anything else would change how its files are read.
_CARD_KEYS = {"data_files", "data_dir", "default", "description", "features", "version"}


def read(
    path: Path, task: str, subset: str, splits: Sequence[str], examples: str | None = None
) -> Dataset:
    """A task's dataset from a file or a directory: the splits that are evaluated, and the one
    that examples in the prompt come from.

    A file, or a directory whose files are of one split or of none, serves every evaluated split.
    Raises ConfigError.
    """
    required = [*splits, *([examples] if examples else [])]
    one = {_UNNAMED: [path]}
    layout = one if path.is_file() else _by_split(path, subset, required)
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


def _by_split(directory: Path, subset: str, own: Iterable[str]) -> dict[str, list[Path]]:
    """The files of one subset by their split, _UNNAMED where no name says one.

    A dataset card that declares subsets is taken at its word. Without one, a file or folder named
    as the subset is the subset. A split's name stands alone or as a word in the name of a file
    (``train.csv``, ``gsm8k_test-1.csv``) or of its folder. Files of one split are parts of it, in
    the order of their numbers. own: names of further splits. Raises ConfigError.
    """
    declared = _declared(directory, subset)
    if declared is not None:
        return declared
    found = data_files.files(directory)
    if not found:
        script = next(iter(sorted(directory.glob("*.py"))), None)
        why = f"; a loading script ({script.name}) is not run" if script else ""
        raise ConfigError(
            f"{directory}: no data file in this directory{why}; allowed: {data_files.ALLOWED}"
        )
    splits = {*_SPLITS, *own}
    found = _of_subset(directory, found, subset, splits)
    _check_copies(found)
    layout: dict[str, list[Path]] = defaultdict(list)
    for file in _in_order(found):
        layout[_split(file, directory, splits) or _UNNAMED].append(file)
    if _UNNAMED in layout and len(layout) > 1:
        raise ConfigError(
            f"{layout[_UNNAMED][0]}: its name says no split, and others' names do "
            f"({', '.join(sorted({*layout} - {_UNNAMED}))})"
        )
    order = [*_SPLITS, *sorted({*layout} - {*_SPLITS})]
    return {split: layout[split] for split in order if split in layout}


def _split(file: Path, directory: Path, splits: Collection[str]) -> str | None:
    name = data_files.stem(file).lower()
    words = {word for word in re.findall(r"[a-z]+", name) if word in _SPLITS}
    if name in splits:
        return name
    if len(words) == 1:
        return words.pop()
    folders = reversed(file.relative_to(directory).parts[:-1])
    return next((folder.lower() for folder in folders if folder.lower() in splits), None)


def _of_subset(
    directory: Path, files: Sequence[Path], subset: str, splits: Collection[str]
) -> list[Path]:
    named = [file for file in files if _is_named(file, directory, subset)]
    if named or subset == "default":
        return named or list(files)
    folders = {
        tuple(part for part in file.parent.parts if part.lower() not in splits) for file in files
    }
    names = {re.sub(r"\d+", "#", data_files.stem(file)) for file in files}
    of_splits = all(_split(file, directory, splits) for file in files)
    if len(folders) == 1 and (of_splits or len(names) == 1):
        return list(files)
    raise ConfigError(
        f"{directory}: no subset {subset!r} in this directory; allowed: a file or folder of that "
        "name, files named as splits, or parts whose names differ in their numbers; it has: "
        + ", ".join(str(file.relative_to(directory)) for file in files)
    )


def _is_named(file: Path, directory: Path, subset: str) -> bool:
    of_file = re.fullmatch(rf"{re.escape(subset)}([-_. ]\d.*)?", data_files.stem(file))
    return of_file is not None or subset in file.relative_to(directory).parts[:-1]


def _check_copies(files: Iterable[Path]) -> None:
    seen: dict[Path, Path] = {}
    for file in files:
        other = seen.setdefault(file.parent / data_files.stem(file), file)
        if other != file:
            raise ConfigError(
                f"{file}: {other.name} has the same name; copies or parts? allowed: one of them, "
                "or names that differ"
            )


def _in_order(files: Iterable[Path]) -> list[Path]:
    def numbers(file: Path) -> list[tuple[int, str]]:
        parts = re.split(r"(\d+)", str(file))
        return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]

    return sorted(files, key=numbers)


def _declared(directory: Path, subset: str) -> dict[str, list[Path]] | None:
    """As the card declares; None without one that does."""
    card = directory / _CARD
    if not card.is_file():
        return None
    from datasets.utils.metadata import MetadataConfigs
    from huggingface_hub import DatasetCard

    with bad_input(f"{card}: cannot be read", Exception):  # whatever is wrong with its YAML
        content = DatasetCard.load(card, ignore_metadata_errors=True).data
        subsets = MetadataConfigs.from_dataset_card_data(content)
        default = subsets.get_default_config_name()
    if not subsets:
        return None
    name = subset if subset in subsets else default if subset == "default" else None
    if name is None:
        raise ConfigError(f"{card}: no subset {subset!r}; it declares: {', '.join(subsets)}")
    return _files(directory, f"{card}: subset {name!r}", subsets[name])


def _files(directory: Path, where: str, said: Mapping[str, Any]) -> dict[str, list[Path]]:
    from datasets.data_files import resolve_pattern, sanitize_patterns

    unknown = sorted({*said} - _CARD_KEYS)
    if unknown:
        allowed = ", ".join(sorted(_CARD_KEYS))
        raise ConfigError(f"{where}: {unknown[0]} is not read; allowed: {allowed}")
    base = directory / str(said.get("data_dir") or ".")
    if "data_files" not in said:
        return _by_split(base, "default", ())
    layout = {}
    for split, patterns in sanitize_patterns(said["data_files"]).items():
        files: list[str] = []
        for pattern in patterns:
            if "://" in pattern:
                raise ConfigError(f"{where}: {pattern} is no local file")
            try:
                files += resolve_pattern(pattern, str(base.resolve()))
            except FileNotFoundError:
                raise ConfigError(f"{where}: no file {pattern} in this directory") from None
        layout[split] = _in_order({Path(file) for file in files})
    return layout
