"""Logs of Inspect: one per arm and task, which ``inspect view`` shows."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from inspect_ai.log import (
    EvalConfig,
    EvalDataset,
    EvalLog,
    EvalMetric,
    EvalResults,
    EvalSample,
    EvalScore,
    EvalSpec,
    write_eval_log,
)
from inspect_ai.model import (
    ChatMessageAssistant,
    ChatMessageUser,
    GenerateConfig,
    ModelOutput,
    ModelUsage,
)
from inspect_ai.scorer import Score

from slot_vllm.evaluation import stored_tasks
from slot_vllm.evaluation.directory import RESULTS, read_results
from slot_vllm.evaluation.errors import ConfigError
from slot_vllm.evaluation.record import Result, RunRecord, Sample
from slot_vllm.evaluation.samples import SAMPLES, SampleFile
from slot_vllm.evaluation.stored_run import StoredRun
from slot_vllm.evaluation.unicode_text import encoded

SUFFIX = ".eval"


def write(directory: Path, output: Path) -> list[Path]:
    """Writes the logs of a run's directory into the directory ``output``.

    Raises ConfigError.
    """
    if output.exists() and not output.is_dir():
        raise ConfigError(f"{output}: it is a file; Inspect has a log per arm: a directory")
    results = read_results(directory / RESULTS)
    samples = SampleFile(directory / SAMPLES).read()
    samples = stored_tasks.with_texts(results, samples, directory)
    when = datetime.fromtimestamp((directory / RESULTS).stat().st_mtime, UTC)
    written = []
    output.mkdir(parents=True, exist_ok=True)
    for part in StoredRun(directory, "", results, samples, []).parts:
        if part.entry is not None:
            task = re.sub(r"[^\w.-]", "_", part.task)
            path = output / f"{task}-{part.arm}{SUFFIX}"
            write_eval_log(_log(results, part.entry, part.samples, when), str(path))
            written.append(path)
    return written


def _log(results: RunRecord, row: Result, answers: Sequence[Sample], when: datetime) -> EvalLog:
    generation = results.config.generation
    model = f"vllm/{results.config.model}"
    ids = list(dict.fromkeys(answer.id for answer in answers))
    settings = {**row.arm.model_dump(mode="json"), **row.removed} if row.arm else {}
    return EvalLog(
        status="success",
        eval=EvalSpec(
            created=when.isoformat(),
            task=f"{row.task}, {row.name}",
            model=model,
            model_generate_config=GenerateConfig(
                temperature=row.temperature(generation.temperature),
                top_p=generation.top_p,
                max_tokens=generation.max_new_tokens,
            ),
            dataset=EvalDataset(name=row.task, samples=len(ids), sample_ids=list(ids)),
            config=EvalConfig(epochs=1 + max(answer.sample for answer in answers)),
            packages=results.versions,
            metadata={"slot": settings, "run": results.config.name},
        ),
        results=_results(row),
        samples=[_sample(answer, model) for answer in answers],
    )


def _results(row: Result) -> EvalResults:
    scores = []
    for name, metric in row.metrics.items():
        if metric.value is None:
            continue
        figures = {"mean": metric.value}
        if metric.interval is not None:
            figures |= {"lower": metric.interval[0], "upper": metric.interval[1]}
        if metric.stderr is not None:
            figures |= {"stderr": metric.stderr}
        metrics = {key: EvalMetric(name=key, value=value) for key, value in figures.items()}
        said = {"words": metric.words} if metric.words else None
        scores.append(EvalScore(name=name, scorer=name, metrics=metrics, metadata=said))
    return EvalResults(total_samples=row.samples, completed_samples=row.samples, scores=scores)


def _sample(answer: Sample, model: str) -> EvalSample:
    prompt, text = encoded(answer.prompt or ""), encoded(answer.completion)
    output = ModelOutput.from_content(
        model, text, stop_reason="max_tokens" if answer.cut_off else "stop"
    )
    output.usage = ModelUsage(
        input_tokens=answer.prompt_tokens,
        output_tokens=answer.generated_tokens,
        total_tokens=answer.prompt_tokens + answer.generated_tokens,
    )
    return EvalSample(
        id=answer.id,
        epoch=answer.sample + 1,
        input=prompt,
        target=[encoded(gold) for gold in answer.gold or []],
        messages=[ChatMessageUser(content=prompt), ChatMessageAssistant(content=text)],
        output=output,
        scores={
            name: Score(value=score, answer=text)
            for name, score in answer.scores.items()
            if score is not None
        },
        metadata={
            "first_loss": answer.first_loss,
            "last_loss": answer.last_loss,
            "seed": answer.seed,
        },
    )
