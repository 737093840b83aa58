"""The directory of a run: its configuration, samples, results and log."""

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from slot_vllm.evaluation.config import AS_IT_RAN, RunConfig, Task
from slot_vllm.evaluation.errors import ConfigError
from slot_vllm.evaluation.inspection_record import Inspection
from slot_vllm.evaluation.record import SCHEMA, RunRecord, schema_of
from slot_vllm.evaluation.run_settings import changed, differences, without_system_prompt
from slot_vllm.evaluation.samples import SAMPLES, SampleFile, write_whole
from slot_vllm.removed import of_stored_run
from slot_vllm.validation_errors import describe, first_fault

RESULTS = "results.json"
INSPECTION = "inspection.json"
CONFIG = "config.yaml"
# What a run that is not finished is to replace.
REPLACED = ".replaced"
_Model = TypeVar("_Model")


class RunDirectory:
    """``config.yaml`` (as it ran), samples, results, inspection, report and log.

    What is here is kept unless ``overwrite`` is given, and then until the new run has finished. The
    log is every run's.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.samples = SampleFile(path / SAMPLES)
        self.log = path / "run.log"
        self._config = path / CONFIG
        self._inspection = path / INSPECTION
        self.results = path / RESULTS
        self._report = path / "report.html"
        self._replaced = path / REPLACED

    def check(self, config: RunConfig, resume: bool, overwrite: bool) -> None:
        """Raises ConfigError if the run must not write here."""
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"{self.path}: the output directory is a file")
        if overwrite:
            return
        if not self._config.exists():
            for file in (self.samples.found, self._inspection, self.results):
                if file.exists():
                    raise ConfigError(
                        f"{file} is there, but no {self._config.name} that says which run it is "
                        "of; --overwrite replaces it, --output-dir DIR writes elsewhere"
                    )
            return
        if not resume:
            held = "a finished run" if self.results.exists() else "an unfinished run"
            more = "adds arms or problems to" if self.results.exists() else "continues"
            raise ConfigError(
                f"{self.path} holds {held}; --resume {more} it, --overwrite replaces it, "
                "--output-dir DIR writes elsewhere"
            )
        difference = self._difference(config)
        if difference is not None:
            raise ConfigError(
                f"{self.path} holds a run of another configuration ({difference}); --resume needs "
                "the same one, --output-dir DIR writes elsewhere"
            )

    def open(self, config: RunConfig, resume: bool) -> None:
        """Creates the directory. What an earlier run left is set aside, unless this one resumes it;
        then only what is made of all answers is, if there are to be more of them."""
        self.path.mkdir(parents=True, exist_ok=True)
        here = self._recorded()
        findings = [self.results, self._report, self._inspection]
        if not resume:
            files = [*findings, self.samples.path, self.samples.packed]
            self._set_aside([*files, self._config])
        elif isinstance(here, str) or _part(config, here) != config:
            self._set_aside(findings)
        values = config.model_dump(mode="json")
        write_whole(self._config, AS_IT_RAN + yaml.safe_dump(values, sort_keys=False))

    @property
    def inspected(self) -> bool:
        """Whether the run's inspection is here."""
        return self._inspection.exists()

    def write_inspection(self, inspections: Sequence[Inspection]) -> None:
        """Writes ``inspection.json``."""
        entries = [inspection.model_dump(mode="json") for inspection in inspections]
        write_whole(self._inspection, json.dumps(entries, allow_nan=False) + "\n")

    def finish(self) -> None:
        """Once all is written: what the run replaces goes."""
        shutil.rmtree(self._replaced, ignore_errors=True)

    def _set_aside(self, files: Sequence[Path]) -> None:
        """Of several runs that did not finish, what the first of them was to replace stays."""
        if self.results.exists():
            self.finish()
        # It is moved last: without it, moving was interrupted.
        moved = (self._replaced / self._config.name).exists()
        for file in files:
            if file.exists() and moved:
                file.unlink()
            elif file.exists():
                self._replaced.mkdir(exist_ok=True)
                file.replace(self._replaced / file.name)

    def _difference(self, config: RunConfig) -> str | None:
        """The first setting that differs from the run that is here, other than the name, how many
        replicas of the engine answer, whether delta is inspected, and where the data and the system
        prompt's file are: what they say is compared, by the answers' hashes and by the file's. A
        run that is resumed may have further arms and more problems."""
        here = self._recorded()
        if isinstance(here, str):
            return here
        now = _without_places(_part(config, here))
        there = _without_places(here)
        found = [differences(one, there) for one in (now, without_system_prompt(now))]
        return "{}={!r}, there {!r}".format(*found[0][0]) if all(found) else None

    def _recorded(self) -> RunConfig | str:
        """The configuration that is here, with the defaults of settings that an earlier release did
        not have, or, in words, why it cannot be read."""
        try:
            here = yaml.safe_load(self._config.read_text(encoding="utf-8"))
            return RunConfig.model_validate(of_stored_run(here) if isinstance(here, dict) else here)
        except ValidationError as error:
            if isinstance(here, dict):
                wrong = describe(error, RunConfig)
                return f"{self._config.name} was written by another release or by hand: {wrong}"
        except (OSError, ValueError, yaml.YAMLError):
            pass
        return f"{self._config.name} cannot be read"


def _without_places(config: RunConfig) -> dict[str, Any]:
    of_run = dict.fromkeys(("name", "ray", "inspect", "system_prompt_file"), True)
    free: dict[str, Any] = {**of_run, "tasks": {"__all__": {"data"}}}
    return config.model_dump(mode="json", exclude=free)


def _part(now: RunConfig, here: RunConfig) -> RunConfig:
    """``now`` without the arms and problems that ``here`` lacks. Of a selection, the problems are
    what it selects by: they stay."""
    known = {arm.name for arm in here.arms}
    arms = [arm for arm in now.arms if arm.name in known]
    if now.select is not None:
        return changed(now, arms=arms)
    there = {task.name: task for task in here.tasks}
    tasks = [_first_problems(task, there.get(task.name, task)) for task in now.tasks]
    return changed(now, arms=arms, tasks=tasks)


def _first_problems(now: Task, here: Task) -> Task:
    more = here.max_samples is not None and (now.max_samples or math.inf) > here.max_samples
    return changed(now, max_samples=here.max_samples) if more else now


def write_results(results: RunRecord, path: Path) -> Path:
    """Writes a record and returns its path."""
    write_whole(path, json.dumps(results.as_json(), indent=2, allow_nan=False) + "\n")
    return path


def read_results(path: Path) -> RunRecord:
    """A ``results.json`` of this release or of the last. Raises ConfigError."""
    if not path.exists():
        raise ConfigError(f"{path}: no such file; a run writes it when all arms have answered")
    values = _json(path)
    schema = schema_of(values)
    if schema not in range(1, SCHEMA + 1):
        raise ConfigError(
            f"{path}: schema={schema!r}: written by another release; allowed: 1 to {SCHEMA}"
        )
    return _validated(path, TypeAdapter(RunRecord), values)


def read_inspections(directory: Path) -> list[Inspection]:
    """What the directory's ``inspection.json`` holds; nothing without one. Raises ConfigError."""
    path = directory / INSPECTION
    return _validated(path, TypeAdapter(list[Inspection]), _json(path)) if path.exists() else []


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not JSON: {error}") from None


def _validated(path: Path, kind: TypeAdapter[_Model], values: Any) -> _Model:
    try:
        return kind.validate_python(values)
    except ValidationError as error:
        raise ConfigError(f"{path}: {first_fault(error)}") from None
