"""Rows that cannot be a problem: each kind, in each form of file, is an error that says where."""

import json
import re
from pathlib import Path
from typing import Any

import datasets
import pyarrow  # type: ignore[import-untyped]
import pytest
from pyarrow import parquet

from slot_vllm.evaluation import data
from slot_vllm.evaluation.errors import ConfigError

GOOD = {"problem": "1 + 1?", "answer": "2", "level": 1, "subject": "Sums"}
NAN = float("nan")


def _read(path: Path, task: str = "aime24") -> list[dict[str, Any]]:
    return list(data.read(path, task, "default", ["train"])["train"])


def _refused(path: Path, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)) as error:
        _read(path)
    assert path.name in str(error.value)
    assert "\n" not in str(error.value)


BLANKS = {
    "null": None,
    "NaN": NAN,
    "infinity": float("inf"),
    "empty": "",
    "white space": " \t\n",
    "no-break space": "\u00a0\u2003",
    "nothing visible": "\u200b\ufeff",
    "NUL": "\0",
}


@pytest.mark.parametrize("kind", BLANKS)
@pytest.mark.parametrize("column", list(GOOD))
def test_a_cell_with_nothing_in_it(tmp_path: Path, kind: str, column: str) -> None:
    bad = {**GOOD, column: BLANKS[kind]}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + json.dumps(bad) + "\n")
    _refused(path, f"line 2, item 2: {column}: the cell is blank")


@pytest.mark.parametrize("column", list(GOOD))
def test_a_blank_cell_of_a_csv(tmp_path: Path, column: str) -> None:
    path = tmp_path / "rows.csv"
    cells = [str(value) for value in GOOD.values()]
    blank = ["" if name == column else str(value) for name, value in GOOD.items()]
    path.write_text("\n".join(",".join(row) for row in (list(GOOD), cells, blank)) + "\n")
    _refused(path, f"line 3, item 2: {column}: the cell is blank")


@pytest.mark.parametrize("column", list(GOOD))
def test_a_blank_cell_of_a_parquet_file(tmp_path: Path, column: str) -> None:
    path = tmp_path / "rows.parquet"
    datasets.Dataset.from_list([GOOD, {**GOOD, column: None}]).to_parquet(path)
    _refused(path, f"item 2: {column}: the cell is blank")


@pytest.mark.parametrize("value", [True, ["1"], {"a": "1"}])
@pytest.mark.parametrize("column", list(GOOD))
def test_a_cell_that_is_neither_text_nor_number(tmp_path: Path, column: str, value: Any) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{**GOOD, column: value}]))
    _refused(path, f"line 1, item 1: {column}={value!r}: a text")


@pytest.mark.parametrize("column", list(GOOD))
def test_half_a_surrogate_pair(tmp_path: Path, column: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({**GOOD, column: "x \ud83d"}) + "\n")
    _refused(path, f"line 1, item 1: {column}: its character 3 cannot be encoded")


def test_a_whole_surrogate_pair_is_a_character(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({**GOOD, "problem": "x \U0001f600"}) + "\n")
    assert "\\ud83d" in path.read_text()
    assert _read(path)[0]["problem"] == "x \U0001f600"


def test_groups_are_named_alike_whether_text_or_number(tmp_path: Path) -> None:
    from slot_vllm.evaluation import columns

    path = tmp_path / "rows.parquet"
    datasets.Dataset.from_list([{**GOOD, "level": level} for level in (3.0, 4.5)]).to_parquet(path)
    assert [columns.group(row, "level") for row in _read(path)] == ["3", "4.5"]


