"""The ready configs ask what their scorers accept, and say how many answers a problem has.

That a gold answer written as its prompt asks scores 1 is tested task by task: test_published.py
(AIME 2024, MATH-500) and test_gsm8k.py, over all items of ../shared/benchmarks. IFEval has no gold
answers; AIME 2025 and GPQA are not in that folder, and have the scorers of AIME 2024 and a letter.
"""

from pathlib import Path

import pytest

from slot_vllm.evaluation import config as configuration
from tests.conftest import ROOT

TESTED = {"published:aime24", "published:math_500", "published:gsm8k"}
NOT_THERE = {"published:aime25", "published:gpqa:diamond"}
PUBLISHED = {"aime24", "math_500", "gpqa_diamond", "gsm8k", "gsm8k_transformers"}
FILES = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_tasks_and_answers(path: Path) -> None:
    config = configuration.load(path)
    [task] = config.tasks
    if task.data is not None:  # the demo's own problems
        assert task.data.startswith("configs/data/")
        return
    assert task.name in TESTED | NOT_THERE
    heading = path.read_text().split("\nname:")[0]
    if path.stem in PUBLISHED:
        assert task.answers is None
        assert "published" in heading
    else:
        assert task.answers == 16
        assert "avg@16" in heading
    if task.name == "published:gsm8k":
        assert (config.generation.temperature, config.generation.max_new_tokens) == (0, 512)
    else:
        settings = config.generation
        assert (settings.temperature, settings.top_p) == (0.6, 0.95)
        assert settings.max_new_tokens == 32768


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs" / "published").glob("*.yaml")), ids=lambda path: path.stem
)
def test_published_configs_name_their_model_in_the_table(path: Path) -> None:
    config = configuration.load(path)
    assert config.published_model is not None
    assert path.stem.endswith(f"-{config.published_model}")
    assert [task.name.split(":")[0] for task in config.tasks] == ["published"]
    assert {task.answers for task in config.tasks} == {None}
