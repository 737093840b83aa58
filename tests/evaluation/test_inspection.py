"""``slot-vllm inspect`` and the inspection of a run: which tokens W delta raises and lowers."""

import json
import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lighteval.models.abstract_model import ModelConfig
from lighteval.tasks.requests import Doc

from slot_vllm.evaluation import config as configuration
from slot_vllm.evaluation.generation import Completion, OnTokens, Request, VllmEngine
from slot_vllm.evaluation.inspection import inspect
from slot_vllm.evaluation.inspection_record import TokenShift
from slot_vllm.evaluation.lighteval_model import SlotModel
from slot_vllm.evaluation.progress import Stage
from tests.conftest import ROOT
from tests.engine.vllm_command import module_command
from tests.evaluation.conftest import ARMS, RunMain, WriteConfig

SMALL = {"name": "small", "steps": 1, "lr": 0.01}
ALL = 10_000


class FakeEngine:
    """Knows W delta of each prompt by its last number; finishes requests in a shuffled order."""

    max_model_len = 2048

    def __init__(self, shifts: Sequence[np.ndarray | None], seed: int) -> None:
        self._shifts = shifts
        self._random = np.random.default_rng(seed)
        self.together: list[int] = []

    def generate(
        self, requests: Sequence[Request], on_tokens: OnTokens, with_shifts: bool
    ) -> Iterator[Completion]:
        assert with_shifts
        self.together.append(len(requests))
        for index in self._random.permutation(len(requests)):
            request = requests[index]
            assert (request.sampling["max_tokens"], request.sampling["n"]) == (1, 1)
            assert request.sampling["extra_args"]["slot_steps"] == 3
            shifts = self._shifts[int(request.id.split("/")[2])]
            yield Completion(request, ["2"], [[2]], ["length"], shifts=shifts)


def _model(config: Path, engine: Any = None) -> SlotModel:
    run = configuration.load(config)
    model = SlotModel(ModelConfig(model_name=run.model), run)
    if engine is not None:
        model.engine = engine
    return model


def _docs(count: int) -> list[Doc]:
    return [Doc(f"What is {i}?", ["2"], 0, id=str(i), num_samples=2) for i in range(count)]


def _by_id(*tokens: Sequence[TokenShift]) -> dict[int, float]:
    return {token.id: token.shift for side in tokens for token in side}


def test_the_mean_is_exact_and_does_not_depend_on_who_finishes_first(
    write_config: WriteConfig,
) -> None:
    # Numbers whose sum depends, even in float64, on the order in which they are added.
    generator = np.random.default_rng(0)
    sizes = 10.0 ** generator.integers(-12, 12, (150, 262))
    shifts = list((generator.normal(size=sizes.shape) * sizes).astype(np.float32))
    expected = np.zeros(262)
    for one in shifts:
        expected += one
    expected /= 150
    assert np.sum(np.array(shifts, float)[::-1], axis=0).tolist() != (expected * 150).tolist()
    found = []
    for seed in (1, 2):
        engine = FakeEngine(shifts, seed)
        model = _model(write_config(generation={"temperature": 1.0}), engine)
        found.append(inspect(model, model.run.arms[1], "task", _docs(150), top=ALL))
        assert sum(engine.together) == 150 and max(engine.together) < 150
    assert found[0] == found[1]
    assert (found[0].problems, len(found[0].prompts)) == (150, 150)
    means = _by_id(found[0].raised, found[0].lowered)
    assert means == {i: value for i, value in enumerate(expected.tolist()) if value}
    assert [prompt.id for prompt in found[0].prompts] == [str(i) for i in range(150)]
    assert _by_id(found[0].prompts[7].raised)[int(shifts[7].argmax())] == shifts[7].max()


