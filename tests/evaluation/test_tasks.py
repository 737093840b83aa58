"""lighteval's tasks by name, from local data."""

import json
from pathlib import Path
from typing import Any

import pytest
from lighteval.models.model_output import ModelResponse

from slot_vllm.evaluation import tasks
from slot_vllm.evaluation.config import Generation, RunConfig
from slot_vllm.evaluation.errors import ConfigError
from slot_vllm.evaluation.scoring import score
from tests.evaluation.conftest import ARMS, PROBLEMS

QUESTIONS = [
    {
        "Question": f"What is {n} plus {n}?",
        "Correct Answer": str(2 * n),
        "Incorrect Answer 1": str(2 * n + 1),
        "Incorrect Answer 2": str(2 * n + 2),
        "Incorrect Answer 3": str(2 * n + 3),
    }
    for n in range(12)
]


def _load(name: str, path: Path, **task: Any) -> tasks.EvaluationTask:
    [loaded] = tasks.load(_run({"name": name, "data": str(path), **task}))
    return loaded


def _run(task: dict[str, Any]) -> RunConfig:
    values = {"name": "test", "model": "m", "tasks": [task], "arms": ARMS}
    return RunConfig.model_validate(values)


def test_aime(benchmarks: Path) -> None:
    loaded = _load("aime24", benchmarks / "aime24.jsonl")
    assert (loaded.name, len(loaded.docs)) == ("aime24", 30)
    first = json.loads((benchmarks / "aime24.jsonl").read_text().splitlines()[0])
    [doc] = [doc for doc in loaded.docs if doc.id == "0"]
    assert first["problem"] in doc.query
    assert doc.get_golds() == [first["answer"]]


def test_the_first_of_a_task_s_order_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "gpqa.json"
    path.write_text(json.dumps(QUESTIONS))

    def asked(**task: Any) -> list[tuple[str, str]]:
        docs = _load("gpqa:diamond", path, **task).docs
        return [(doc.id, doc.query) for doc in docs]

    whole = asked()
    assert asked(max_samples=5) == whole[:5]
    assert asked(skip=5) == whole[5:]
    assert asked(skip=5, max_samples=4) == whole[5:9]
    assert asked(skip=10, max_samples=4) == whole[10:]
    with pytest.raises(ConfigError, match=r"tasks\.0\.skip=12: gpqa:diamond has 12 problems"):
        asked(skip=12)
    with pytest.raises(ConfigError, match=r"tasks\.0\.skip=12"):
        asked(skip=12, max_samples=3)


def test_math_500_and_gsm8k(benchmarks: Path) -> None:
    assert len(_load("math_500", benchmarks / "math500.jsonl").docs) == 500
    assert len(_load("gsm8k", benchmarks / "gsm8k_test.jsonl", max_samples=50).docs) == 50


def test_gpqa_orders_its_choices_the_same_way_each_time(tmp_path: Path) -> None:
    path = tmp_path / "gpqa.json"
    path.write_text(json.dumps(QUESTIONS))
    once, again = (_load("gpqa:diamond", path).docs for _ in range(2))
    assert [doc.query for doc in once] == [doc.query for doc in again]
    golds = [doc.get_golds() for doc in once]
    assert golds == [doc.get_golds() for doc in again]
    assert len({letter for [letter] in golds}) > 1


def test_examples_in_the_prompt_need_their_split(tmp_path: Path) -> None:
    row = {"question": "1 + 1?", "answer": "#### 2"}
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text(f"{json.dumps(row)}\n" * 3)
    with pytest.raises(ConfigError, match="takes examples from split 'train'"):
        _load("gsm8k|2", tmp_path / "test.jsonl")
    loaded = _load("gsm8k|2", tmp_path)
    assert loaded.name == "gsm8k|2"
    assert len(loaded.docs[0].fewshot_samples) == 2


