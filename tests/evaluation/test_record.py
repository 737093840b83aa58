"""What a run leaves: one declaration of it, and what earlier releases left is still read."""

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import slot_vllm.evaluation
from slot_vllm.evaluation.directory import read_inspections, read_results
from slot_vllm.evaluation.errors import ConfigError
from slot_vllm.evaluation.record import (
    SCHEMA,
    Arm,
    Cell,
    Group,
    Metric,
    Result,
    RunRecord,
    Sample,
    Sweep,
    TaskDefinition,
)
from slot_vllm.evaluation.run_settings import changed, text_hash
from slot_vllm.evaluation.samples import SampleFile
from slot_vllm.removed import split
from tests.conftest import ROOT
from tests.evaluation.stored_runs import LAST_RELEASE, answer, answers, store

PACKAGE = Path(slot_vllm.evaluation.__file__).parent
DECLARED = [PACKAGE / "record.py", PACKAGE / "run_settings.py"]
# They read something else, whose keys are called alike: the user's configuration, the answers of
# lighteval 0.8.1 and of pip, lists of mutants and of test runs, screened settings, costs.
SCRIPTS = (
    *("check_published_tasks", "lighteval_published", "check_vllm", "mutants", "repeat_tests"),
    *("bench_serve", "run_vllm_release", "screen_settings"),
    *(f"tables/{kind}" for kind in ("costs", "instructions", "releases", "scores", "screen")),
)
OTHER_KEYS = {PACKAGE / "overrides.py", *(ROOT / f"scripts/{name}.py" for name in SCRIPTS)}
FIELDS = {
    *(name for model in (RunRecord, Result, Metric, Sweep, Cell, Group, TaskDefinition)
      for name in model.model_fields),
    "schema",
}  # fmt: skip