@pytest.mark.parametrize("value", [NAN, [1], True])
def test_an_id_that_names_nothing(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({**GOOD, "id": value}) + "\n")
    _refused(path, f"line 1, item 1: id={value!r}: an id is a text or a number")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("problem,answer\nWhat is 1,000 + 1?,1001\n", "line 2: 3 cells; the heading names 2"),
        ("problem,answer\n1 + 1?\n", "line 2: 1 cells; the heading names 2"),
        ("problem,answer\n1?,1\n2?,2,\n", "line 3: 3 cells"),
        ("problem,answer\n1?,1\n,\n", "line 3, item 2: problem: the cell is blank"),
        ("problem,answer,answer\n1?,1,2\n", "line 1: two columns are named 'answer'"),
        ("problem, answer,answer \n1?,1,2\n", "line 1: two columns are named 'answer'"),
        ("problem,Answer,ANSWER\n1?,1,2\n", "line 2, item 1: two columns are named 'Answer'"),
        ("problem,Final answer,FinalAnswer\n1?,1,2\n", "columns are named 'Final answer'"),
        # The heading ends with a comma, so a cut cell fits.
        ("problem,answer,\n1?,1,\n1,000?,1000\n", "line 3: a cell below no name: '1000'"),
        ('problem,answer\n1?, "1"\n', "line 2: a quote after a space"),
        ('problem,answer\n"1?,1\n2?,2\n', "line 2: unexpected end of data"),
        ('problem,answer\n"1" + 1?,2\n', "line 2: ',' expected after '\"'"),
        ("problem;answer\n1?;1\n", "no 'problem'"),
        ("problem\tanswer\n1?\t1\n", "no 'problem'"),
    ],
)
def test_rows_that_do_not_fit_their_heading(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(text)
    _refused(path, said)


def test_an_unnamed_first_column_is_an_index(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(",problem,answer\n0,1?,1\n1,2?,2\n")
    assert [row["answer"] for row in _read(path)] == ["1", "2"]


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "lines.json"])
def test_a_key_twice_in_an_object(tmp_path: Path, name: str) -> None:
    good, twice = '{"problem": "1?", "answer": 1}', '{"problem": "2?", "answer": 1, "answer": 2}'
    path = tmp_path / name
    path.write_text(f"[\n{good},\n{twice}]" if name == "rows.json" else f"{good}\n{twice}\n")
    _refused(path, "two of an object's names are 'answer'")


def test_a_column_twice_in_a_parquet_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    arrays = [pyarrow.array([text]) for text in ("1?", "1", "2")]
    parquet.write_table(pyarrow.table(arrays, names=["problem", "answer", "answer"]), path)
    _refused(path, "two columns are named 'answer'")


