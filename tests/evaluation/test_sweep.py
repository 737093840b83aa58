"""Grids of settings: what they are measured on, the best cell, a run with a selection."""

import json
from pathlib import Path
from typing import Any

import pytest

from slot_vllm.evaluation import tasks
from slot_vllm.evaluation.config import RunConfig
from slot_vllm.evaluation.errors import ConfigError
from slot_vllm.evaluation.generation import VllmEngine
from slot_vllm.evaluation.sweep import Grid
from tests.evaluation.conftest import PROBLEMS, RunMain, WriteConfig

SWEEP = {"steps": [0, 1, 2], "lr": [0.01, 0.1]}
CELLS = ["baseline", "steps1-lr0.01", "steps1-lr0.1", "steps2-lr0.01", "steps2-lr0.1"]


def grid(**settings: Any) -> Grid:
    task = {"name": "aime24", "data": str(PROBLEMS)}
    values = {"name": "test", "model": "m", "tasks": [task], "sweep": SWEEP, **settings}
    config = RunConfig.model_validate(values)
    return Grid(config, tasks.load(config)[0])


def test_the_problems_of_a_grid() -> None:
    assert grid().docs == grid().reported == grid().task.docs
    split = grid(select={"split": 0.3})
    parts = [{doc.id for doc in docs} for docs in (split.docs, split.reported)]
    assert list(map(len, parts)) == [2, 6]
    assert not parts[0] & parts[1]
    drawn = {
        seed: frozenset(
            doc.id for doc in grid(select={"split": 0.3}, generation={"seed": seed}).docs
        )
        for seed in range(8)
    }
    assert drawn[0] == parts[0]
    assert len(set(drawn.values())) > 1
    with pytest.raises(ConfigError, match=r"select.split=0.01: it leaves 0 of 8"):
        grid(select={"split": 0.01})


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's answers, replaced: baseline right on even problems, steps1-lr0.1 and
    steps2-lr0.01 on all, any other on none."""
    generate = VllmEngine.generate
    golds = [json.loads(line)["answer"] for line in PROBLEMS.read_text().splitlines()]

    def replaced(*arguments: Any, **more: Any) -> Any:
        for completion in generate(*arguments, **more):
            arm, _, problem, _ = completion.request.id.split("/")
            even = int(problem) % 2 == 0
            right = arm in ("steps1-lr0.1", "steps2-lr0.01") or (arm == "baseline" and even)
            said = golds[int(problem)] if right else "-1"
            completion.texts[0] = f"$\\boxed{{{said}}}$"
            yield completion

    monkeypatch.setattr(VllmEngine, "generate", replaced)


@pytest.mark.usefixtures("scripted")
def test_a_sweep(
    write_config: WriteConfig,
    run_main: RunMain,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    assert run_main("--config", write_config(arms=[], sweep=SWEEP), "--output-dir", out) == 0
    results = json.loads((out / "results.json").read_text())
    assert [row["name"] for row in results["arms"]] == CELLS
    assert [row["value"] for row in results["arms"]] == [0.5, 0, 1, 1, 0]
    [sweep] = results["sweeps"]
    assert (sweep["task"], sweep["problems"], sweep["split"]) == ("aime24", 8, None)
    assert (sweep["steps"], sweep["lr"]) == ([0, 1, 2], [0.01, 0.1])
    # Two cells are equally good: the one of fewer steps.
    assert sweep["selected_by"] == []
    assert (sweep["best"], sweep["selected_on"]) == ("steps1-lr0.1", "test data")
    assert [cell["arm"] for cell in sweep["cells"]] == CELLS
    baseline, cell = sweep["cells"][0], sweep["cells"][2]
    assert (baseline["value"], baseline["lr"], baseline["difference"]) == (0.5, None, None)
    assert (cell["steps"], cell["lr"], cell["value"], cell["difference"]) == (1, 0.1, 1, 0.5)
    # Four cells are compared with the baseline, so p is corrected for four.
    assert cell["p_value"] == 0.125
    assert cell["p_value_holm"] == pytest.approx(0.5)
    assert cell["last_loss"] < cell["first_loss"]
    assert "the best of 4 settings of SLOT" in sweep["words"]
    assert "baseline" not in sweep["words"]
    assert "selected on test data" in capsys.readouterr().out


@pytest.mark.usefixtures("scripted")
@pytest.mark.parametrize("said", ["as good", "better"])
def test_the_best_setting_is_reported_though_the_baseline_is_as_good(
    write_config: WriteConfig, run_main: RunMain, tmp_path: Path, said: str
) -> None:
    # The settings that are right on all problems are left out, or in doubt with the baseline.
    lr = [0.01] if said == "better" else [0.1]
    out = tmp_path / "out"
    sweep = {"steps": [0, 1], "lr": lr}
    rows = [json.loads(line) for line in PROBLEMS.read_text().splitlines()]
    data = tmp_path / "twice.jsonl"  # the baseline is right on all even problems, of these two
    data.write_text("".join(json.dumps(row) + "\n" for row in (rows[0], rows[1], rows[2])))
    run = ["--config", write_config(arms=[], sweep=sweep, select={"split": 0.34})]
    seed = next(seed for seed in range(50) if [doc.id for doc in split_of(data, seed)] == ["0"])
    settings = [f"tasks.0.data={data}", f"generation.seed={seed}"]
    assert run_main(*run, "--output-dir", out, "--set", *settings) == 0
    results = json.loads((out / "results.json").read_text())
    [entry] = results["sweeps"]
    assert entry["best"] == f"steps1-lr{lr[0]}"
    assert entry["words"].endswith(f"The baseline is {said} there.")
    assert [row["name"] for row in results["arms"]] == ["baseline", entry["best"]]
    assert results["arms"][1]["difference"] == (0.5 if said == "as good" else -0.5)


def split_of(data: Path, seed: int) -> list[Any]:
    task = {"name": "aime24", "data": str(data)}
    return grid(select={"split": 0.34}, generation={"seed": seed}, tasks=[task]).docs


@pytest.mark.usefixtures("scripted")
def test_a_selection(write_config: WriteConfig, run_main: RunMain, tmp_path: Path) -> None:
    out = tmp_path / "out"
    extra = [{"name": "own", "steps": 3, "lr": 0.5}]
    config = write_config(arms=extra, sweep=SWEEP, select={"split": 0.5})
    run = ["--config", config, "--output-dir", out]
    assert run_main(*run) == 0
    results = json.loads((out / "results.json").read_text())
    [sweep] = results["sweeps"]
    assert (sweep["problems"], sweep["best"]) == (4, "steps1-lr0.1")
    assert sweep["selected_on"] == "a part of the problems"
    assert [cell["arm"] for cell in sweep["cells"]] == CELLS
    rows = {row["name"]: row for row in results["arms"]}
    # What is reported was selected on none of it.
    assert list(rows) == ["baseline", "steps1-lr0.1", "own"]
    assert {row["samples"] for row in rows.values()} == {4}
    lines = (out / "samples.jsonl").read_text().splitlines()
    answered: dict[str, list[str]] = {}
    for sample in map(json.loads, lines):
        answered.setdefault(sample["arm"], []).append(sample["id"])
    selecting = set(answered["steps2-lr0.1"])
    assert len(selecting) == 4
    assert set(sweep["selected_by"]) == selecting
    assert {arm: len(ids) for arm, ids in answered.items()} == {
        **dict.fromkeys(CELLS, 4),
        "baseline": 8,
        "steps1-lr0.1": 8,
        "own": 4,
    }
    assert not selecting & set(answered["own"])
    even = [i for i in answered["own"] if int(i) % 2 == 0]
    assert rows["baseline"]["value"] == pytest.approx(len(even) / 4)
    assert rows["steps1-lr0.1"]["difference"] == pytest.approx(1 - len(even) / 4)

    # Interrupted in the selection, or after it: resuming gives the same.
    (out / "results.json").unlink()
    for kept in (3, 17, 25, len(lines)):
        (out / "samples.jsonl").write_text("".join(line + "\n" for line in lines[:kept]))
        assert run_main(*run, "--resume") == 0
        resumed = json.loads((out / "results.json").read_text())
        assert resumed["arms"] == results["arms"]
        assert resumed["sweeps"] == results["sweeps"]
        (out / "results.json").unlink()
