"""slot-vllm score: answers from elsewhere."""

import json
from pathlib import Path
from typing import Any

import pytest

from slot_vllm import cli

PROBLEMS = [
    {"id": f"p{n}", "problem": f"What is {n} plus {n}?", "answer": 2 * n} for n in range(1, 5)
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return _lines(tmp_path / "problems.jsonl", PROBLEMS)


def _lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _answers(right: int = 3, ids: str = "own") -> list[dict[str, Any]]:
    return [
        {
            "id": problem["id"] if ids == "own" else n,
            "completion": f"$\\boxed{{{problem['answer'] if n < right else -1}}}$",
        }
        for n, problem in enumerate(PROBLEMS)
    ]


def _score(data: Path, answers: Path, *options: str, task: str = "published:aime24") -> int:
    given = ["--task", task, "--data", str(data), "--answers", str(answers), *options]
    return cli.main(["score", *given])


@pytest.mark.parametrize("ids", ["own", "positions"])
def test_json_is_one_object(data: Path, capsys: pytest.CaptureFixture[str], ids: str) -> None:
    answers = _lines(data.with_name("answers.jsonl"), _answers(ids=ids)[::-1])
    assert _score(data, answers, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["task", "samples", "unscored", "metrics"]
    assert (found["task"], found["samples"], found["unscored"]) == ("published:aime24", 4, 0)
    [(name, metric)] = found["metrics"].items()
    assert (name, metric["value"]) == ("extractive_match", 0.75)
    low, high = metric["interval"]
    assert 0 < low < 0.75 < high < 1


def test_table(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _score(data, _lines(data.with_name("answers.jsonl"), _answers())) == 0
    said = capsys.readouterr().out
    assert "extractive_match" in said
    assert "0.7500" in said


def test_the_main_metric_comes_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"question": "1 + 1?", "answer": "#### 2"}, {"question": "0 - 3?", "answer": "#### -3"}]
    texts = ["<think>a</think><answer>2</answer>", "<think>a</think>\n<answer>-3</answer>"]
    answers = [{"id": str(n), "completion": text} for n, text in enumerate(texts)]
    data = _lines(tmp_path / "data.jsonl", rows)
    path = _lines(tmp_path / "answers.jsonl", answers)
    assert _score(data, path, "--json", task="published:gsm8k") == 0
    metrics = json.loads(capsys.readouterr().out)["metrics"]
    assert {name: metric["value"] for name, metric in metrics.items()} == {
        "answer": 0.5,
        "format": 0.5,
        "format_loose": 1,
        "answer_number": 1,
        "answer_and_format": 0.5,
    }
    assert next(iter(metrics)) == "answer"


def test_several_answers_per_problem(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    twice = _lines(data.with_name("answers.jsonl"), [*_answers(3), *_answers(1)])
    assert _score(data, twice, "--json", "--answers-per-problem", "2") == 0
    [(name, metric)] = json.loads(capsys.readouterr().out)["metrics"].items()
    assert (name, metric["value"]) == ("extractive_match_avg@n:n=2", 0.5)
    assert _score(data, twice) == 2
    assert "id='p1' again; required: one answer to each problem" in capsys.readouterr().err


def test_positions_where_own_ids_are_of_several(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = _lines(tmp_path / "data.jsonl", [{**problem, "id": "same"} for problem in PROBLEMS])
    path = _lines(tmp_path / "answers.jsonl", _answers(ids="positions"))
    assert _score(data, path, "--json") == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 4
    path = _lines(tmp_path / "answers.jsonl", [{"id": "same", "completion": "2"}])
    assert _score(data, path) == 2
    assert "is of 4 problems; name them by position" in capsys.readouterr().err


def test_ids_that_are_both_are_the_problems_own(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _lines(data, [{**problem, "id": 3 - n} for n, problem in enumerate(PROBLEMS)])
    own = [{**answer, "id": 3 - n} for n, answer in enumerate(_answers())]
    assert _score(data, _lines(data.with_name("own.jsonl"), own), "--json") == 0
    [metric] = json.loads(capsys.readouterr().out)["metrics"].values()
    assert metric["value"] == 0.75
    with pytest.raises(SystemExit):
        cli.main(["score", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "ids that fit both are the problems' own" in said


def test_answers_that_are_a_directory(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _score(data, data.parent) == 2
    assert f"--answers {data.parent}: it is a directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: rows[:-1], "no answer to the problem with id 'p4' (position 3)"),
        (lambda rows: [*rows, rows[0]], "line 5, item 5: id='p1' again"),
        (lambda rows: [*rows[:-1], {**rows[-1], "id": "p9"}], "line 4, item 4: id='p9' is of no"),
        (lambda rows: [{"id": "p1"}, *rows[1:]], "line 1, item 1: no 'completion'"),
        (lambda rows: [{"completion": "2"}, *rows[1:]], "line 1, item 1: no 'id'"),
        (lambda rows: [{**rows[0], "id": True}, *rows[1:]], "id=True: a text or an integer"),
        (lambda rows: [{**rows[0], "completion": None}, *rows[1:]], "completion=None: a text"),
        (lambda rows: [{**rows[0], "completion": "\ud800"}, *rows[1:]], "cannot be encoded"),
        (lambda rows: [{**rows[0], "id": "\ud800"}, *rows[1:]], "item 1: id: its character 1"),
        (lambda rows: [{**rows[0], "id": float("nan")}, *rows[1:]], "item 1: id=nan: a text or"),
        (lambda rows: [], "it holds no answers"),
    ],
)
def test_what_is_wrong_with_answers(
    data: Path, capsys: pytest.CaptureFixture[str], change: Any, said: str
) -> None:
    assert _score(data, _lines(data.with_name("answers.jsonl"), change(_answers())), "--json") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    error = captured.err.splitlines()[-1]
    assert error.startswith("error: ")
    assert said in error


def test_the_data_is_checked_first(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _lines(data, [*PROBLEMS, {"id": "p5", "problem": "?", "answer": float("nan")}])
    assert _score(data, data.with_name("nowhere.jsonl")) == 2
    assert "problems.jsonl: line 5, item 5: answer: the cell is blank" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "path", "said"),
    [
        ("--data", "no.jsonl", "--data no.jsonl: no such path (from "),
        ("--custom-tasks", ".", "--custom-tasks .: it is a directory; required: one file"),
        ("--custom-tasks", "no.py", "--custom-tasks no.py: no such file (from "),
        ("--answers", "no.jsonl", "--answers no.jsonl: no such file (from "),
    ],
)
def test_files_that_are_not_there(
    data: Path, capsys: pytest.CaptureFixture[str], option: str, path: str, said: str
) -> None:
    answers = _lines(data.with_name("answers.jsonl"), _answers())
    assert _score(data, answers, option, path) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"task": "published:aime42"}, "near names: published:aime"),
        ({"task": "gpqa:mc"}, "score log-likelihoods"),
        ({"task": "published"}, "it is 5 tasks; allowed: one of"),
    ],
)
def test_tasks(
    data: Path, capsys: pytest.CaptureFixture[str], options: dict[str, str], said: str
) -> None:
    path = _lines(data.with_name("answers.jsonl"), _answers())
    assert _score(data, path, **options) == 2
    assert said in capsys.readouterr().err


def test_ifeval(
    benchmarks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], punkt: None
) -> None:
    rows = (benchmarks / "ifeval.jsonl").read_text().splitlines()
    answers = [{"id": json.loads(row)["key"], "completion": "I do. So!"} for row in rows]
    path = _lines(tmp_path / "answers.jsonl", answers)
    assert _score(benchmarks / "ifeval.jsonl", path, "--json", task="ifeval") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["samples"] == 541
    assert found["metrics"]["inst_level_strict_acc"]["interval"] is None
    assert 0 < found["metrics"]["prompt_level_strict_acc"]["value"] < 0.5
