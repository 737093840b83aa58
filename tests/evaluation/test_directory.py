"""Which run a directory holds, and what may be written there."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from slot_vllm.evaluation.config import RunConfig, load
from slot_vllm.evaluation.directory import RunDirectory
from slot_vllm.evaluation.errors import ConfigError
from slot_vllm.evaluation.run_settings import differences
from tests.evaluation.conftest import ARMS, PROBLEMS
from tests.evaluation.finished_runs import finish
from tests.evaluation.stored_runs import LAST_RELEASE


def test_a_resumed_run_may_have_further_arms(tmp_path: Path) -> None:
    directory = RunDirectory(finish(tmp_path / "run"))
    more = [*ARMS, {"name": "long", "steps": 9}]

    def check(arms: list[dict[str, Any]], resume: bool = True) -> None:
        directory.check(RunConfig.model_validate({**values, "arms": arms}), resume, False)

    values = yaml.safe_load((directory.path / "config.yaml").read_text())
    check(ARMS)
    check(more)
    with pytest.raises(ConfigError, match="holds a finished run; --resume adds arms or problems"):
        check(more, resume=False)
    with pytest.raises(ConfigError, match=r"another configuration \(arms\.baseline\."):
        check(more[1:])
    with pytest.raises(ConfigError, match=r"another configuration \(arms\.slot\.lr=0\.7"):
        check([ARMS[0], {**ARMS[1], "lr": 0.7}, more[2]])
    # What was inspected had fewer arms.
    directory.write_inspection([])
    directory.open(RunConfig.model_validate({**values, "arms": ARMS}), resume=True)
    assert directory.inspected
    directory.open(RunConfig.model_validate({**values, "arms": more}), resume=True)
    assert not directory.inspected


def test_a_resumed_run_may_have_more_problems(tmp_path: Path) -> None:
    directory = RunDirectory(finish(tmp_path / "run"))
    values = yaml.safe_load((directory.path / "config.yaml").read_text())

    def run(count: int | None, **more: Any) -> RunConfig:
        tasks = [{**values["tasks"][0], "max_samples": count}]
        return RunConfig.model_validate({**values, "tasks": tasks, **more})

    def check(config: RunConfig) -> None:
        directory.check(config, resume=True, overwrite=False)

    directory.open(run(5), resume=True)
    directory.write_inspection([])
    for count in (5, 6, None):
        check(run(count))
    with pytest.raises(ConfigError, match=r"\(tasks\.aime24\.max_samples=4, there 5\)"):
        check(run(4))
    # The best of a sweep was selected by some of those problems.
    sweep: dict[str, Any] = {"steps": [1], "lr": [0.1]}
    directory.open(run(5, sweep=sweep, select={"split": 0.5}), resume=True)
    with pytest.raises(ConfigError, match=r"max_samples=6, there 5"):
        check(run(6, sweep=sweep, select={"split": 0.5}))
    directory.open(run(5), resume=True)
    directory.write_inspection([])
    directory.open(run(6), resume=True)
    assert not directory.inspected


def test_other_problems_are_another_run(tmp_path: Path) -> None:
    tasks = [{"name": "aime24", "data": str(PROBLEMS), "skip": 2, "max_samples": 3}]
    directory = RunDirectory(finish(tmp_path / "run", tasks=tasks))
    values = yaml.safe_load((directory.path / "config.yaml").read_text())

    def check(**task: Any) -> None:
        tasks = [{**values["tasks"][0], **task}]
        config = RunConfig.model_validate({**values, "tasks": tasks})
        directory.check(config, resume=True, overwrite=False)

    check(skip=2, max_samples=3)
    check(skip=2, max_samples=5)
    check(skip=2, max_samples=None)
    for other in (0, 1, 3):
        with pytest.raises(ConfigError, match=rf"\(tasks\.aime24\.skip={other}, there 2\)"):
            check(skip=other, max_samples=5)
        with pytest.raises(ConfigError, match=rf"\(tasks\.aime24\.skip={other}, there 2\)"):
            check(skip=other, max_samples=3)


def test_arms_and_tasks_may_come_in_another_order(tmp_path: Path) -> None:
    few = {"name": "aime24", "data": str(PROBLEMS), "max_samples": 3}
    many = {"name": "math_500", "data": str(PROBLEMS), "max_samples": 5}
    directory = RunDirectory(finish(tmp_path / "run", tasks=[few]))
    values = yaml.safe_load((directory.path / "config.yaml").read_text())

    def run(*tasks: dict[str, Any], arms: list[dict[str, Any]] = ARMS) -> RunConfig:
        return RunConfig.model_validate({**values, "tasks": [*tasks], "arms": arms})

    directory.open(run(few, many), resume=True)
    for config in (
        run(many, few, arms=ARMS[::-1]),
        run({**many, "max_samples": 6}, few),
        run(many, {**few, "max_samples": 4}),
    ):
        directory.check(config, resume=True, overwrite=False)
    for other, said in (
        (run(many, {**few, "max_samples": 2}), r"tasks\.aime24\.max_samples=2, there 3"),
        (run({**many, "max_samples": 4}, few), r"tasks\.math_500\.max_samples=4, there 5"),
        (run(many), r"tasks\.aime24\.name=None, there 'aime24'"),
    ):
        with pytest.raises(ConfigError, match=said):
            directory.check(other, resume=True, overwrite=False)


def test_what_is_empty_is_a_setting_too() -> None:
    filled = {"stop": ["a"], "engine": {"dtype": "auto"}, "arms": [{"name": "slot", "lr": 0.1}]}
    empty: dict[str, Any] = {"stop": [], "engine": {}, "arms": []}
    assert differences(empty, filled) == [
        ("stop", [], ["a"]),
        ("engine.dtype", None, "auto"),
        ("arms.slot.name", None, "slot"),
        ("arms.slot.lr", None, 0.1),
    ]
    nothing = {"stop": None, "engine": None, "arms": None}
    assert differences(empty, nothing) == [(key, empty[key], None) for key in empty]
    assert differences({}, {"stop": []}) == [("stop", None, [])]


def test_data_and_the_system_prompt_s_file_may_lie_elsewhere(tmp_path: Path) -> None:
    run = tmp_path / "run"
    places = [tmp_path / name for name in ("here.txt", "there.txt", "other.txt")]
    for place in places:
        place.write_text("Answer briefly." if place.stem != "other" else "Answer at length.")
    digest = hashlib.sha256(places[0].read_bytes()).hexdigest()
    finish(run, system_prompt_file=str(places[0]), system_prompt_sha256=digest)

    def check(file: Path, data: str | None) -> None:
        config = load(run / "config.yaml")
        values = {**config.model_dump(mode="json"), "system_prompt_file": str(file)}
        values["system_prompt_sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
        values["tasks"][0]["data"] = data
        checked = RunConfig.model_validate(values)
        RunDirectory(run).check(checked, resume=True, overwrite=False)

    for data in (str(PROBLEMS), "elsewhere.jsonl", None):
        check(places[1], data)
    with pytest.raises(ConfigError, match=r"another configuration \(system_prompt_sha256="):
        check(places[2], str(PROBLEMS))


def test_what_is_to_be_replaced_survives_interruptions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = finish(tmp_path / "run")
    directory = RunDirectory(path)
    (path / "run.log").write_text("long ago")
    kept = {file.name: file.read_bytes() for file in path.iterdir()}
    config = load(path / "config.yaml", ["generation.seed=7"])

    def there() -> dict[str, bytes]:
        files = [*path.iterdir(), *(path / ".replaced").iterdir()]
        return {file.name: file.read_bytes() for file in files if file.is_file()}

    move, moves = Path.replace, []

    def interrupted(self: Path, target: Path) -> Path:
        moves.append(target)
        if len(moves) == 2:
            raise KeyboardInterrupt
        return move(self, target)

    for _ in range(len(kept) - 2):
        moves.clear()
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", interrupted)
            with pytest.raises(KeyboardInterrupt):
                directory.open(config, resume=False)
        assert there() == kept
    directory.open(config, resume=False)
    replaced = path / ".replaced"
    # The log is every run's.
    assert (path / "run.log").read_bytes() == kept.pop("run.log")
    assert {file.name: file.read_bytes() for file in replaced.iterdir()} == kept
    # Begun anew, and begun anew.
    directory.open(config, resume=False)
    assert {file.name: file.read_bytes() for file in replaced.iterdir()} == kept
    # It has results, though not all else that a run writes: now it is what is kept.
    (path / "results.json").write_text("{}")
    directory.open(config, resume=False)
    assert (replaced / "results.json").read_text() == "{}"
    directory.finish()
    assert {file.name for file in path.iterdir()} == {"config.yaml", "run.log"}


def test_a_run_that_gets_more_is_not_finished(tmp_path: Path) -> None:
    path = finish(tmp_path / "run")
    directory = RunDirectory(path)
    values = yaml.safe_load((path / "config.yaml").read_text())
    more = RunConfig.model_validate({**values, "arms": [*ARMS, {"name": "long", "steps": 9}]})
    directory.open(RunConfig.model_validate(values), resume=True)
    assert (path / "results.json").exists()
    samples = (path / "samples.jsonl").read_bytes()
    directory.open(more, resume=True)
    assert not (path / "results.json").exists()
    assert (path / ".replaced" / "results.json").exists()
    assert (path / "samples.jsonl").read_bytes() == samples
    with pytest.raises(ConfigError, match="holds an unfinished run"):
        directory.check(more, resume=False, overwrite=False)


def test_a_run_of_the_last_release_is_resumed(tmp_path: Path) -> None:
    path = tmp_path / "quickstart"
    shutil.copytree(LAST_RELEASE / "quickstart", path)
    config = load(path / "config.yaml")
    directory = RunDirectory(path)
    directory.check(config, resume=True, overwrite=False)
    other = load(path / "config.yaml", ["arms.1.reduction=mean_over_rows"])
    said = r"\(arms\.slot\.reduction='mean_over_rows', there 'mean'\)"
    with pytest.raises(ConfigError, match=said):
        directory.check(other, resume=True, overwrite=False)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: x\nlost_setting: 1\n", "written by another release or by hand: lost_setting: unk"),
        ("[]", "config.yaml cannot be read"),
        ("a: [", "config.yaml cannot be read"),
    ],
)
def test_a_configuration_that_cannot_be_read_says_so(tmp_path: Path, text: str, said: str) -> None:
    run = finish(tmp_path / "run")
    config = load(run / "config.yaml")
    (run / "config.yaml").write_text(text)
    with pytest.raises(ConfigError) as error:
        RunDirectory(run).check(config, resume=True, overwrite=False)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
