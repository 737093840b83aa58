"""Reads rows from one json, jsonl, csv or parquet file, and says where each of them stands."""

import codecs
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from slot_vllm.evaluation.config import ConfigError

Row = dict[str, Any]

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
    r"([-_.].*)?|dataset_infos?\.json|datapackage\.json",
    re.IGNORECASE,
)


class Item(NamedTuple):
    """A row and its place, for errors: the file, the line (parquet has none) and the item."""

    place: str
    row: Row


def read(path: Path, of: str = "problems") -> list[Item]:
    """All rows of a file, at least one. Raises ConfigError that names the file and, where there is
    one, the line. of: what the rows are, in words."""
    try:
        found = list(_reader(path)(path))
    # ValueError: of JSON and Arrow. EOFError, zlib.error: of gzip.
    except (OSError, ValueError, EOFError, zlib.error, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None
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
    """The data files below a directory, hidden files and documents left out. Raises ConfigError for
    any other that cannot be read."""
    found = [
        file
        for file in sorted(directory.rglob("*"))
        if file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(directory).parts)
        and file.suffix.lower() not in _DOCUMENT_KINDS
        and not _DOCUMENTS.fullmatch(file.name)
    ]
    for file in found:
        _reader(file)
    return found


def stem(file: Path) -> str:
    """A file's name without its kind: ``part`` of ``part.csv.gz``."""
    return (file.with_suffix("") if file.suffix.lower() == ".gz" else file).stem


def _reader(file: Path) -> Callable[[Path], Iterator[tuple[int, Any]]]:
    packed = file.suffix.lower() == ".gz"
    kind = (file.with_suffix("") if packed else file).suffix.lower()
    reader = READERS.get(kind)
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
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        before = content[: error.start].decode(encoding, errors="replace")
        line = before.count("\n") + 1
        raise ValueError(f"line {line}: not {encoding.upper()}: {error.reason}") from None


def _json(path: Path) -> Iterator[tuple[int, Any]]:
    text = _text(path)
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # objects below each other, whatever the file's name says
            yield from _json_lines(path)
            return
        raise ValueError(f"line {error.lineno}: {error.msg}") from None
    if isinstance(rows, dict) and "\n" not in text.strip():  # the same, of one object
        yield from _json_lines(path)
        return
    if not isinstance(rows, list):
        raise ValueError("a list of objects is required")
    decoder, position = json.JSONDecoder(), text.index("[") + 1
    for row in rows:
        while text[position].isspace() or text[position] == ",":
            position += 1
        yield text.count("\n", 0, position) + 1, row
        _, position = decoder.raw_decode(text, position)


def _json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(_text(path).split("\n"), 1):
        try:
            if line.strip():
                yield number, json.loads(line)
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None


def _csv(path: Path) -> Iterator[tuple[int, Any]]:
    csv.field_size_limit(_LARGEST_CELL)
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    columns: list[str] | None = None
    heading, rows = 0, 0
    line = 1
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise ValueError(f"line {line}: {error}") from None
        if cells is None:
            if columns is not None and not rows:
                raise ValueError(
                    f"line {heading}: the first line is the heading, and no row stands below it"
                )
            return
        start, line = line, reader.line_num + 1
        if not any(cell.strip() for cell in cells) and len(cells) < 2:  # a blank line
            continue
        if columns is None:
            columns, heading = [cell.strip() for cell in cells], start
            twice = next((c for c in columns if c and columns.count(c) > 1), None)
            if twice is not None:
                raise ValueError(f"line {start}: two columns are named {twice!r}")
            continue
        if len(cells) != len(columns):
            raise ValueError(
                f"line {start}: {len(cells)} cells; the heading names {len(columns)} columns"
            )
        rows += 1
        yield start, dict(zip(columns, cells, strict=True))


def _parquet(path: Path) -> Iterator[tuple[int, Any]]:
    from pyarrow import parquet  # type: ignore[import-untyped]

    yield from ((0, row) for row in parquet.read_table(path).to_pylist())


READERS: dict[str, Callable[[Path], Iterator[tuple[int, Any]]]] = {
    ".json": _json,
    ".jsonl": _json_lines,
    ".csv": _csv,
    ".parquet": _parquet,
}
ALLOWED = f"{', '.join(READERS)}, and .gz of the first three"
