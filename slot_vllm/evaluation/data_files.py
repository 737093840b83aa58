"""Reads rows from one json, jsonl, csv or parquet file, or from what datasets' save_to_disk wrote,
and says where each of them stands."""

import codecs
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from slot_vllm.evaluation.errors import ConfigError, bad_input

Row = dict[str, Any]
_Reader = Callable[[Path], Iterator[tuple[int, Any]]]

_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_LARGEST_CELL = 2**31 - 1
# What stands beside data in a directory, by kind or by name.
_DOCUMENT_KINDS = {
    *(".md", ".rst", ".pdf", ".html", ".bib", ".cff", ".png", ".jpg", ".jpeg", ".svg"),
    *(".py", ".sh", ".ipynb", ".yaml", ".yml", ".toml", ".cfg", ".md5", ".sha256", ".log"),
}
_DOCUMENTS = re.compile(
    r"(readme|licen[cs]e|copying|notice|authors|citation|changelog|changes|makefile|\w*sums)"
    r"([-_.].*)?|dataset_infos?\.json|dataset_dict\.json|datapackage\.json",
    re.IGNORECASE,
)


class Item(NamedTuple):
    """A row and its place, for errors: the file, the line (tables have none) and the item."""

    place: str
    row: Row


def read(path: Path, of: str = "problems", kind: str = "") -> list[Item]:
    """All rows of a file, at least one. Raises ConfigError that names the file and, where there is
    one, the line. of: what the rows are, in words. kind: of a file or pipe whose name says none,
    as ``.csv``."""
    # ValueError: of JSON and Arrow. EOFError, zlib.error: of gzip.
    kinds = (OSError, ValueError, EOFError, zlib.error, RecursionError)
    with bad_input(f"{path}: cannot be read", *kinds):
        found = list(_reader(path, kind)(path))
    items = []
    for number, (line, row) in enumerate(found, 1):
        place = f"{path}: {f'line {line}, ' if line else ''}item {number}"
        if not isinstance(row, dict):
            raise ConfigError(f"{place}: an object is required")
        items.append(Item(place, row))
    if not items:
        raise ConfigError(f"{path}: it holds no {of}")
    return items


def files(directory: Path) -> list[Path]:
    """The data files below a directory, hidden files and documents left out; a dataset that was
    saved to disk is one of them. Raises ConfigError for any other that cannot be read."""
    below = sorted(directory.rglob("*"))
    saved = {folder for folder in (directory, *below) if _is_saved(folder)}
    found = [
        file
        for file in (directory, *below)
        if (file in saved or (file.is_file() and not _is_document(file)))
        and not any(part.startswith(".") for part in file.relative_to(directory).parts)
        and not saved.intersection(file.parents)
    ]
    for file in found:
        _reader(file)
    return found


def _is_document(file: Path) -> bool:
    return file.suffix.lower() in _DOCUMENT_KINDS or _DOCUMENTS.fullmatch(file.name) is not None


def _is_saved(path: Path) -> bool:
    """Whether it is a directory that ``datasets.Dataset.save_to_disk`` wrote."""
    return all((path / name).is_file() for name in ("state.json", "dataset_info.json"))


def stem(file: Path) -> str:
    """A file's name without its kind: ``part`` of ``part.csv.gz``."""
    return (file.with_suffix("") if file.suffix.lower() == ".gz" else file).stem


def _reader(file: Path, otherwise: str = "") -> _Reader:
    if _is_saved(file):
        return _saved
    packed = file.suffix.lower() == ".gz"
    kind = (file.with_suffix("") if packed else file).suffix.lower()
    reader = READERS.get(kind) or READERS.get(otherwise)
    if reader is None or (packed and reader is _parquet):
        raise ConfigError(f"{file}: unknown kind of file; allowed: {ALLOWED}")
    return reader


def _text(path: Path) -> str:
    """A byte-order mark says which encoding it is; without one it is UTF-8."""
    content = path.read_bytes()
    if path.suffix.lower() == ".gz":
        content = gzip.decompress(content)
    encoding = next((name for mark, name in _MARKS.items() if content.startswith(mark)), "utf-8")
    if encoding.startswith("utf-8") and b"\0" in content:
        line = content.count(b"\n", 0, content.index(b"\0")) + 1
        raise ValueError(
            f"line {line}: a NUL byte; a text in UTF-16 or UTF-32 needs a byte-order mark"
        )
    try:
        # Tools that write a mark before a text that has one leave two.
        return content.decode(encoding).lstrip("\ufeff\u200b")
    except UnicodeDecodeError as error:
        before = content[: error.start].decode(encoding, errors="replace")
        line = before.count("\n") + 1
        raise ValueError(f"line {line}: not {encoding.upper()}: {error.reason}") from None