def test_groups_of_problems(tmp_path: Path) -> None:
    path = tmp_path / "math.json"
    rows: list[dict[str, object]] = [
        {"problem": "x", "solution": "$1$", "level": 3},
        {"problem": "y", "solution": "$2$"},
    ]
    path.write_text(json.dumps([{**row, "subject": "Algebra"} for row in rows]))
    assert _load("math_500", path).groups == {
        "level": {"0": "3"},
        "subject": {"0": "Algebra", "1": "Algebra"},
    }


def test_answers_per_problem(tmp_path: Path) -> None:
    run = _run({"name": "aime24", "data": str(PROBLEMS), "answers": 16})
    warm = run.model_copy(update={"generation": Generation(temperature=0.6)})
    [loaded] = tasks.load(warm)
    names = [metric.metric_name for metric in loaded.task.metrics]
    assert names == ["pass@k:k=1&n=16", "avg@n:n=16"]
    assert {doc.num_samples for doc in loaded.docs} == {16}
    right, wrong = "$\\boxed{" + loaded.docs[0].get_golds()[0] + "}$", "$\\boxed{-7}$"
    response = ModelResponse(input="", text=[right] * 4 + [wrong] * 12)
    scores = score(loaded, loaded.docs[0], response)
    assert scores == {"pass@k:k=1&n=16": 0.25, "avg@n:n=16": 0.25}
    # lighteval's own definition stays as it is.
    assert {doc.num_samples for doc in _load("aime24", PROBLEMS).docs} == {1}
    with pytest.raises(ConfigError, match=r"draws 16 answers per problem"):
        tasks.load(run)
    sums = tmp_path / "sums.json"
    sums.write_text(json.dumps([{"question": "1 + 1?", "answer": "#### 2"}]))
    with pytest.raises(ConfigError, match=r"tasks.0.answers=2: gsm8k has the metric extractive"):
        _load("gsm8k", sums, answers=2)


def test_own_task_definitions(tmp_path: Path) -> None:
    module = tmp_path / "own.py"
    module.write_text(
        "from lighteval.tasks.tasks.aime import aime24\n"
        "from dataclasses import replace\n"
        "TASKS_TABLE = [replace(aime24, name='own_task')]\n"
    )
    [definition] = tasks.definitions("own_task", "tasks.0.name", str(module))
    assert definition.full_name == "own_task|0"

    module.write_text("TASKS_TABLE = [")
    with pytest.raises(ConfigError, match="cannot be imported: '\\[' was never closed"):
        tasks.definitions("own_task", "tasks.0.name", str(module))