def named_keys(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """The strings by which a module takes something out of a mapping or an object.

    Not those that a module makes a mapping of: the exported forms have keys of their own, many
    called alike.
    """
    for node in ast.walk(tree):
        keys: list[ast.expr] = []
        if isinstance(node, ast.Subscript):
            keys = [node.slice]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            keys = node.args[:1] if node.func.attr in ("get", "pop", "setdefault") else []
            # model_copy(update={"value": ...}) names fields too.
            literal = [k.value for k in node.keywords if k.arg in ("update", "include", "exclude")]
            keys += [key for d in literal if isinstance(d, ast.Dict) for key in d.keys if key]
            keys += [item for s in literal if isinstance(s, ast.Set) for item in s.elts]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            keys = node.args[1:2] if node.func.id in ("getattr", "hasattr", "setattr") else []
        for key in keys:
            if isinstance(key, ast.Constant) and isinstance(key.value, str):
                yield key.lineno, key.value


def test_no_other_module_names_a_field() -> None:
    own = [key for _, key in named_keys(ast.parse(DECLARED[0].read_text()))]
    assert FIELDS & set(own), "the scan finds nothing"
    paths = [*sorted(PACKAGE.rglob("*.py")), *sorted((ROOT / "scripts").rglob("*.py"))]
    assert {*paths} >= OTHER_KEYS
    found = [
        f"{path.relative_to(ROOT)}:{line}: {key!r}"
        for path in paths
        if path not in DECLARED and path not in OTHER_KEYS
        for line, key in named_keys(ast.parse(path.read_text()))
        if key in FIELDS
    ]
    assert found == []


def test_a_result_says_every_setting_of_its_arm() -> None:
    arm = Arm(name="careful", preset="paper-vllm", steps=3)
    row = Result(
        name="careful", task="t", metric="m", value=0.5, samples=2, steps=3, lr=0.1, arm=arm
    )
    written = json.loads(json.dumps(RunRecord(schema=SCHEMA, arms=[row]).as_json()))
    assert written["schema"] == 2
    [entry] = written["arms"]
    assert {"name", "task", "metric", "value", "samples", "generated_tokens"} <= entry.keys()
    assert (entry["arm"]["betas"], entry["arm"]["reduction"]) == ([0.9, 0.95], "mean_over_rows")
    read = RunRecord.model_validate(written).arms[0].arm
    assert read == arm


@pytest.mark.parametrize(
    "path", sorted(LAST_RELEASE.rglob("results.json")), ids=lambda path: path.parent.name
)
def test_a_record_of_the_last_release_is_read(path: Path) -> None:
    values = json.loads(path.read_text())
    run = read_results(path)
    assert [row.name for row in run.arms] == [row["name"] for row in values["arms"]]
    assert [row.value for row in run.arms] == [row["value"] for row in values["arms"]]
    for row in run.arms:
        assert row.arm is not None
        assert (row.arm.name, row.arm.steps) == (row.name, row.steps)
        assert not row.steps or row.arm.lr == row.lr
        assert row.said.keys() <= {row.metric} or "schema" in values
    # And what it says is not lost when it is written again.
    again = RunRecord.model_validate(json.loads(json.dumps(run.as_json())))
    assert again == run


def test_a_sweeps_cells_have_the_sweeps_settings() -> None:
    path = LAST_RELEASE / "sweep/results.json"
    run = read_results(path)
    best = next(row for row in run.arms if row.steps)
    settings, used = split(json.loads(path.read_text())["config"]["sweep"]["settings"])
    assert settings and used == {"guard": "holdout", "max_kl": 0.003} == best.removed
    assert best.arm is not None
    assert settings.items() <= best.arm.model_dump(mode="json").items()


def test_inspections_of_the_last_release() -> None:
    [inspection] = read_inspections(LAST_RELEASE / "quickstart")
    assert inspection.raised and len(inspection.prompts) == inspection.problems


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"schema": 3, "arms": []}, "schema=3: written by another release; allowed: 1 to 2"),
        ({"schema": "2", "arms": []}, "schema='2': written by another release"),
        ({"schema": 2}, "arms: Field required"),
        ({"arms": [{"name": "x"}], "config": {"arms": [{"name": "x", "lost": 1}]}}, "arms.0."),
        ([], "valid dictionary"),
    ],
)
def test_a_record_that_cannot_be_read_is_one_line(values: Any, said: str, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps(values))
    with pytest.raises(ConfigError) as error:
        read_results(path)
    assert str(error.value).startswith(f"{path}: ")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_samples_are_read_back(tmp_path: Path) -> None:
    # Half a surrogate pair, as a model may produce it.
    written = [answer("slot", 0, 1.0, completion="\ud83d, é"), answer("baseline", 1, 0.0)]
    file = SampleFile(tmp_path / "samples.jsonl")
    file.rewrite(written)
    assert file.read() == written
    # An interruption cuts off what it was writing.
    content = file.path.read_text()
    file.path.write_text(content + content[:20])
    assert file.read() == written
    file.path.write_text(content[:-1])
    assert file.read() == written[:1]


def test_a_sample_of_the_last_release_gets_its_hash() -> None:
    [first, *_] = SampleFile(LAST_RELEASE / "quickstart/samples.jsonl").read()
    assert first.prompt is not None
    assert first.prompt_sha256 == text_hash(first.prompt)
    assert first.item_sha256 is None


def test_hashes_tell_where_texts_end() -> None:
    assert text_hash("ab", "c") != text_hash("a", "bc")
    assert text_hash("a") != text_hash("a", "")


def test_only_fields_that_there_are_can_be_changed() -> None:
    sample = answer("slot", 0, 1.0)
    assert changed(sample, score=0.5).score == 0.5
    with pytest.raises(TypeError, match="Sample has no field scor"):
        changed(sample, scor=0.5)


def test_a_sample_without_a_prompt_or_its_hash_is_none(tmp_path: Path) -> None:
    directory = store(tmp_path / "run", answers({"slot": [1.0]}))
    path = directory / "samples.jsonl"
    values = json.loads(path.read_text())
    del values["prompt"], values["prompt_sha256"]
    path.write_text(json.dumps(values) + "\n")
    with pytest.raises(ConfigError, match=r"samples\.jsonl:1: not a sample: prompt_sha256: Field"):
        SampleFile(path).read()
    assert Sample.model_validate({**values, "prompt_sha256": "0"}).prompt is None
