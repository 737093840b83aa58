"""What results.json and the table say of scores."""

import copy
import json
from collections.abc import Mapping, Sequence

import pytest
from lighteval.tasks.lighteval_task import LightevalTask, LightevalTaskConfig
from lighteval.tasks.tasks.aime import aime24_avg

from slot_vllm.evaluation import tasks
from slot_vllm.evaluation.record import Arm, Estimate, Result, RunRecord, Sample
from slot_vllm.evaluation.results import compared, result
from slot_vllm.evaluation.run_settings import changed
from slot_vllm.evaluation.scoring import graded
from slot_vllm.evaluation.statistics import tango
from slot_vllm.evaluation.table import show
from slot_vllm.evaluation.tasks import EvaluationTask

BASELINE = Arm(name="baseline", steps=0)
SLOT = Arm(name="slot", steps=5, lr=0.1)


def gsm8k() -> LightevalTaskConfig:
    return tasks.definitions("gsm8k", "task")[0]


def samples(arm: Arm, metric: str, scores: Sequence[float], answers: int = 1) -> list[Sample]:
    return [
        Sample(
            arm=arm.name,
            task="task",
            id=str(problem),
            sample=answer,
            prompt="",
            prompt_sha256="",
            completion="",
            gold=[],
            score=score,
            scores={metric: score},
            steps=arm.steps,
            lr=arm.lr,
            first_loss=None,
            last_loss=None,
            seed=0,
            finish_reason="stop",
            prompt_tokens=1,
            generated_tokens=1,
            seconds=1.0,
        )
        for problem, score in enumerate(scores)
        for answer in range(answers)
    ]


def results(
    definition: LightevalTaskConfig,
    metric: str,
    scores: Mapping[str, Sequence[float]],
    answers: int = 1,
    groups: Mapping[str, Mapping[str, str]] | None = None,
) -> list[Result]:
    """Of the baseline and, if there are scores for it, SLOT."""
    loaded = EvaluationTask("task", LightevalTask(definition), [], {})
    rows, drawn = [], {}
    for arm in (BASELINE, SLOT):
        if arm.name in scores:
            of_arm = samples(arm, metric, scores[arm.name], answers)
            of_problems = [{metric: score} for score in scores[arm.name]]
            rows.append(result(arm, loaded, of_problems, of_arm))
            drawn[arm.name] = of_arm
    return compared(rows, drawn, groups or {})


def test_the_entries_of_results_json() -> None:
    metric = "extractive_match"
    scores = {"baseline": [1] * 10 + [0] * 20, "slot": [0] + [1] * 12 + [0] * 17}
    baseline, slot = json.loads(
        json.dumps([r.model_dump() for r in results(gsm8k(), metric, scores)])
    )
    assert baseline["value"] == pytest.approx(1 / 3)
    assert baseline["interval"] == pytest.approx([0.1923, 0.5122], abs=1e-4)  # Wilson, 10 of 30
    assert baseline["metrics"][metric]["interval"] == baseline["interval"]
    assert baseline["difference"] is None
    assert slot["difference"] == pytest.approx(2 / 30)
    assert slot["difference_interval"] == pytest.approx(list(tango(3, 1, 30)))
    for key in ("difference", "difference_interval", "p_value", "p_value_holm"):
        assert slot["metrics"][metric][key] == slot[key]
        assert baseline["metrics"][metric][key] is None
    assert slot["p_value"] == slot["p_value_holm"] == 0.625
    assert slot["words"].startswith(
        f"task, slot against the baseline: {metric}: no difference can be told"
    )
    assert slot["pass_at_k"] == {}


def test_several_answers_per_problem() -> None:
    shares = {"baseline": [0, 0.5, 1], "slot": [0.25, 0.75, 1]}
    baseline, slot = results(aime24_avg, "avg@n:n=64", shares, answers=64)
    assert (baseline.samples, baseline.value) == (3, 0.5)
    # The interval is that of 3 problems, not of 192 answers.
    assert baseline.interval is not None
    assert baseline.interval[1] - baseline.interval[0] > 0.6
    assert list(baseline.pass_at_k) == ["1", "2", "4", "8", "16", "32", "64"]
    assert baseline.pass_at_k["1"] == Estimate(value=0.5, interval=baseline.interval)
    assert baseline.pass_at_k["2"].value == pytest.approx((1 - 31 / 126 + 1) / 3)
    assert baseline.pass_at_k["64"].value == pytest.approx(2 / 3)
    assert slot.difference == pytest.approx(1 / 6)
    assert "permutation test" in str(slot.method)