def test_a_group_is_all_its_tasks() -> None:
    names = {definition.name for definition in tasks.definitions("gpqa", "tasks.0.name")}
    assert names == {"gpqa:diamond", "gpqa:extended", "gpqa:main", "gpqa:mc"}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("math_50", "near names: math_500"),
        ("gpqa:diamand", "Cannot find task gpqa:diamand"),
        ("gsm8k|many", "correct format is task|few_shot"),
    ],
)
def test_unknown_tasks(name: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        tasks.definitions(name, "tasks.0.name")
    assert str(error.value).startswith(f"tasks.0.name={name!r}: ")
    assert said in str(error.value)


def test_near_names_are_names_of_tasks() -> None:
    # lighteval's file spells aime24_avg, and does not offer it.
    with pytest.raises(ConfigError) as error:
        tasks.definitions("aime24_avg", "tasks.0.name")
    near = str(error.value).split("near names: ")[1].split(", ")
    assert "aime24" in near
    for name in near:
        assert tasks.definitions(name, "tasks.0.name")
    with pytest.raises(ConfigError, match=r"near names: .*ifeval"):
        tasks.definitions("ifevl", "tasks.0.name")


def test_a_hub_that_cannot_be_reached() -> None:
    with pytest.raises(ConfigError, match="yentinglin/aime_2025 cannot be read from the hub"):
        tasks.load(_run({"name": "aime25"}))


def test_ids_are_unique() -> None:
    ids = [doc.id for doc in _load("aime24", PROBLEMS).docs]
    assert len(set(ids)) == 8


def test_a_task_asked_for_twice_under_two_names(tmp_path: Path) -> None:
    path = tmp_path / "sums.jsonl"
    path.write_text('{"question": "1 + 1?", "answer": "#### 2"}\n')
    twice = [{"name": name, "data": str(path)} for name in ("gsm8k", "gsm8k|0")]
    values = {"name": "test", "model": "m", "tasks": twice, "arms": ARMS}
    config = RunConfig.model_validate(values)
    with pytest.raises(ConfigError, match="gsm8k is asked for twice"):
        tasks.load(config)


@pytest.mark.parametrize("answer", ["204", "null"])
def test_an_answer_that_is_no_text(answer: str, tmp_path: Path) -> None:
    path = tmp_path / "aime25.jsonl"
    path.write_text(f'{{"problem": "What?", "answer": {answer}}}\n')
    task = {"name": "aime25", "data": str(path)}
    values = {"name": "test", "model": "m", "tasks": [task], "arms": ARMS}
    config = RunConfig.model_validate(values)
    if answer == "null":
        with pytest.raises(ConfigError, match="a text is required"):
            tasks.load(config)
    else:
        (loaded,) = tasks.load(config)
        assert loaded.docs[0].get_golds() == ["204"]


@pytest.mark.parametrize("name", ["published:aime24", "published:mine", "ceval", "ceval:law"])
def test_a_custom_task_has_none_of_our_names(name: str, tmp_path: Path) -> None:
    file = tmp_path / "custom.py"
    file.write_text(
        "import copy\n"
        "from lighteval.tasks.tasks import aime\n"
        "task = copy.deepcopy(aime.aime24)\n"
        f"task.name = {name!r}\n"
        "TASKS_TABLE = [task]\n"
    )
    for asked in (name, "aime24"):
        with pytest.raises(ConfigError) as error:
            tasks.definitions(asked, "tasks.0.name", str(file))
        assert f"custom.py': it defines {name}, a name of this project's own tasks" in str(
            error.value
        )
        assert "\n" not in str(error.value)


def test_a_custom_file_may_hold_our_own_tasks_too(tmp_path: Path) -> None:
    file = tmp_path / "custom.py"
    file.write_text(
        "import copy\n"
        "from lighteval.tasks.tasks import aime\n"
        "from slot_vllm.evaluation.benchmarks import TASKS_TABLE as OURS\n"
        "task = copy.deepcopy(aime.aime24)\n"
        "task.name = 'mine'\n"
        "TASKS_TABLE = [task, *OURS]\n"
    )
    [mine] = tasks.definitions("mine", "tasks.0.name", str(file))
    assert mine.name == "mine"
    [ours] = tasks.definitions("published:aime24", "tasks.0.name", str(file))
    assert ours.prompt_function.__module__ == "slot_vllm.evaluation.benchmarks.published"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ("Doc(line['Problem'], ['1'], 0)", "mine reads a column 'Problem', which is missing"),
        ("Doc(line['problem'], ['1'], int('x'))", "mine cannot make a prompt of it: "),
        ("Doc(line['problem'], [1], 0)", ": the answer [1] is not a text"),
        ("Doc('?', ['1'], 0, images=[line])", "its prompts hold images; allowed: text tasks"),
    ],
)
def test_data_that_a_task_cannot_use(changed: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "custom.py"
    file.write_text(
        "import copy\n"
        "from lighteval.tasks.requests import Doc\n"
        "from lighteval.tasks.tasks import aime\n"
        "task = copy.deepcopy(aime.aime24)\n"
        "task.name = 'mine'\n"
        f"task.prompt_function = lambda line, name: {changed}\n"
        "TASKS_TABLE = [task]\n"
    )
    run = _run({"name": "mine", "data": str(PROBLEMS)})
    with pytest.raises(ConfigError) as error:
        tasks.load(run.model_copy(update={"custom_tasks": str(file)}))
    assert str(error.value).startswith("tasks.0.")
    assert said in str(error.value)
    assert "\n" not in str(error.value)
