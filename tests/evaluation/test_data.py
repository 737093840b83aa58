"""Local files and directories as a task's data."""

import gzip
import json
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from slot_vllm.evaluation import data
from slot_vllm.evaluation.errors import ConfigError

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
        ("a.json", '{\n"a": 1}', "a list of objects is required"),
        ("a.json", '{"a": 1}', "line 1, item 1: no 'problem'"),
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


MATHS = {"problem": "1 + 1?", "answer": "2"}
GPQA = {
    "Question": "Why?",
    "Correct Answer": "So",
    "Incorrect Answer 1": "a",
    "Incorrect Answer 2": "b",
    "Incorrect Answer 3": "c",
}


@pytest.mark.parametrize(
    ("task", "row", "read"),
    [
        ("aime24", {"Problem": "1 + 1?", "Answer": 2}, MATHS),
        ("published:aime25", {"QUESTION": "1 + 1?", "final_answer": 2.0}, MATHS),
        ("published:aime24", {"prompt": "1 + 1?", "Solution": "2"}, MATHS),
        (
            "published:aime24",
            {"problem": "1 + 1?", "solution": "It is 2.", "answer": "2"},
            {**MATHS, "solution": "It is 2."},
        ),
        (
            "published:math_500",
            {"problem": "1 + 1?", "Answer": "2"},
            {"problem": "1 + 1?", "solution": "$\\boxed{2}$"},
        ),
        (
            "math_500",
            {"Question": "1 + 1?", "answer": "2", "Solution": "so $\\boxed{2}$", "Level": 3},
            {"problem": "1 + 1?", "solution": "so $\\boxed{2}$", "level": 3},
        ),
        (
            "published:gsm8k",
            {"Problem": "?", "solution": "#### 2"},
            {"question": "?", "answer": "#### 2"},
        ),
        ("published:gpqa:diamond", {**GPQA, "Pre-Revision Question": "Who?"}, GPQA),
        ("gpqa:diamond", {k.lower().replace(" ", "_"): v for k, v in GPQA.items()}, GPQA),
        (
            "ifeval",
            {"Prompt": "Do.", "Instruction_ID_list": ["a"], "KWARGS": [{}]},
            {"prompt": "Do.", "instruction_id_list": ["a"], "kwargs": [{}]},
        ),
    ],
)
def test_columns_by_other_names(
    tmp_path: Path, task: str, row: dict[str, Any], read: dict[str, Any]
) -> None:
    path = _jsonl(tmp_path / "a.jsonl", [row])
    [found] = data.read(path, task, "default", ["test"])["test"]
    assert {name: found[name] for name in read} == read


# A line separator of Unicode ends no line of a file.
TEXT = "Problem,Answer\n1\u2028+ 1\u201d?,2\n\n2 + 2?,004\n"


@pytest.mark.parametrize(
    "content",
    [
        TEXT.encode(),
        TEXT.encode("utf-8-sig"),
        TEXT.replace("\n", "\r\n").encode(),
        TEXT.encode("utf-16"),
        b"\xfe\xff" + TEXT.encode("utf-16-be"),
        f"\n  \n{TEXT}\n\n".encode(),
    ],
    ids=["plain", "mark", "crlf", "utf-16", "utf-16-be", "blank lines"],
)
def test_encodings_and_lines(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    rows = _read(tmp_path / "a.csv")["train"]
    assert [(row["problem"], row["answer"]) for row in rows] == [
        ("1\u2028+ 1\u201d?", "2"),
        ("2 + 2?", "004"),
    ]


def test_json_in_other_forms(tmp_path: Path) -> None:
    lines = "".join(json.dumps(row) + "\r\n\r\n" for row in ROWS)
    (tmp_path / "lines.json").write_bytes(lines.encode("utf-8-sig"))
    (tmp_path / "list.json").write_bytes(json.dumps(ROWS).encode("utf-16"))
    (tmp_path / "upper.JSONL").write_bytes(lines.encode())
    for path in tmp_path.iterdir():
        assert [row["answer"] for row in _read(path)["train"]] == ["2", "004"]
    (tmp_path / "one.json").write_text(json.dumps(ROWS[0]) + "\n")
    assert [row["answer"] for row in _read(tmp_path / "one.json")["train"]] == ["2"]


def test_packed_files(tmp_path: Path) -> None:
    plain = _jsonl(tmp_path / "a.jsonl").read_bytes()
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(plain))
    (tmp_path / "c.csv.GZ").write_bytes(gzip.compress(b"problem,answer\n1?,007\n"))
    found = _read(tmp_path)["train"]
    assert [row["answer"] for row in found] == ["2", "004", "2", "004", "007"]
    for content in (b"x", gzip.compress(plain)[:-9]):
        (tmp_path / "b.jsonl.gz").write_bytes(content)
        with pytest.raises(ConfigError, match=r"b.jsonl.gz: cannot be read: "):
            _read(tmp_path)
    (tmp_path / "b.jsonl.gz").rename(tmp_path / "b.parquet.gz")
    with pytest.raises(ConfigError, match=r"b.parquet.gz: unknown kind of file"):
        _read(tmp_path)


