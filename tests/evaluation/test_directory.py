"""Which run a directory holds, and what may be written there."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from slot_vllm.evaluation.config import ConfigError, RunConfig
from slot_vllm.evaluation.directory import RunDirectory
from tests.evaluation.conftest import ARMS
from tests.evaluation.finished_runs import finish


def test_a_resumed_run_may_have_further_arms(tmp_path: Path) -> None:
    directory = RunDirectory(finish(tmp_path / "run"))
    more = [*ARMS, {"name": "long", "steps": 9}]

    def check(arms: list[dict[str, Any]], resume: bool = True) -> None:
        directory.check(RunConfig.model_validate({**values, "arms": arms}), resume, False)

    values = yaml.safe_load((directory.path / "config.yaml").read_text())
    check(ARMS)
    check(more)
    with pytest.raises(ConfigError, match=r"another configuration \(arms="):
        check(more, resume=False)
    with pytest.raises(ConfigError, match=r"another configuration \(arms="):
        check(more[1:])
    with pytest.raises(ConfigError, match=r"another configuration \(arms\.1\.lr=0\.7"):
        check([ARMS[0], {**ARMS[1], "lr": 0.7}, more[2]])
    # What was inspected had fewer arms.
    directory.write_inspection([])
    directory.open(RunConfig.model_validate({**values, "arms": ARMS}), resume=True)
    assert directory.inspected
    directory.open(RunConfig.model_validate({**values, "arms": more}), resume=True)
    assert not directory.inspected
