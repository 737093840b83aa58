"""Runs whose arms have settings that were removed: read, reported, scored, resumed or refused."""

import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import yaml

from slot_vllm.evaluation import report
from slot_vllm.evaluation.config import load
from slot_vllm.evaluation.directory import RunDirectory, read_results
from slot_vllm.evaluation.errors import ConfigError
from slot_vllm.evaluation.export import export
from slot_vllm.evaluation.rescore import RESCORED, rescore
from tests.conftest import ROOT
from tests.evaluation.conftest import WriteConfig
from tests.evaluation.finished_runs import finish

FORMER = {
    **{"optimizer": "adamw", "lr_schedule": "constant", "tolerance": 0.0, "target": "hidden"},
    **{"guard": "none", "max_kl": None},
}
SAID = r"removed in 0\.2\.0 .*: AdamW takes the steps; use slot_lr and slot_steps$"
REFERENCE = sorted(path.parent for path in (ROOT / "logs/reference").rglob("results.json"))


def stored(path: Path, **settings: Any) -> Path:
    """A finished run as release 0.1 wrote it, its arm with SLOT with other settings."""
    finish(path)
    config = yaml.safe_load((path / "config.yaml").read_text())
    heading = (path / "config.yaml").read_text().partition("\n")[0]
    results = json.loads((path / "results.json").read_text())
    rows = [row["arm"] for row in results["arms"]]
    for arm in [*config["arms"], *results["config"]["arms"], *rows]:
        arm |= FORMER if arm["name"] == "baseline" else {**FORMER, **settings}
    (path / "config.yaml").write_text(f"{heading}\n{yaml.safe_dump(config)}")
    (path / "results.json").write_text(json.dumps(results))
    return path


@pytest.mark.parametrize("value", ["sgd", "adamw"])
def test_an_arm_that_names_one(write_config: WriteConfig, value: str) -> None:
    arms = [{"name": "baseline", "steps": 0}, {"name": "slot", "optimizer": value}]
    with pytest.raises(ConfigError, match=rf"yaml: arms\.1\.optimizer: {SAID}"):
        load(write_config(arms=arms))
    with pytest.raises(ConfigError, match=rf"yaml: arms\.1\.optimizer: {SAID}"):
        load(write_config(), [f"arms.1.optimizer={value}"])
    sweep = {"steps": [1], "lr": [0.1], "settings": {"optimizer": value}}
    with pytest.raises(ConfigError, match=rf"sweep\.settings.* optimizer: {SAID}"):
        load(write_config(sweep=sweep))


def test_a_run_that_did_not_use_them_goes_on(tmp_path: Path) -> None:
    path = stored(tmp_path / "run")
    assert read_results(path / "results.json").arms[1].removed == {}
    directory = RunDirectory(path)
    now = finish(tmp_path / "now")
    # As it was begun, and by the file that it left.
    for config in (load(now / "config.yaml"), load(path / "config.yaml")):
        directory.check(config, resume=True, overwrite=False)
    directory.open(load(now / "config.yaml"), resume=True)
    assert (path / "results.json").exists() and "optimizer" not in directory._config.read_text()
    assert rescore(path)[0].startswith("aime24, pass@k:k=1: 0 of 16 scores changed")
    assert "optimizer" not in (path / RESCORED).read_text()
    text = report.write([path, now], tmp_path / "page.html").read_text()
    assert "another arm" not in text and "optimizer" not in text


def test_what_was_used_is_shown_and_cannot_be_run_again(tmp_path: Path) -> None:
    path, now = stored(tmp_path / "run", optimizer="sgd"), finish(tmp_path / "now")
    (_, slot) = read_results(path / "results.json").arms
    assert slot.arm is not None and slot.removed == {"optimizer": "sgd"}
    for config in (now, path):
        with pytest.raises(ConfigError, match=r"arms\.1\.optimizer: removed in 0\.2\.0"):
            RunDirectory(path).check(load(config / "config.yaml"), resume=True, overwrite=False)
    for pair, said in (([path, now], "sgd and adamw"), ([now, path], "adamw and sgd")):
        text = report.write(pair, tmp_path / "page.html").read_text()
        assert f"slot is another arm in each run: optimizer {said}." in text
    # What is scored again still says so, and what is packed.
    assert rescore(path)[0].startswith("aime24, pass@k:k=1: 0 of 16 scores changed")
    export(path, "packed", tmp_path / "packed")
    for written in (path / RESCORED, tmp_path / "packed" / "results.json"):
        again = read_results(written)
        assert [row.removed for row in again.arms] == [{}, {"optimizer": "sgd"}]
        assert again.config.arms[1]["optimizer"] == "sgd"
    assert "problem" in report.write([tmp_path / "packed"], tmp_path / "page.html").read_text()


def test_a_run_whose_delta_was_scaled(tmp_path: Path) -> None:
    path = stored(tmp_path / "run", guard="holdout", max_kl=0.003)
    results = json.loads((path / "results.json").read_text())
    results["arms"][1] |= {"scale": 0.12, "applied": 0.5}
    (path / "results.json").write_text(json.dumps(results))
    (_, slot) = read_results(path / "results.json").arms
    assert slot.removed == {"guard": "holdout", "max_kl": 0.003}
    assert rescore(path)[0].startswith("aime24, pass@k:k=1: 0 of 16 scores changed")
    now = finish(tmp_path / "now")
    text = report.write([path, now], tmp_path / "page.html").read_text()
    assert "slot is another arm in each run: guard holdout and none, max_kl 0.003 and None." in text


def test_an_arm_of_a_removed_preset(write_config: WriteConfig) -> None:
    arms = [{"name": "baseline", "steps": 0}, {"name": "safe", "preset": "safe"}]
    with pytest.raises(ConfigError, match=r"arms\.1\.preset=safe: removed in 0\.2\.0 .*slot_steps"):
        load(write_config(arms=arms))
    sweep = {"steps": [1], "lr": [0.1], "settings": {"preset": "safe"}}
    with pytest.raises(ConfigError, match=r"sweep\.settings.* preset=safe: removed in 0\.2\.0"):
        load(write_config(sweep=sweep))


def test_exports_say_what_was_used(tmp_path: Path) -> None:
    from inspect_ai.log import read_eval_log

    path = stored(tmp_path / "run", optimizer="sgd", tolerance=0.5)
    export(path, "every_eval_ever", tmp_path / "out.json")
    values = json.loads((tmp_path / "out.json").read_text())
    found = [result["generation_config"] for result in values["evaluation_results"]]
    keys = ("slot_steps", "slot_optimizer", "slot_tolerance")
    said = {tuple(map(one["additional_details"].get, keys)) for one in found}
    assert said == {("0", None, None), ("3", "sgd", "0.5")}
    export(path, "inspect", tmp_path / "logs")
    metadata = read_eval_log(str(tmp_path / "logs" / "aime24-slot.eval")).eval.metadata
    assert metadata is not None and metadata["slot"]["optimizer"] == "sgd"


@pytest.mark.parametrize("run", REFERENCE, ids=lambda path: path.name)
def test_the_committed_runs(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    results = read_results(tmp_path / "run" / "results.json")
    assert all(row.arm is not None for row in results.arms)
    used = any(row.removed for row in results.arms)
    with pytest.raises(ConfigError, match="removed in") if used else nullcontext():
        config = load(tmp_path / "run" / "config.yaml")
        RunDirectory(tmp_path / "run").check(config, resume=True, overwrite=False)