def test_a_metric_that_is_no_mean_has_no_interval() -> None:
    metric = "extractive_match"
    scores = {"baseline": [1, 0], "slot": [1, 1]}
    assert all(row.interval is not None for row in results(gsm8k(), metric, scores))
    definition = copy.deepcopy(gsm8k())
    definition.metrics[0].corpus_level_fn = max
    baseline, slot = results(definition, metric, scores)
    assert (baseline.value, baseline.interval) == (1, None)
    # The largest of two equal scores is their mean as well.
    assert (slot.value, slot.interval is None) == (1, False)
    assert slot.difference is None


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    scores = {"baseline": [1] * 10 + [0] * 20, "slot": [0] + [1] * 12 + [0] * 17}
    show(RunRecord(arms=results(gsm8k(), "extractive_match", scores)))
    lines = capsys.readouterr().out.splitlines()
    assert "0.3333 [0.1923, 0.5122]" in next(line for line in lines if " baseline " in line)
    low, high = tango(3, 1, 30)
    row = next(line for line in lines if " slot " in line)
    assert f"+0.0667 [{low:+.4f}, {high:+.4f}]" in row
    said = lines.index("task, slot against the baseline:")
    assert lines[said + 1].startswith("  extractive_match: no difference can be told")


def test_every_metric_is_compared_and_spoken_of(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = ("extractive_match", "other")
    arms = [BASELINE, SLOT, Arm(name="slot2", steps=1, lr=0.1)]
    right = {
        "baseline": ([0] * 20, [0] * 20, [0] * 20),
        "slot": ([1] * 7 + [0] * 13, [0] * 20, [1] * 10 + [0] * 10),
        "slot2": ([0] * 20, [1] * 7 + [0] * 13, [0] * 20),
    }
    definition = gsm8k()
    other_metric = copy.deepcopy(definition.metrics[0])
    other_metric.metric_name = "other"
    definition.metrics = [definition.metrics[0], other_metric]
    loaded = EvaluationTask("task", LightevalTask(definition), [], {})
    rows, drawn = [], {}
    for arm in arms:
        first, other, cut_off = right[arm.name]
        of_problems = [
            dict(zip(metrics, pair, strict=True)) for pair in zip(first, other, strict=True)
        ]
        kept = []
        for sample, scores, ends in zip(
            samples(arm, metrics[0], first), of_problems, cut_off, strict=True
        ):
            ended = changed(sample, finish_reason="length" if ends else "stop", completion="5")
            kept += graded([ended], scores)
        rows.append(result(arm, loaded, of_problems, kept))
        drawn[arm.name] = kept
    rows = compared(rows, drawn, {})
    _, slot, slot2 = rows
    assert list(slot.metrics) == [*metrics, "truncated", "loops"]
    # Holm's correction is for the two arms, in each metric by itself.
    p = 2 * 0.5**7
    for found in (slot.metrics[metrics[0]], slot2.metrics[metrics[1]]):
        assert (found.p_value, found.p_value_holm) == pytest.approx((p, 2 * p))
        assert found.words == "higher by 0.3500 (p = 0.031, corrected for 2 arms)."
    cut = slot.metrics["truncated"]
    assert (cut.value, cut.difference, cut.lower_is_better) == (0.5, 0.5, True)
    assert cut.interval == pytest.approx((0.2993, 0.7007), abs=1e-4)  # Wilson, 10 of 20
    assert slot.metrics["loops"].value == 0
    assert slot.words is not None
    for metric, words in slot.said.items():
        assert f"{metric}: {words}" in slot.words
    show(RunRecord(arms=rows))
    lines = capsys.readouterr().out.splitlines()
    blocks = [line.split()[1] for line in lines if line.strip().startswith("task  ")]
    assert [b for b in dict.fromkeys(blocks) if b not in ("metric", "arm")][:4] == [
        *metrics,
        "truncated",
        "loops",
    ]
    [row] = [line for line in lines if "truncated (less is better)" in line and " slot " in line]
    assert "0.5000 [0.2993, 0.7007]" in row and "+0.5000 [" in row
    assert "  truncated: higher by 0.5000 (p = 0.0039, corrected for 2 arms)." in lines
    assert sum(line.startswith("  loops: no difference can be told") for line in lines) == 2


def test_groups_of_problems(capsys: pytest.CaptureFixture[str]) -> None:
    scores = {"baseline": [1, 1, 0, 0, 1], "slot": [1, 0, 0, 1, 1]}
    groups = {"format": {"0": "rare", "1": "rare", "2": "plain", "3": "plain", "4": "plain"}}
    rows = results(gsm8k(), "extractive_match", scores, groups=groups)
    baseline, slot = (row.breakdown["format"] for row in rows)
    assert list(baseline) == ["rare", "plain"]
    assert (baseline["rare"].value, baseline["rare"].samples) == (1, 2)
    assert baseline["rare"].interval == pytest.approx([0.3424, 1], abs=1e-4)  # Wilson, 2 of 2
    assert baseline["rare"].difference is None
    assert slot["rare"].difference == -0.5
    assert slot["plain"].difference == pytest.approx(1 / 3)
    assert slot["plain"].difference_interval == tango(1, 0, 3)
    show(RunRecord(arms=rows))
    shown = capsys.readouterr().out.splitlines()
    row = next(line for line in shown if line.split()[:2] == ["plain", "3"])
    assert "0.3333" in row and "0.6667" in row
