"""Local files and directories as a task's data."""

import json
from pathlib import Path
from typing import Any

import pytest

from slot_vllm.evaluation import data
from slot_vllm.evaluation.config import ConfigError

ROWS: list[dict[str, Any]] = [
    {"problem": "1 + 1?", "answer": 2},
    {"problem": "2 + 2?", "answer": "004", "level": 1},
]


def _read(path: Path) -> data.Dataset:
    return data.read(path, "aime24", "default", ["train"])


def _jsonl(path: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_file_s_text_is_taken_as_text(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(ROWS))
    (tmp_path / "a.csv").write_text("problem,answer\n1 + 1?,2\n2 + 2?,004\n")
    _jsonl(tmp_path / "a.jsonl")
    for path in tmp_path.iterdir():
        rows = _read(path)["train"]
        assert [row["answer"] for row in rows] == ["2", "004"]


def test_parquet(tmp_path: Path) -> None:
    import datasets

    path = tmp_path / "a.parquet"
    datasets.Dataset.from_list([{"problem": "1 + 1?", "answer": "2"}]).to_parquet(path)
    assert _read(path)["train"] == [{"problem": "1 + 1?", "answer": "2"}]


def test_a_directory_with_one_file_is_that_file(tmp_path: Path) -> None:
    _jsonl(tmp_path / "problems.jsonl")
    assert len(_read(tmp_path)["train"]) == 2


def test_a_directory_with_more_has_splits(tmp_path: Path) -> None:
    _jsonl(tmp_path / "train.jsonl", ROWS[:1])
    _jsonl(tmp_path / "test.jsonl", [{"problem": "3?", "answer": "3"}])
    both = data.read(tmp_path, "aime24", "default", ["train", "test"])
    assert {split: rows[0]["answer"] for split, rows in both.items()} == {"train": "2", "test": "3"}
    with pytest.raises(ConfigError, match="no split 'validation'; it has: train, test"):
        data.read(tmp_path, "aime24", "default", ["validation"])


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.jsonl", '{"problem": "x"}\n', "item 1: no 'answer'; required: problem, answer"),
        ("a.jsonl", '{"problem": "x", "answer": [1]}\n', "item 1: answer=.* a text is required"),
        ("a.jsonl", '{"problem": "x", "answer": "1"}\n{"x\n', "cannot be read: line 2"),
        ("a.jsonl", "[1]\n", "item 1: an object is required"),
        ("a.json", '{"a": 1}', "a list of objects is required"),
        ("a.jsonl", "\n", "it holds no problems"),
        ("a.parquet", "no parquet", "cannot be read"),
    ],
)
def test_what_is_wrong_with_a_file(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=said):
        _read(tmp_path / name)


def test_an_empty_directory(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no data file in this directory"):
        _read(tmp_path)


def test_a_directory_that_has_a_file_for_the_subset(tmp_path: Path) -> None:
    for name, count in (("one", 2), ("two", 5)):
        rows = "".join(f'{{"problem": "{name} {i}", "answer": "{i}"}}\n' for i in range(count))
        (tmp_path / f"{name}.jsonl").write_text(rows)
    dataset = data.read(tmp_path, "aime24", "one", ["train"])
    assert [row["problem"] for row in dataset["train"]] == ["one 0", "one 1"]
    with pytest.raises(ConfigError, match="no subset 'three' in this directory"):
        data.read(tmp_path, "aime24", "three", ["train"])
