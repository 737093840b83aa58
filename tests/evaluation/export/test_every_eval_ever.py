"""The JSON of Every Eval Ever is what its own classes accept."""

import json
from pathlib import Path

import pytest

from slot_vllm import cli
from slot_vllm.evaluation.export import export
from tests.conftest import ROOT
from tests.evaluation.finished_runs import finish


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
    last = ROOT / "logs/reference/quickstart"
    run = last if release == "last" else finish(tmp_path / "run")
    [path] = export(run, "every_eval_ever", tmp_path / "out.json")
    log = eval_types.EvaluationLog.model_validate_json(path.read_text())
    assert len(log.evaluation_results) >= 4
