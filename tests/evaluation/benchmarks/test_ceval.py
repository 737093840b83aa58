"""A generative C-Eval, on made-up files in the layouts of the published ones."""

# ruff: noqa: RUF001

from pathlib import Path
from typing import Any

import pytest
from lighteval.models.model_output import ModelResponse

from slot_vllm.evaluation import tasks
from slot_vllm.evaluation.benchmarks import ceval
from slot_vllm.evaluation.config import Generation, RunConfig
from slot_vllm.evaluation.errors import ConfigError
from slot_vllm.evaluation.scoring import score
from tests.evaluation.conftest import ARMS

HEADING = "id,question,A,B,C,D,answer"


def _load(path: Path, name: str = "ceval", **task: Any) -> tasks.EvaluationTask:
    named = {"name": name, "data": str(path), **task}
    values = {"name": "test", "model": "m", "arms": ARMS, "tasks": [named]}
    run = RunConfig.model_validate(values)
    [loaded] = tasks.load(run.model_copy(update={"generation": Generation(temperature=0.5)}))
    loaded.docs.sort(key=lambda doc: int(doc.id))
    return loaded


def _csv(path: Path, count: int, answer: str = "B", explained: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    more = (",explanation", ",说明") if explained else ("", "")
    rows = [f"{n},{path.stem}：{n}？,一,二,三,四,{answer}{more[1]}" for n in range(count)]
    path.write_text("\n".join([HEADING + more[0], *rows]) + "\n", encoding="utf-8")


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """As in the published archive: a directory per split, a file per subject."""
    _csv(tmp_path / "val" / "advanced_mathematics_val.csv", 3)
    _csv(tmp_path / "val" / "law_val.csv", 2, answer="d")
    _csv(tmp_path / "val" / "marxism_val.csv", 1)
    _csv(tmp_path / "dev" / "law_dev.csv", 5, explained=True)
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "law_test.csv").write_text("id,question,A,B,C,D\n0,?,1,2,3,4\n")
    return tmp_path


def test_subjects() -> None:
    sizes = [list(ceval.SUBJECTS.values()).count(group) for group in ceval.GROUPS]
    assert dict(zip(ceval.GROUPS, sizes, strict=True)) == {
        "STEM": 20,
        "Social Science": 10,
        "Humanities": 11,
        "Other": 11,
    }
    assert {ceval.SUBJECTS[name] for name in ceval.HARD} == {"STEM"}
    assert len(ceval.HARD) == 8


def test_all_subjects_and_their_groups(published: Path) -> None:
    task = _load(published)
    assert (task.name, len(task.docs)) == ("ceval", 6)
    maths, law, marxism = ["0", "1", "2"], ["3", "4"], ["5"]
    assert task.groups["subject"] == {
        **dict.fromkeys(maths, "advanced_mathematics"),
        **dict.fromkeys(law, "law"),
        **dict.fromkeys(marxism, "marxism"),
    }
    assert task.groups["group"] == {
        **dict.fromkeys(maths, "STEM"),
        **dict.fromkeys(law, "Humanities"),
        **dict.fromkeys(marxism, "Social Science"),
    }
    assert task.groups["subset"] == dict.fromkeys(maths, "Hard")
    assert [doc.get_golds() for doc in task.docs] == [["B"]] * 3 + [["D"]] * 2 + [["B"]]
    query = task.docs[0].query
    assert "advanced_mathematics_val：0？" in query
    assert "\nA. 一\nB. 二\nC. 三\nD. 四" in query


def test_one_subject(published: Path) -> None:
    assert len(_load(published, "ceval:law").docs) == 2
    assert len(_load(published / "val" / "law_val.csv").docs) == 2
    with pytest.raises(ConfigError, match="no questions of physician"):
        _load(published, "ceval:physician")


def test_as_on_the_hub(tmp_path: Path) -> None:
    import datasets

    row = {"id": 0, "question": "?", **dict(zip("ABCD", "1234", strict=True)), "answer": "A"}
    for subject in ("law", "physician"):
        (tmp_path / subject).mkdir()
        for split in ("dev", "val"):
            path = tmp_path / subject / f"{split}-00000-of-00001.parquet"
            datasets.Dataset.from_list([row]).to_parquet(path)
    assert list(_load(tmp_path).groups["subject"].values()) == ["law", "physician"]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("x.csv", f"{HEADING}\n0,?,1,2,3,4,A\n", "line 2, item 1: subject=None"),
        ("law.csv", f"{HEADING}\n0,?,1,2,3,4,E\n", "line 2, item 1: answer='E'; allowed: A, B"),
        ("law.csv", f"{HEADING}\n0,?,1,,3,4,A\n", "line 2, item 1: B: the cell is blank"),
        ("law.csv", "id,question,A,B,C,D\n0,?,1,2,3,4\n", "no 'answer'"),
    ],
)
def test_what_cannot_be_read(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=said):
        _load(tmp_path)


def test_a_file_of_no_split_beside_the_splits(published: Path) -> None:
    _csv(published / "physician.csv", 1)
    with pytest.raises(
        ConfigError, match=r"physician.csv: it is of no split, beside files of 'val'"
    ):
        _load(published)


@pytest.mark.parametrize(
    ("text", "given"),
    [
        ("先想一想。\n答案：B", "B"),
        ("答案是 **(C)**。", "C"),
        ("So the answer is D.", "D"),
        ("答案：A\n不对，重新算。\n答案：C", "C"),
        ("答案：Ｂ", "B"),
        ("$\\boxed{\\text{D}}$", "D"),
        ("应选 B", "B"),
        ("选 B 因为 A 错", "B"),
        ("A. 一 B. 二 C. 三 D. 四\n选 B 因为 A 错", "B"),
        ("因此A项正确，B项错误", "A"),
        ("我认为答案不是A而是B", "B"),
        ("答案并非 A，应选 C", "C"),
        ("The answer is not A but B.", "B"),
        ("答案: b", "B"),
        ("Answer: b", "B"),
        ("Answer: a dog", None),
        ("故选C", "C"),
        ("故选：C。", "C"),
        ("故选B，因为A、C、D正确", "B"),
        ("选项A错误，选项B正确", "B"),
        ("答案是A。错误的选项是B", "A"),
        ("不选A", None),
        ("答案是A还是B？答案是B", "B"),
        ("答案为 \\boxed{C}", "C"),
        ("**答案**：**D**", "D"),
        ("Answer: (B)", "B"),
        ("The answer: Beijing", None),
        ("<think>答案：A</think>答案：B", "B"),
        ("<think>答案：A", None),
        ("ABCD", None),
        ("", None),
    ],
)
def test_letters(text: str, given: str | None) -> None:
    assert ceval.letter(text) == given


def test_scores(published: Path) -> None:
    task = _load(published)
    [once] = [score(task, task.docs[0], ModelResponse(input="", text=["答案：B"]))]
    assert once == {"letter": 1}
    several = _load(published, answers=4)
    texts = ["答案：B", "答案：A", "B", ""]
    scores = score(several, several.docs[0], ModelResponse(input="", text=texts))
    assert scores == {"letter_avg@n:n=4": 0.5}
