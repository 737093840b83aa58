"""The study: its problems are those of the script, its page that of the committed logs, and what it
claims of ``safe`` holds in them."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from slot_vllm.evaluation import config as configuration
from slot_vllm.presets import PRESETS, SAFE_MAX_KL
from tests.conftest import ROOT

LOGS = ROOT / "logs" / "reference" / "study"
MODELS = ("demo", "base", "half")
DATA = ROOT / "configs" / "data"
STUDY = ROOT / "configs" / "study"


def script(*arguments: str | Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "study.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def logged(run: str) -> dict[str, Any]:
    return dict(json.loads((LOGS / run / "results.json").read_text(encoding="utf-8")))


def cells(model: str, mode: str) -> list[dict[str, Any]]:
    [sweep] = logged(f"grid_{model}_{mode}")["sweeps"]
    return [cell for cell in sweep["cells"] if cell["steps"]]


def test_the_problems(tmp_path: Path) -> None:
    script("problems", "--output", tmp_path)
    files = sorted(DATA.glob("study_*.jsonl"))
    assert [file.name for file in files] == sorted(file.name for file in tmp_path.iterdir())
    for file in files:
        assert (tmp_path / file.name).read_text() == file.read_text()
    texts = [
        json.loads(line)["problem"]
        for file in [*files, DATA / "demo.jsonl"]
        for line in file.read_text().splitlines()
    ]
    assert len(set(texts)) == len(texts)


def test_the_page_and_its_pictures(tmp_path: Path) -> None:
    script("report", "--output", tmp_path)
    docs = ROOT / "docs"
    assert (tmp_path / "study.md").read_text() == (docs / "study.md").read_text()
    pictures = sorted((docs / "study").iterdir())
    assert [p.name for p in pictures] == sorted(p.name for p in (tmp_path / "study").iterdir())
    for picture in pictures:
        assert (tmp_path / "study" / picture.name).read_text() == picture.read_text()


@pytest.mark.parametrize("model", MODELS)
def test_safe_does_no_harm(model: str) -> None:
    grid = cells(model, "safe")
    settings = logged(f"grid_{model}_safe")["config"]["sweep"]["settings"]
    assert (settings["guard"], settings["max_kl"]) == ("holdout", SAFE_MAX_KL)
    assert {key: settings[key] for key in PRESETS["safe"]} == PRESETS["safe"]
    assert len(grid) == 25
    for cell in grid:
        assert cell["difference"] >= -0.03, cell
        assert cell["difference"] >= 0 or cell["p_value_holm"] > 0.05, cell
    if model != "base":
        [applied] = [cell["applied"] for cell in grid if (cell["steps"], cell["lr"]) == (5, 0.01)]
        assert applied >= 0.5


# The third model solves too little for a loss to be told.
@pytest.mark.parametrize("model", ["demo", "half"])
def test_paper_does_harm(model: str) -> None:
    grid = cells(model, "paper")
    below = [c for c in grid if c["difference"] < -0.03 and c["p_value_holm"] <= 0.05]
    assert len(grid) == 25 and below


@pytest.mark.parametrize(
    ("run", "arm"), [("demo_halves", "last16-s5-lr0.1"), ("half_all", "last6-s3-lr0.1")]
)
def test_the_prompt_s_end_helps(run: str, arm: str) -> None:
    [found] = [entry for entry in logged(f"claim_{run}")["arms"] if entry["name"] == arm]
    for score in ("exact", "adherence"):
        assert found["metrics"][score]["difference"] > 0
        assert found["metrics"][score]["p_value_holm"] <= 0.05
    assert found["metrics"]["arithmetic"]["p_value_holm"] > 0.05


def test_what_a_claim_was_chosen_on_is_not_what_it_is_made_on() -> None:
    searches = [json.loads(file.read_text()) for file in LOGS.glob("*.json")]
    chosen_on = {search["set"] for search in searches}
    claimed_on = {
        Path(task["data"]).stem
        for run in LOGS.iterdir()
        if run.is_dir()
        for task in logged(run.name)["config"]["tasks"]
    }
    assert chosen_on and claimed_on and not chosen_on & claimed_on


RUNS = sorted(path.name for path in LOGS.iterdir() if path.is_dir())


@pytest.mark.parametrize("run", RUNS)
def test_the_logs_are_of_the_committed_configurations(run: str) -> None:
    grid = run.startswith("grid_")
    file = STUDY / ("grid.yaml" if grid else f"{run}.yaml")
    committed = configuration.load(file).model_dump(mode="json")
    ran = logged(run)["config"]
    if grid:  # the commands on the page say these
        for config in (committed, ran):
            config["sweep"].pop("settings")
            del config["model"], config["tasks"]
    assert ran == committed


@pytest.mark.parametrize("file", sorted(LOGS.glob("*.json")), ids=lambda file: file.stem)
def test_the_searches_are_of_the_committed_configurations(file: Path) -> None:
    found = json.loads(file.read_text(encoding="utf-8"))
    config = configuration.load(ROOT / found["config"])
    settings = {arm.name: arm.model_dump(mode="json", exclude={"name"}) for arm in config.arms}
    assert [arm["name"] for arm in found["arms"]] == list(settings)
    for arm in found["arms"][1:]:
        assert arm["settings"] == settings[arm["name"]], arm["name"]
    command = f"search {Path(found['config']).name} {found['set']} {file.stem} {found['model']}"
    assert command in (ROOT / "docs" / "study.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def task() -> ModuleType:
    spec = importlib.util.spec_from_file_location("study_tasks", STUDY / "tasks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        (
            "Start: 40. 40 + 5 = 45. Tenths: 450.\n$\\boxed{450}$",
            {"exact", "arithmetic", "adherence"},
        ),
        ("Start: 40. 40 + 5 = 44. Tenths: 440.\n$\\boxed{440}$", {"adherence"}),
        ("Start: 40. 40 + 5 = 45. Number: 45.\n$\\boxed{45}$", {"arithmetic"}),
        ("Start: 40. 40 + 5 = 44. Tenths: 440.\n$\\boxed{450}$", {"exact"}),
        ("Start: 45. Tenths: 450", {"arithmetic"}),
        ("\\boxed{}", set()),
        ("", set()),
    ],
)
def test_what_an_answer_is_right_about(task: ModuleType, answer: str, right: set[str]) -> None:
    judged = task.judge(answer, 45, "tenths")
    assert {score for score, holds in judged.items() if holds} == right
