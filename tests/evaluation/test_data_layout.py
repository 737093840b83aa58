"""Directories of data: parts, splits and subsets, as people name them."""

import json
from pathlib import Path

import pytest

from slot_vllm.evaluation import data
from slot_vllm.evaluation.errors import ConfigError

CSV = "Problem,Answer\n{0}?,{1}\n"


def _read(path: Path, subset: str = "default", splits: tuple[str, ...] = ("train",)) -> list[str]:
    """The answers of the first split."""
    rows = data.read(path, "published:aime24", subset, splits)[splits[0]]
    return [row["answer"] for row in rows]


def _write(root: Path, files: dict[str, str | bytes]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def _csv(answer: str) -> str:
    return CSV.format("x", answer)


def _jsonl(answer: str) -> str:
    return json.dumps({"problem": "x", "answer": answer}) + "\n"


@pytest.mark.parametrize(
    ("files", "answers"),
    [
        ({"a.csv": _csv("7"), "b.jsonl": _jsonl("8")}, ["7", "8"]),
        ({"part-1.csv": _csv("7"), "part-2.jsonl": _jsonl("8")}, ["7", "8"]),
        ({"a.csv": _csv("007"), "b.csv": _csv("1.50")}, ["007", "1.50"]),
        ({"a.csv": CSV.format("None", "007"), "b.csv": CSV.format("y", "1_0")}, ["007", "1_0"]),
        ({"a.csv": _csv("7").encode("utf-16"), "b.csv": _csv("8").encode("utf-16")}, ["7", "8"]),
        ({"a.csv": _csv("7"), "b.csv": "answer,problem\n8,y\n"}, ["7", "8"]),
        ({"2024-I.jsonl": _jsonl("7"), "2024-II.jsonl": _jsonl("8")}, ["7", "8"]),
        ({"one/part.csv": _csv("7"), "two/part.csv": _csv("8")}, ["7", "8"]),
        ({"test-10.csv": _csv("8"), "test-9.csv": _csv("7")}, ["7", "8"]),
        ({"a.csv": _csv("7"), "README.md": "# x", "LICENSE": "x", "license.txt": "x"}, ["7"]),
        ({"train-1.csv": _csv("7"), "test-1.csv": _csv("8")}, ["7"]),
        ({"aime_train.csv": _csv("7"), "aime_test.csv": _csv("8")}, ["7"]),
        ({"Train/a.csv": _csv("7"), "Train/b.csv": _csv("8"), "dev/a.csv": _csv("9")}, ["7", "8"]),
    ],
)
def test_nothing_is_lost(tmp_path: Path, files: dict[str, str | bytes], answers: list[str]) -> None:
    _write(tmp_path, files)
    assert _read(tmp_path) == answers


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"a.csv": _csv("7"), "b.csv": "Problem,Answer\n,,\n"}, "b.csv: .*line 2: 3 cells"),
        ({"a.jsonl": _jsonl("7"), "b.jsonl": _jsonl("")}, "b.jsonl: line 1, item 1: answer: the"),
        ({"part-1.csv": _csv("7"), "part-2.parquet": ""}, "part-2.parquet: cannot be read"),
        ({"a.csv": _csv("7"), "b.tsv": "x"}, "b.tsv: unknown kind of file; allowed"),
        ({"a.csv": _csv("7"), "b.txt": "x"}, "b.txt: unknown kind of file"),
        ({"a.csv": _csv("7"), "b.xlsx": "x"}, "b.xlsx: unknown kind of file"),
        ({"a.csv": _csv("7"), "b": "x"}, "b: unknown kind of file"),
        ({"a.csv": _csv("7"), "a.jsonl": _jsonl("7")}, "a.jsonl: a.csv has the same name"),
        ({"train.csv": _csv("7"), "more.csv": _csv("8")}, "more.csv: its name says no split"),
        ({"val.csv": _csv("7"), "test.csv": _csv("8")}, "no split 'train'; it has: val, test"),
    ],
)
def test_what_is_refused(tmp_path: Path, files: dict[str, str | bytes], said: str) -> None:
    _write(tmp_path, files)
    with pytest.raises(ConfigError, match=said):
        _read(tmp_path)


def test_a_task_s_own_split(tmp_path: Path) -> None:
    _write(tmp_path, {"hard.csv": _csv("7"), "train.csv": _csv("8")})
    assert _read(tmp_path, splits=("hard",)) == ["7"]


def test_subsets(tmp_path: Path) -> None:
    _write(
        tmp_path, {f"main/{split}-00000-of-00001.csv": _csv(split) for split in ("train", "test")}
    )
    _write(tmp_path, {"socratic/train-00000-of-00001.csv": _csv("8")})
    _write(tmp_path, {"easy-1.csv": _csv("1"), "easy-2.csv": _csv("2")})
    assert _read(tmp_path, "main") == ["train"]
    assert _read(tmp_path, "easy") == ["1", "2"]
    with pytest.raises(ConfigError, match=r"no subset 'other' in this directory; allowed: .*easy"):
        _read(tmp_path, "other")


CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: first/*
- config_name: other
  {key}: second.csv
---
# Problems
"""


def test_subsets_that_a_card_declares(tmp_path: Path) -> None:
    _write(tmp_path, {"first/a.csv": _csv("007"), "first/b.jsonl": _jsonl("8")})
    _write(tmp_path, {"second.csv": _csv("9"), "README.md": CARD.format(key="data_files")})
    assert _read(tmp_path) == ["007", "8"]
    assert _read(tmp_path, "other") == ["9"]
    with pytest.raises(ConfigError, match=r"README.md: no subset 'third'; it declares: default, o"):
        _read(tmp_path, "third")
    (tmp_path / "second.csv").unlink()
    with pytest.raises(ConfigError, match=r"subset 'other': no file second.csv in this directory"):
        _read(tmp_path, "other")
    _write(tmp_path, {"README.md": CARD.format(key="sep")})
    with pytest.raises(ConfigError, match="subset 'other': sep is not read; allowed: data_dir"):
        _read(tmp_path, "other")
    _write(tmp_path, {"README.md": "---\nconfigs: [\n---\n"})
    with pytest.raises(ConfigError, match=r"README.md: cannot be read: "):
        _read(tmp_path)
