"""The JSON of Every Eval Ever is what its schema (0.3.0) and its own classes accept."""

import json
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from slot_vllm import cli
from slot_vllm.evaluation.export import export
from tests.evaluation.finished_runs import finish
from tests.evaluation.stored_runs import LAST_RELEASE

LAST = LAST_RELEASE / "quickstart"
Details = dict[str, str]


class Part(BaseModel):
    """As the schema has it: no number for a text, and here no key that we do not mean."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class Source(Part):
    source_name: str
    source_type: Literal["documentation", "evaluation_run"]
    source_organization_name: str
    evaluator_relationship: Literal["first_party", "third_party", "collaborative", "other"]


class Named(Part):
    name: str
    version: str


class Library(Named):
    additional_details: Details


class ModelDetails(BaseModel):
    model_config = ConfigDict(strict=True)

    deployment_type: Literal["self_deployed", "externally_managed", "unknown"]
    model_availability: Literal["open_weights", "closed_weights", "unknown"]


class Model(Part):
    name: str
    id: str
    inference_engine: Named
    additional_details: ModelDetails


class Data(Part):
    dataset_name: str
    source_type: Literal["other"]
    additional_details: Details


class MetricConfig(Part):
    metric_id: str
    metric_name: str
    lower_is_better: bool


class StandardError(Part):
    value: float


class Interval(Part):
    lower: float
    upper: float
    confidence_level: float = Field(ge=0, le=1)


class Uncertainty(Part):
    num_samples: int
    standard_error: StandardError | None = None
    confidence_interval: Interval | None = None


class Score(Part):
    score: float
    details: Details
    uncertainty: Uncertainty


class Arguments(Part):
    temperature: float
    top_p: float
    top_k: float | None = None
    max_tokens: int | None = Field(default=None, ge=1)


class Generation(Part):
    generation_args: Arguments
    additional_details: Details


class EvaluationResult(Part):
    evaluation_result_id: str
    evaluation_name: str
    source_data: Data
    metric_config: MetricConfig
    score_details: Score
    generation_config: Generation


class Log(Part):
    schema_version: Literal["0.3.0"]
    evaluation_id: str
    evaluation_timestamp: str
    retrieved_timestamp: str
    source_metadata: Source
    eval_library: Library
    model_info: Model
    evaluation_results: list[EvaluationResult] = Field(min_length=1)


def exported(release: str, directory: Path) -> str:
    run = LAST if release == "last" else finish(directory / "run")
    [path] = export(run, "every_eval_ever", directory / "out.json")
    return path.read_text()


@pytest.mark.parametrize("release", ["last", "this"])
def test_it_has_what_the_schema_asks_for(release: str, tmp_path: Path) -> None:
    text = exported(release, tmp_path)
    log = Log.model_validate_json(text)
    ids = [result.evaluation_result_id for result in log.evaluation_results]
    assert len(ids) >= 4 and len({*ids}) == len(ids)
    # What is optional here is left out, never null.
    assert "null" not in text


def test_what_the_schema_does_not_accept_is_seen(tmp_path: Path) -> None:
    def wrong(change: Any) -> None:
        values = json.loads(text)
        change(values)
        with pytest.raises(ValidationError):
            Log.model_validate_json(json.dumps(values))

    text = exported("this", tmp_path)
    wrong(lambda log: log.pop("eval_library"))
    wrong(lambda log: log["model_info"]["additional_details"].pop("model_availability"))
    wrong(lambda log: log["evaluation_results"][0]["score_details"].update(score="0.5"))
    wrong(lambda log: log["evaluation_results"][0]["score_details"]["details"].update(p_value=0.5))


def test_a_result_per_task_arm_and_metric(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generation = {"temperature": 0.6, "top_p": 0.95, "max_new_tokens": 64}
    run = finish(tmp_path / "run", generation=generation, model="org/name")
    path = tmp_path / "out.json"
    capsys.readouterr()
    arguments = ["export", str(run), "--format", "every_eval_ever", "--output", str(path)]
    assert cli.main(arguments) == 0
    values = json.loads(path.read_text())
    assert values["model_info"]["id"] == "org/name"
    found = {result["evaluation_result_id"]: result for result in values["evaluation_results"]}
    assert len(found) == 2 * 4
    slot = found["aime24/slot/pass@k:k=1"]
    assert slot["score_details"]["score"] == 0.5
    assert slot["score_details"]["uncertainty"]["num_samples"] == 8
    assert slot["score_details"]["details"]["difference_to_baseline"] == "0.375"
    assert slot["generation_config"]["generation_args"] == {
        "temperature": 0.6,
        "top_p": 0.95,
        "max_tokens": 64,
    }
    assert slot["generation_config"]["additional_details"]["slot_steps"] == "3"
    assert not slot["metric_config"]["lower_is_better"]
    assert found["aime24/slot/loops"]["metric_config"]["lower_is_better"]


@pytest.mark.parametrize("release", ["last", "this"])
def test_its_own_classes_accept_it(release: str, tmp_path: Path) -> None:
    eval_types = pytest.importorskip(
        "every_eval_ever.eval_types", reason="every-eval-ever, which needs Python 3.12, is absent"
    )
    log = eval_types.EvaluationLog.model_validate_json(exported(release, tmp_path))
    assert len(log.evaluation_results) >= 4