def _json(path: Path) -> Iterator[tuple[int, Any]]:
    """A list of objects, or objects below each other, whatever the file's name says."""
    text = _text(path)
    if text.lstrip().startswith("["):
        try:
            json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"line {error.lineno}: {error.msg}") from None
        yield from _values(text, text.index("[") + 1, ",")
        return
    found = list(_values(text, 0, ""))
    if len(found) == 1 and path.suffix.lower() == ".json" and "\n" in text.strip():
        names = f"an object with {', '.join(found[0][1])}" if isinstance(found[0][1], dict) else ""
        raise ValueError(f"{names or 'one value'}; a list of objects is required")
    yield from found


def _values(text: str, position: int, between: str) -> Iterator[tuple[int, Any]]:
    """The values from a position on, up to a bracket or the end, and the lines they begin in."""
    decoder = json.JSONDecoder(object_pairs_hook=_object)
    line, counted = 1, 0
    while True:
        while position < len(text) and (text[position].isspace() or text[position] == between):
            position += 1
        if position == len(text) or (between and text[position] == "]"):
            return
        line, counted = line + text.count("\n", counted, position), position
        try:
            value, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            raise ValueError(f"line {error.lineno}: {error.msg}") from None
        except ValueError as error:
            raise ValueError(f"line {line}: {error}") from None
        yield line, value


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    twice = _twice([name for name, _ in pairs])
    if twice is not None:
        raise ValueError(f"two of an object's names are {twice!r}")
    return dict(pairs)


def _twice(names: Sequence[str]) -> str | None:
    return next((name for name in names if name and names.count(name) > 1), None)


def _csv(path: Path) -> Iterator[tuple[int, Any]]:
    lines = _csv_lines(_text(path))
    heading, cells = next(lines, (0, []))
    columns = [cell.strip() for cell in cells]
    twice = _twice(columns)
    if twice is not None:
        raise ValueError(f"line {heading}: two columns are named {twice!r}")
    line = heading
    for line, cells in lines:
        if len(cells) != len(columns):
            raise ValueError(
                f"line {line}: {len(cells)} cells; the heading names {len(columns)} columns"
            )
        _check_cells(line, columns, cells)
        yield line, dict(zip(columns, cells, strict=True))
    if columns and line == heading:
        raise ValueError(
            f"line {heading}: the first line is the heading, and no row stands below it"
        )


def _csv_lines(text: str) -> Iterator[tuple[int, list[str]]]:
    """The rows that are not blank, and the lines that they begin in."""
    csv.field_size_limit(_LARGEST_CELL)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    line = 1
    try:
        for cells in reader:
            if len(cells) > 1 or any(cell.strip() for cell in cells):
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"line {line}: {error}") from None


def _check_cells(line: int, columns: Sequence[str], cells: Sequence[str]) -> None:
    for number, (column, cell) in enumerate(zip(columns, cells, strict=True)):
        # The first one without a name is the index that pandas writes.
        if number and not column and cell.strip():
            raise ValueError(f"line {line}: a cell below no name: {cell[:40]!r}")
        if cell[:1].isspace() and re.fullmatch(r'\s+".*"\s*', cell, re.DOTALL):
            raise ValueError(
                f"line {line}: a quote after a space, which makes both part of the cell: "
                f"{cell[:40]!r}; required: no space after the comma"
            )


def _parquet(path: Path) -> Iterator[tuple[int, Any]]:
    from pyarrow import parquet  # type: ignore[import-untyped]

    with parquet.ParquetFile(path) as file:
        twice = _twice(file.schema_arrow.names)
        if twice is not None:
            raise ValueError(f"two columns are named {twice!r}")
        yield from ((0, row) for row in file.read().to_pylist())


def _saved(path: Path) -> Iterator[tuple[int, Any]]:
    import datasets

    try:
        rows = datasets.load_from_disk(str(path)).with_format(None)
    except (KeyError, TypeError) as error:
        raise ValueError(f"its state.json lacks {error}") from None
    yield from ((0, row) for row in rows)


READERS: dict[str, _Reader] = {
    ".json": _json,
    ".jsonl": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}
ALLOWED = f"{', '.join(READERS)}, .gz of the first three, and directories of datasets' save_to_disk"
