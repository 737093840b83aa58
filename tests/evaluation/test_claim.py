"""Claims are made on problems that nothing was chosen on."""

import re
from collections.abc import Iterable
from pathlib import Path

import pytest
import yaml

from slot_vllm.evaluation import config as configuration
from slot_vllm.evaluation import tasks
from slot_vllm.evaluation.benchmarks.gsm8k_rules import is_format_correct
from slot_vllm.evaluation.config import RunConfig
from slot_vllm.evaluation.samples import SAMPLES, SampleFile
from tests.conftest import ROOT

CONFIGS = ROOT / "configs"
CLAIMS = sorted((CONFIGS / "claim").glob("*.yaml"))
# Of a task, its benchmark items, and how many problems a claim on it takes.
DATA = {"published:gsm8k": ("gsm8k_test.jsonl", 500)}
# By model and task, the ids of problems.
Problems = dict[tuple[str, str], set[str]]


def _problems(runs: Iterable[RunConfig], benchmarks: Path) -> Problems:
    found: Problems = {}
    for run in runs:
        for task in run.tasks:
            if task.name not in DATA:
                continue
            local = task.model_copy(update={"data": str(benchmarks / DATA[task.name][0])})
            [loaded] = tasks.load(run.model_copy(update={"tasks": [local]}))
            found.setdefault((run.model, task.name), set()).update(d.id for d in loaded.docs)
    return found


def test_choice_and_claim_have_no_problem_in_common(benchmarks: Path) -> None:
    chosen_by = [*(CONFIGS / "study").glob("*.yaml"), *(CONFIGS / "search").glob("*.yaml")]
    screens = [path for path in chosen_by if path.stem.startswith("screen_")]
    # They read the answers of a run of the study.
    read = {yaml.safe_load(path.read_text())["run"] for path in screens}
    assert read == {"logs/reference/study/gsm8k"}
    chosen_by = [path for path in chosen_by if path not in screens]
    choice = _problems(map(configuration.load, chosen_by), benchmarks)
    claims = [configuration.load(path) for path in CLAIMS]
    claim = _problems(claims, benchmarks)
    assert {task.name for run in claims for task in run.tasks} <= DATA.keys()
    assert ("get:qwen2.5-coder-1.5b", "published:gsm8k") in choice.keys() & claim.keys()
    for (model, task), problems in claim.items():
        assert not problems & choice.get((model, task), set())
        assert len(problems) >= DATA[task][1]


def test_the_runs_of_choice_and_claim_have_no_problem_in_common() -> None:
    choice: Problems = {}
    claim: Problems = {}
    for kind, found in (("study", choice), ("search", choice), ("claim", claim)):
        for config in (ROOT / "logs" / "reference" / kind).glob("*/config.yaml"):
            model = configuration.load(config).model
            for sample in SampleFile(config.parent / SAMPLES).read():
                assert sample.item_sha256 is not None
                found.setdefault((model, sample.task), set()).add(sample.item_sha256)
    assert {task for _, task in claim} <= DATA.keys()
    assert choice.keys() & claim.keys()
    for (model, task), problems in claim.items():
        assert not problems & choice.get((model, task), set())
        assert len(problems) >= DATA[task][1]


@pytest.mark.parametrize("path", CLAIMS, ids=lambda p: p.stem)
def test_a_claim_sets_controls_beside_slot(path: Path) -> None:
    run = configuration.load(path)
    assert run.name == f"claim_{path.stem}"
    claimed = "steps5-window4" if path.stem == "gsm8k" else "steps1"
    assert [arm.name for arm in run.arms][:2] == ["baseline", claimed]
    alone = [arm.name for arm in run.arms if arm.control and not arm.steps]
    assert {"append", "examples", "bias"} < {*alone}
    # No choice was made on any of its problems, and the page says what is claimed.
    assert all(task.skip and task.data is None for task in run.tasks)
    page = (ROOT / "docs" / "study.md").read_text(encoding="utf-8")
    _, criterion = page.split("## The criterion")
    assert f"`{path.name}`" in criterion


def test_a_claim_s_regex_and_examples_have_the_asked_form() -> None:
    controls = [arm.control for path in CLAIMS for arm in configuration.load(path).arms]
    examples = [e for c in controls if c and c.examples for e in c.examples]
    assert len(examples) == 2
    assert all(is_format_correct(example.answer) for example in examples)
    [regex] = {c.regex for c in controls if c and c.regex}
    assert all(re.fullmatch(regex, example.answer) for example in examples)