def test_lists_with_what_cannot_be_sent(tmp_path: Path) -> None:
    for kwargs, said in (
        ([{"a": "x\ud800"}], "line 1, item 1: kwargs: its character 2 cannot be encoded"),
        ([{"a": [float("nan")]}], "line 1, item 1: kwargs: the list holds NaN"),
    ):
        row = {"prompt": "Do.", "instruction_id_list": ["a"], "kwargs": kwargs}
        with pytest.raises(ConfigError, match=said):
            data.read(_jsonl(tmp_path / "a.jsonl", [row]), "ifeval", "default", ["train"])
    rows = [{"text": ["\ud800"]}]
    with pytest.raises(ConfigError, match="text: its character 1 cannot be encoded"):
        data.read(_jsonl(tmp_path / "a.jsonl", rows), "another", "default", ["train"])


def test_a_directory_of_parts(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        rows = [{"problem": f"{number}?", "answer": number, "id": "same"}]
        _jsonl(tmp_path / f"part-{number}.jsonl", rows)
    (tmp_path / ".hidden.jsonl").write_text("{")
    assert [row["answer"] for row in _read(tmp_path)["train"]] == ["1", "2", "10"]
    (tmp_path / "part-2.jsonl").write_text('{"problem": "2?"}\n')
    with pytest.raises(ConfigError, match=r"part-2.jsonl: line 1, item 1: no 'answer'"):
        _read(tmp_path)


def test_a_column_of_lists_in_a_csv(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('prompt,instruction_id_list,kwargs\nDo.,"[""a""]",[{}]\n')
    [row] = data.read(path, "ifeval", "default", ["train"])["train"]
    assert (row["instruction_id_list"], row["kwargs"]) == (["a"], [{}])
    path.write_text("prompt,instruction_id_list,kwargs\nDo.,a,[{}]\n")
    with pytest.raises(ConfigError, match="line 2, item 1: instruction_id_list: a list"):
        data.read(path, "ifeval", "default", ["train"])


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "problem,answer\n1?,1\n2?,\n", "line 3, item 2: answer: the cell is blank"),
        ("a.csv", "problem,answer\n1?,1\n2?\n", "line 3: 1 cells; the heading names 2"),
        ("a.csv", "problem,answer\n1?,1\n2?,2,3\n", "line 3: 3 cells"),
        ("a.csv", 'problem,answer\n"1\n?",1\n"2?,2\n3?,3\n', "line 4: unexpected end"),
        ("a.csv", "answer,answer\n1,1\n", "line 1: two columns are named 'answer'"),
        ("a.csv", "problem\n1?\n", "line 2, item 1: no 'answer'; required: problem, answer"),
        ("a.jsonl", '\n{"problem": "x", "answer": NaN}\n', "line 2, item 1: answer: the cell is"),
        ("a.jsonl", '{"problem": "x", "answer": null}\n', "line 1, item 1: answer: the cell is"),
        ("a.jsonl", '{"problem": " ", "answer": 1}\n', "line 1, item 1: problem: the cell is"),
        ("a.jsonl", '{"problem": "x\\ud800", "answer": 1}\n', "problem: its character 2 cannot be"),
        ("a.json", '[\n{"problem": "x",\n"answer": 1},\n\n{"problem": "y"}]', "line 5, item 2: no"),
        ("a.json", '[\n{"problem": x}]', "line 2: Expecting value"),
        ("a.csv", "\n1 + 1?,2\n", "line 2: the first line is the heading, and no row stands"),
        ("a.jsonl", '{"problem": "x", "answer": 1, "id": NaN}\n', "line 1, item 1: id=nan: an id"),
        (
            "a.jsonl",
            '{"problem": "x", "answer": 1, "ID": "\\ud800"}\n',
            "ID: its character 1 cannot",
        ),
        ("a.jsonl", '{"problem": "x", "answer": 1, "Level": "\\ud800"}\n', "Level: its character"),
        ("a.txt", "1?", "unknown kind of file; allowed: .json, .jsonl, .csv, .parquet"),
    ],
)
def test_where_a_file_is_wrong(tmp_path: Path, name: str, content: str, said: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=f"{name}: .*{re.escape(said)}") as raised:
        _read(tmp_path / name)
    assert "\n" not in str(raised.value)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"problem,answer\n1?,1\n\xff?,2\n")
    with pytest.raises(ConfigError, match="line 3: not UTF-8: invalid start byte"):
        _read(path)
    path.write_bytes(b"\xff\xfe" + "problem\n".encode("utf-16-le") + b"\x00")
    with pytest.raises(ConfigError, match="not UTF-16"):
        _read(path)
    for encoding in ("utf-16-le", "utf-16-be", "utf-32-le"):
        path.write_bytes("problem,answer\n1 \u4e00?,2\n".encode(encoding))
        with pytest.raises(
            ConfigError, match="line 1: a NUL byte; a text in UTF-16 or UTF-32 needs"
        ):
            _read(path)


def test_parquet_with_missing_cells(tmp_path: Path) -> None:
    import datasets

    path = tmp_path / "a.parquet"
    rows = {"problem": ["1?", "2?"], "answer": [1.0, float("nan")]}
    datasets.Dataset.from_dict(rows).to_parquet(path)
    with pytest.raises(ConfigError, match=r"a.parquet: item 2: answer: the cell is blank"):
        _read(path)
    datasets.Dataset.from_dict({**rows, "answer": [1.0, 204.0]}).to_parquet(path)
    assert [row["answer"] for row in _read(path)["train"]] == ["1", "204"]
    numbers = [Decimal("7.00"), Decimal("1.50")]
    datasets.Dataset.from_dict({**rows, "answer": numbers}).to_parquet(path)
    assert [row["answer"] for row in _read(path)["train"]] == ["7", "1.5"]