@pytest.mark.parametrize("mark", ["\ufeff", "\ufeff\ufeff", "\u200b"])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("rows.csv", "problem,answer\n1?,1\n"),
        ("rows.csv", '"problem","answer"\n"1?","1"\n'),
        ("rows.jsonl", '{"problem": "1?", "answer": "1"}\n'),
        ("rows.json", '[{"problem": "1?", "answer": "1"}]'),
        ("lines.json", '{"problem": "1?", "answer": "1"}\n{"problem": "1?", "answer": "1"}\n'),
    ],
)
def test_marks_before_a_file_s_text(tmp_path: Path, name: str, text: str, mark: str) -> None:
    path = tmp_path / name
    path.write_text(mark + text, encoding="utf-8")
    first = _read(path)[0]
    assert (first["problem"], first["answer"]) == ("1?", "1")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", '{"problem": "1?", "answer": 1}\n{"problem": "2?", "answer": 2}\n'),
        ("a.json", '{"problem": "1?",\n "answer": 1}\n\n{"problem": "2?",\n "answer": 2}\n'),
        ("a.jsonl", '[\n{"problem": "1?", "answer": 1},\n{"problem": "2?", "answer": 2}\n]'),
        ("a.jsonl", '[{"problem": "1?", "answer": 1}, {"problem": "2?", "answer": 2}]\n'),
    ],
)
def test_a_list_named_as_lines_and_lines_named_as_a_list(
    tmp_path: Path, name: str, text: str
) -> None:
    (tmp_path / name).write_text(text)
    assert [row["answer"] for row in _read(tmp_path / name)] == ["1", "2"]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.json", '{\n"train": [{"problem": "1?", "answer": 1}]}', "an object with train"),
        ("a.json", '{"problem": {"0": "1?"}, "answer": {"0": 1}}', "problem={'0': '1?'}: a text"),
        ("a.json", '{"problem": "1?",\n"answer": 1}\n{"problem": "2?"}\n', "line 3, item 2: no"),
        ("a.json", '{"problem": "1?",\n"answer": 1}\n{"problem" "2?"}\n', "line 3: Expecting ':'"),
        ("a.jsonl", '[{"problem": "1?", "answer": 1},\n{"problem": "2?"}]', "line 2, item 2: no"),
    ],
)
def test_other_json(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    _refused(tmp_path / name, said)


def _saved(path: Path, *answers: str) -> None:
    rows = [{"problem": f"{answer}?", "answer": answer} for answer in answers]
    datasets.Dataset.from_list(rows).save_to_disk(path)


def _answers(path: Path, subset: str = "default", split: str = "train") -> list[str]:
    return [row["answer"] for row in data.read(path, "aime24", subset, [split])[split]]


def test_a_dataset_that_was_saved_to_disk(tmp_path: Path) -> None:
    _saved(tmp_path / "one", "1", "2")
    assert _answers(tmp_path / "one") == ["1", "2"]
    # Fewer parts than before: the first ones are still there, and no more its own.
    many = datasets.Dataset.from_list([{"problem": "x", "answer": "9"}] * 4)
    many.save_to_disk(tmp_path / "again", num_shards=4)
    _saved(tmp_path / "again", "3")
    assert _answers(tmp_path / "again") == ["3"]
    # Rows in another order than they are stored in.
    rows = [{"problem": "x", "answer": str(i)} for i in range(3)]
    datasets.Dataset.from_list(rows).select([2, 0]).save_to_disk(tmp_path / "chosen")
    assert _answers(tmp_path / "chosen") == ["2", "0"]


def test_splits_that_were_saved_to_disk(tmp_path: Path) -> None:
    splits = {
        name: datasets.Dataset.from_list([{"problem": "x", "answer": name}])
        for name in ("train", "test")
    }
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "all")
    assert _answers(tmp_path / "all") == ["train"]
    assert _answers(tmp_path / "all", split="test") == ["test"]
    with pytest.raises(ConfigError, match="no split 'validation'; it has: train, test"):
        _answers(tmp_path / "all", split="validation")
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "subsets" / "main")
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "subsets" / "other")
    assert _answers(tmp_path / "subsets", "main", "test") == ["test"]


def test_what_is_wrong_with_a_saved_dataset(tmp_path: Path) -> None:
    rows = [{"problem": "1?", "answer": "1"}, {"problem": "2?", "answer": None}]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "rows")
    _refused(tmp_path / "rows", "item 2: answer: the cell is blank")
    _saved(tmp_path / "lost", "1")
    (tmp_path / "lost" / "data-00000-of-00001.arrow").unlink()
    _refused(tmp_path / "lost", "cannot be read")
    _saved(tmp_path / "broken", "1")
    (tmp_path / "broken" / "state.json").write_text("{}")
    _refused(tmp_path / "broken", "cannot be read")
    _saved(tmp_path / "part", "1")
    (tmp_path / "part" / "state.json").unlink()
    with pytest.raises(ConfigError, match=r"arrow: unknown kind of file; .* save_to_disk"):
        _read(tmp_path / "part")


def test_an_old_layout_of_the_hub(tmp_path: Path) -> None:
    infos = {"default": {"splits": {"train": {"name": "train", "num_examples": 1}}}}
    (tmp_path / "dataset_infos.json").write_text(json.dumps(infos))
    (tmp_path / "aime.py").write_text("raise SystemExit\n")
    with pytest.raises(ConfigError, match=r"no data file in this directory; .*aime\.py.* not run"):
        _read(tmp_path)
    (tmp_path / "data").mkdir()
    for name in ("train", "test"):
        found = datasets.Dataset.from_list([{"problem": "x", "answer": name}])
        found.to_parquet(tmp_path / "data" / f"{name}-00000-of-00001-b42a775f407cee45.parquet")
    assert _answers(tmp_path) == ["train"]
    assert _answers(tmp_path, split="test") == ["test"]
