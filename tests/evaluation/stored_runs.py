"""Directories of runs that never ran, for tests of what reads them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from slot_vllm.evaluation.comparison import compare
from slot_vllm.evaluation.record import Arm, Metric, Result, Sample
from slot_vllm.evaluation.run_settings import text_hash
from slot_vllm.evaluation.samples import SampleFile
from slot_vllm.evaluation.statistics import mean_interval

Scores = Mapping[str, Sequence[float]]

# Two runs as release 0.1 wrote them.
LAST_RELEASE = Path(__file__).parent / "last_release"


def answer(arm: str, problem: int, score: float, **settings: Any) -> Sample:
    """One answer; with SLOT unless the arm is the baseline."""
    slot = arm != "baseline"
    values: dict[str, Any] = {
        "arm": arm,
        "task": "sums",
        "id": str(problem),
        "sample": 0,
        "prompt": f"prompt {problem}",
        "completion": f"{arm} answers {problem}",
        "gold": [str(problem)],
        "score": score,
        "scores": {"exact": score},
        "steps": 5 if slot else 0,
        "lr": 0.1,
        "first_loss": 2.0 + problem / 10 if slot else None,
        "last_loss": 1.0 + problem / 10 if slot else None,
        "seed": problem,
        "finish_reason": "length" if problem % 4 == 3 else "stop",
        "prompt_tokens": 10,
        "generated_tokens": 100 + problem,
        "seconds": 2.0,
    }
    values |= settings
    return Sample(**{**values, "prompt_sha256": text_hash(values["prompt"])})


def answers(scores: Scores, **settings: Any) -> list[Sample]:
    """One answer per arm and problem."""
    return [
        answer(arm, problem, score, **settings)
        for arm, of_arm in scores.items()
        for problem, score in enumerate(of_arm)
    ]


def entries(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """What ``results.json`` says of them under ``arms``."""
    scores: dict[tuple[str, str], dict[str, float]] = {}
    for sample in samples:
        scores.setdefault((sample.task, sample.arm), {})[sample.id] = sample.score or 0.0
    found = []
    for (task, arm), of_arm in scores.items():
        of_part = [s for s in samples if (s.task, s.arm) == (task, arm)]
        values = np.array(list(of_arm.values()), float)
        baseline = scores.get((task, "baseline"), {})
        arms = {a: s for (t, a), s in scores.items() if t == task and a != "baseline"}
        comparison = compare(arms, baseline).get(arm)
        losses = [(s.first_loss, s.last_loss) for s in of_part if s.first_loss is not None]
        first, last = np.array(losses, float).mean(axis=0).tolist() if losses else (None, None)
        metric = Metric(value=float(values.mean()), stderr=0.0, interval=mean_interval(values))
        if comparison:
            metric = metric.model_copy(update=dict(comparison))
        words = f"{task}, {arm} against the baseline: exact: {metric.words}" if comparison else None
        result = Result(
            **{**dict(metric), "words": words},
            name=arm,
            task=task,
            metric="exact",
            samples=len(values),
            generated_tokens=sum(s.generated_tokens for s in of_part),
            steps=of_part[0].steps,
            lr=of_part[0].lr,
            arm=Arm(name=arm, steps=of_part[0].steps, lr=of_part[0].lr),
            first_loss=first,
            last_loss=last,
            metrics={"exact": metric},
        )
        found.append(result.model_dump(mode="json"))
    return found


def store(path: Path, samples: Sequence[Sample], **results: Any) -> Path:
    """Writes a run's directory; ``results`` are laid over what ``results.json`` says."""
    path.mkdir(parents=True)
    SampleFile(path / "samples.jsonl").rewrite(samples)
    values = {
        "schema": 2,
        "arms": entries(samples),
        "config": {"name": path.name, "model": "models/tiny", "generation": {"temperature": 0.6}},
        "versions": {"vllm": "0.32.0"},
        "machine": {"cpus": 2, "accelerators": []},
        **results,
    }
    (path / "results.json").write_text(json.dumps(values), encoding="utf-8")
    return path
