"""The committed files of configs/published are those that the table and the script give."""

import subprocess
import sys
from pathlib import Path

import pytest

from slot_vllm.evaluation import config as configuration
from slot_vllm.evaluation import published_table
from slot_vllm.evaluation.config import RunConfig
from tests.conftest import ROOT

PUBLISHED = ROOT / "configs" / "published"
FILES = sorted(PUBLISHED.glob("*.yaml"))
# The most positions of the model; None: more than the published 32768.
CONTEXTS = {"Qwen2.5-Math-1.5B": 4096, "Qwen2.5-Math-7B": 4096}
ORGANISATIONS = {"DeepSeek": "deepseek-ai", "Qwen2.5": "Qwen", "Llama": "meta-llama"}


def script(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "make_published_configs.py"), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_check(tmp_path: Path) -> None:
    committed = script("--check")
    assert committed.returncode == 0, committed.stderr
    assert script("--output", tmp_path).returncode == 0
    assert script("--check", "--output", tmp_path).returncode == 0
    changed, lost = FILES[0].name, FILES[1].name
    (tmp_path / changed).write_text((tmp_path / changed).read_text().replace("0.95", "0.9"))
    (tmp_path / lost).unlink()
    (tmp_path / "other.yaml").write_text("")
    stale = script("--check", "--output", tmp_path)
    assert stale.returncode == 1
    assert stale.stderr == f"not as the table says: {changed}, {lost}, other.yaml\n"
    assert (tmp_path / "other.yaml").read_text() == ""


def test_every_published_run_has_its_arm() -> None:
    published = published_table.read()
    seen = set()
    for path in FILES:
        config = configuration.load(path)
        (task,) = config.tasks
        baseline, *slot = config.arms
        assert (baseline.name, baseline.steps) == ("baseline", 0)
        runs = [
            run
            for run in published
            if f"published:{run.task}" == task.name and run.model == config.published_model
        ]
        settings = [(arm.steps, arm.lr) for arm in slot]
        assert settings == [(run.steps, run.lr) for run in runs if run.steps]
        assert settings
        seen |= set(runs)
        heading = path.read_text(encoding="utf-8").split("\nname:")[0]
        for run in runs:
            assert f"#   {run.accuracy:.4f} ± {run.stderr:.4f}  " in heading
        assert ("none is published without SLOT" in heading) == all(run.steps for run in runs)
    assert seen == set(published)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_config(path: Path) -> None:
    config = configuration.load(path)
    configuration.check_paths(config)
    assert config.name == path.stem
    organisation, model = config.model.split("/")
    assert organisation == next(o for start, o in ORGANISATIONS.items() if model.startswith(start))
    length = CONTEXTS.get(model, 32768)
    assert config.engine["max_model_len"] == config.generation.max_new_tokens == length
    size = float(model.split("B")[-2].split("-")[-1])
    gpus = 1 if size <= 14 else 2 if size <= 32 else 4
    assert config.engine["tensor_parallel_size"] == gpus
    assert ("The published run had 8" in path.read_text(encoding="utf-8")) == (gpus > 1)


@pytest.mark.parametrize("task", ["aime24", "math_500", "gpqa_diamond"])
def test_the_same_as_the_readme_s(task: str) -> None:
    def settings(config: RunConfig) -> RunConfig:
        return config.model_copy(update={"name": ""})

    one = configuration.load(ROOT / "configs" / f"{task}.yaml")
    other = configuration.load(PUBLISHED / f"{task}-DeepSeek-R1-Distill-Qwen-7B.yaml")
    assert settings(one) == settings(other)