def test_progress_is_that_of_the_answers_not_of_groups(
    write_config: WriteConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached: list[float] = []
    monkeypatch.setattr(Stage, "reach", lambda self, done: reached.append(done))
    seen: list[int] = []

    class Watching(FakeEngine):
        def generate(self, *arguments: Any, **more: Any) -> Iterator[Completion]:
            for completion in super().generate(*arguments, **more):
                seen.append(len(reached))
                yield completion

    shifts = [np.ones(262, np.float32)] * 150
    model = _model(write_config(), Watching(shifts, 0))
    inspect(model, model.run.arms[1], "task", _docs(150))
    assert seen == list(range(150))
    assert reached == [number / 150 for number in range(1, 151)]


def test_prompts_without_a_delta_are_not_in_the_mean(
    write_config: WriteConfig, caplog: pytest.LogCaptureFixture
) -> None:
    one = np.zeros(262, np.float32)
    one[9] = 2
    model = _model(write_config(), FakeEngine([one, None, one * 2], 0))
    found = inspect(model, model.run.arms[1], "task", _docs(3))
    assert found.problems == 2
    assert [(token.id, token.shift) for token in found.raised] == [(9, 3.0)]
    assert [prompt.id for prompt in found.prompts] == ["0", "2"]
    assert "1 prompts have no delta" in caplog.text
    model = _model(write_config(), FakeEngine([None], 0))
    found = inspect(model, model.run.arms[1], "task", _docs(1))
    assert (found.problems, found.raised, found.prompts) == (0, [], [])


def test_the_mean_over_problems_is_that_of_single_prompts(
    write_config: WriteConfig, shared_engines: None
) -> None:
    model = _model(write_config())
    arm, docs = model.run.arms[1], _docs(5)
    together = inspect(model, arm, "task", docs, top=ALL)
    singles = [inspect(model, arm, "task", [doc], top=ALL) for doc in docs]
    mean = dict.fromkeys(range(262), 0.0)
    for single, prompt in zip(singles, together.prompts, strict=True):
        assert single.problems == 1
        shifts = _by_id(single.raised, single.lowered)
        assert max(map(abs, shifts.values())) > 0.1
        assert _by_id(prompt.raised, prompt.lowered) == pytest.approx(shifts, abs=1e-4)
        for token, shift in shifts.items():
            mean[token] += shift / len(docs)
    assert _by_id(together.raised, together.lowered) == pytest.approx(mean, abs=1e-4)


def _inspections(directory: Path) -> list[dict[str, Any]]:
    return json.loads((directory / "inspection.json").read_text())


def test_a_run_inspects_its_arms_once(
    write_config: WriteConfig,
    run_main: RunMain,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, out = write_config(arms=[*ARMS, SMALL]), tmp_path / "out"
    run = ["--config", config, "--output-dir", out]
    assert run_main(*run) == 0
    slot, small = _inspections(out)
    assert (slot["arm"], slot["task"], slot["problems"]) == ("slot", "aime24", 8)
    assert (small["arm"], small["problems"]) == ("small", 8)
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    read = {sample["id"]: sample["prompt"] for sample in samples}
    assert {prompt["id"]: prompt["prompt"] for prompt in slot["prompts"]} == read
    for entry in (slot, *slot["prompts"]):
        raised, lowered = ([t["shift"] for t in entry[side]] for side in ("raised", "lowered"))
        assert raised == sorted(raised, reverse=True) and lowered == sorted(lowered)
        assert len(raised) == len(lowered) == 15
        assert min(raised) > entry["vocabulary_mean"] > max(lowered)
        assert all(token["token"] for token in entry["raised"])
    # A step of 0.01 moves less than three of 0.1.
    assert slot["raised"][0]["shift"] > 3 * small["raised"][0]["shift"] > 0

    def again(*_arguments: Any) -> Any:
        raise AssertionError("inspected again")

    with monkeypatch.context() as patched:
        patched.setattr("slot_vllm.evaluation.inspection.inspect", again)
        assert run_main(*run, "--resume") == 0
        assert run_main(*run, "--overwrite", "--set", "inspect=false") == 0
        assert not (out / "inspection.json").exists()
        # Not a different run: it has the same results.
        assert run_main(*run, "--resume", "--set", "inspect=false") == 0

    # Everything is answered, but not inspected.
    answered = (out / "samples.jsonl").read_text()
    generate = VllmEngine.generate

    def inspected(
        self: Any, requests: Any, on_tokens: Any, with_shifts: bool = False
    ) -> Iterator[Completion]:
        assert with_shifts, "answered again"
        yield from generate(self, requests, on_tokens, with_shifts)

    with monkeypatch.context() as patched:
        patched.setattr(VllmEngine, "generate", inspected)
        assert run_main(*run, "--resume") == 0
    assert (out / "samples.jsonl").read_text() == answered
    for entry, before in zip(_inspections(out), (slot, small), strict=True):
        tops = [{t["id"]: t["shift"] for t in one["raised"]} for one in (entry, before)]
        assert tops[0] == pytest.approx(tops[1], abs=1e-4)

    # What is there belongs to a run; without an arm with SLOT there is nothing to inspect.
    for name in ("config.yaml", "samples.jsonl", "results.json", "run.log"):
        (out / name).unlink()
    assert run_main(*run) == 2
    assert run_main(*run, "--overwrite", "--set", "arms=[{name: baseline, steps: 0}]") == 0
    assert not (out / "inspection.json").exists()


def test_arms_of_a_sweep(
    write_config: WriteConfig,
    run_main: RunMain,
    run_slot_vllm: RunMain,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sweep = {"steps": [0, 1, 2], "lr": [0.1]}
    config, out = write_config(arms=[SMALL], sweep=sweep, select={"split": 0.25}), tmp_path / "out"
    assert run_main("--config", config, "--output-dir", out) == 0
    rows = json.loads((out / "results.json").read_text())["arms"]
    reported = [(row["name"], row["samples"]) for row in rows if row["steps"]]
    assert [(entry["arm"], entry["problems"]) for entry in _inspections(out)] == reported
    assert ("small", 6) in reported
    arguments = ["--config", config, "--prompt", "1 + 1?", "--arm", "steps2-lr0.1"]
    assert run_slot_vllm("inspect", *arguments) == 0
    assert "steps2-lr0.1 · --prompt: W delta" in capsys.readouterr().out


def test_inspecting_a_prompt(
    write_config: WriteConfig,
    run_slot_vllm: RunMain,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # Without the data of its tasks.
    config = write_config(
        system_prompt="Be kind.",
        tasks=[{"name": "aime24", "data": "nowhere.jsonl"}],
        arms=[*ARMS, SMALL],
    )
    chart = tmp_path / "chart.svg"
    prompt = ["--config", config, "--prompt", "1 + 1?", "--top", "4"]
    assert run_slot_vllm("inspect", *prompt, "--arm", "slot", "--output", chart) == 0
    printed = capsys.readouterr().out
    assert chart.read_bytes().startswith(b"<?xml")
    assert "slot · --prompt: W delta" in printed and "small" not in printed
    # The same as what the prompt gives through the chat template and the system prompt.
    model = _model(config)
    doc = Doc("1 + 1?", [""], 0, id="0")
    assert "Be kind." in model.prompt(doc)
    found = inspect(model, model.run.arms[1], "task", [doc], top=4)
    numbers = sorted(map(float, re.findall(r"[+-]\d+\.\d{4}", printed)))
    expected = (*found.raised, *found.lowered)
    shifts = [found.less_mean(token) for token in expected]
    assert numbers == pytest.approx(sorted([*shifts, found.vocabulary_mean or 0.0]), abs=1e-3)
    assert all(token.token in printed for token in expected)


def test_inspecting_the_tasks_and_all_arms(
    write_config: WriteConfig, run_slot_vllm: RunMain, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(arms=[*ARMS, SMALL])
    settings = ["--set", "tasks.aime24.max_samples=2"]
    assert run_slot_vllm("inspect", "--config", config, "--top", "3", *settings) == 0
    printed = capsys.readouterr().out
    for arm in ("slot", "small"):
        assert f"{arm} · aime24: W delta, mean over 2 problems" in printed
        assert f"{arm} · aime24: W delta of each prompt" in printed
    assert "baseline" not in printed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--arm", "other"], ["run.yaml: --arm other: no such arm", "allowed: slot"]),
        (["--arm", "baseline"], ["run.yaml: --arm baseline: it has no SLOT", "allowed: slot"]),
        (
            ["--set", "arms=[{name: baseline, steps: 0}]"],
            ["run.yaml: arms: none of them has SLOT", "steps of 1 or more"],
        ),
        (["--top", "0"], ["error: --top 0: allowed: 1 or more"]),
        (["--top", "many"], ["--top: invalid int value"]),
        (["--output", "chart.pdf"], ["error: --output chart.pdf", "allowed", ".png or .svg"]),
        (["--output", "no/chart.png"], ["--output no/chart.png: cannot be written: No such file"]),
        (["--output", "folder.png"], ["--output folder.png: it is a directory"]),
        (
            ["--prompt", "x", "--set", "chat_template=false"],
            ["run.yaml: --prompt 'x': a single token", "all shifts are zero", "two tokens or more"],
        ),
        (["--prompt", "", "--set", "chat_template=false"], ["--prompt '': no token"]),
        (["--prompt", "xy", "--set", "model=./nowhere"], ["run.yaml: model='./nowhere'"]),
        (["--set", "tasks.0.data=nowhere.jsonl"], ["run.yaml: tasks.0.data='nowhere.jsonl'"]),
        (["--prompt", "x" * 3000], ["run.yaml: engine.max_model_len=2048: the prompt"]),
    ],
)
def test_bad_input(
    arguments: list[str],
    said: list[str],
    write_config: WriteConfig,
    run_slot_vllm: RunMain,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = write_config()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.png").mkdir()
    before = sorted(tmp_path.iterdir())
    assert run_slot_vllm("inspect", "--config", config, *arguments) == 2
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("error: ")
    for part in said:
        assert part in last
    assert sorted(tmp_path.iterdir()) == before


def test_as_a_user_types_it_with_the_engine_in_a_process_of_its_own(
    write_config: WriteConfig, tmp_path: Path
) -> None:
    chart = tmp_path / "chart.png"
    command = [*module_command("slot_vllm.cli"), "inspect", "--config", str(write_config())]
    done = subprocess.run(
        [*command, "--prompt", "How many primes are below 100?", "--output", str(chart)],
        cwd=ROOT,
        env={**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "W delta" in done.stdout and "INFO" not in done.stdout + done.stderr
    assert chart.read_bytes().startswith(b"\x89PNG")
