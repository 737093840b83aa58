"""The shared form of evaluation results of Every Eval Ever (its schema's version 0.3.0)."""

import json
import time
from pathlib import Path
from typing import Any

from slot_vllm.evaluation.directory import RESULTS, read_results
from slot_vllm.evaluation.record import Metric, Result, RunRecord
from slot_vllm.evaluation.samples import write_whole

SCHEMA_VERSION = "0.3.0"
_UNKNOWN = "unknown"


def write(directory: Path, output: Path) -> list[Path]:
    """Writes one file about a run: an evaluation result per task, arm and metric.

    Raises ConfigError for a directory without a finished run.
    """
    path = directory / RESULTS
    results = read_results(path)
    values = _log(results, int(path.stat().st_mtime))
    write_whole(output, json.dumps(values, indent=2, allow_nan=False) + "\n")
    return [output]


def _log(results: RunRecord, when: int) -> dict[str, Any]:
    config = results.config
    model = config.published_model or config.model or _UNKNOWN
    retrieved = str(int(time.time()))
    return {
        "schema_version": SCHEMA_VERSION,
        "evaluation_id": f"{config.name or _UNKNOWN}/{model}/{retrieved}",
        "evaluation_timestamp": str(when),
        "retrieved_timestamp": retrieved,
        "source_metadata": {
            "source_name": "slot-vllm",
            "source_type": "evaluation_run",
            "source_organization_name": _UNKNOWN,
            "evaluator_relationship": "other",
        },
        "eval_library": {
            "name": "slot-vllm",
            "version": results.versions.get("slot-vllm", _UNKNOWN),
            "additional_details": dict(results.versions),
        },
        "model_info": {
            "name": model,
            "id": model,
            "inference_engine": {"name": "vllm", "version": results.versions.get("vllm")},
            "additional_details": {
                "deployment_type": "self_deployed",
                "model_availability": _UNKNOWN,
            },
        },
        "evaluation_results": [
            _result(results, row, name, metric)
            for row in results.arms
            for name, metric in (row.metrics or {row.metric: row}).items()
            if metric.value is not None
        ],
    }


def _result(results: RunRecord, row: Result, name: str, metric: Metric) -> dict[str, Any]:
    uncertainty: dict[str, Any] = {"num_samples": row.samples}
    if metric.stderr is not None:
        uncertainty["standard_error"] = {"value": metric.stderr}
    if metric.interval is not None:
        bounds = dict(zip(("lower", "upper"), metric.interval, strict=True))
        uncertainty["confidence_interval"] = {**bounds, "confidence_level": 0.95}
    generation = results.config.generation
    # Here 0 and None say that there is no limit.
    limits = {"top_k": generation.top_k, "max_tokens": generation.max_new_tokens}
    return {
        "evaluation_result_id": f"{row.task}/{row.name}/{name}",
        "evaluation_name": row.task,
        "source_data": {
            "dataset_name": row.task,
            "source_type": "other",
            "additional_details": {"problems": str(row.samples)},
        },
        "metric_config": {
            "metric_id": f"{row.task}/{name}",
            "metric_name": name,
            "lower_is_better": metric.lower_is_better,
        },
        "score_details": {
            "score": metric.value,
            "details": _strings(
                {
                    "difference_to_baseline": metric.difference,
                    "p_value": metric.p_value,
                    "p_value_holm": metric.p_value_holm,
                    "words": metric.words,
                }
            ),
            "uncertainty": uncertainty,
        },
        "generation_config": {
            "generation_args": {
                "temperature": row.temperature(generation.temperature),
                "top_p": generation.top_p,
                **{key: limit for key, limit in limits.items() if limit},
            },
            "additional_details": {"slot_arm": row.name, **_settings(row)},
        },
    }


def _settings(row: Result) -> dict[str, str]:
    """The arm's requests, and its control."""
    asked = row.arm.request_args() if row.arm else {"slot_steps": row.steps, "slot_lr": row.lr}
    control = row.arm.control if row.arm else None
    said = {"control": control.model_dump(exclude_none=True)} if control else {}
    removed = {f"slot_{key}": value for key, value in row.removed.items()}
    return _strings({**asked, **removed, **said})


def _strings(values: dict[str, Any]) -> dict[str, str]:
    return {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in values.items()
        if value is not None
    }
