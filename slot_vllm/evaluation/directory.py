"""The directory of a run: its configuration, samples, results and log."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from slot_vllm.evaluation.config import ConfigError, RunConfig
from slot_vllm.evaluation.samples import SampleFile, write_whole
from slot_vllm.evaluation.token_shifts import Inspection


class RunDirectory:
    """``config.yaml`` (as it ran), samples, results, inspection, report and log.

    A finished run is replaced by one of the same configuration. Anything else that is here would
    be lost: it is kept unless ``overwrite`` is given.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.samples = SampleFile(path / "samples.jsonl")
        self.log = path / "run.log"
        self._config = path / "config.yaml"
        self._inspection = path / "inspection.json"
        self._results = path / "results.json"
        self._report = path / "report.html"

    def check(self, config: RunConfig, resume: bool, overwrite: bool) -> None:
        """Raises ConfigError if the run must not write here."""
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"{self.path}: the output directory is a file")
        if overwrite:
            return
        if not self._config.exists():
            for file in (self.samples.path, self._inspection, self._results, self.log):
                if file.exists():
                    raise ConfigError(
                        f"{file} is there, but no {self._config.name} that says which run it is "
                        "of; --overwrite replaces it, --output-dir DIR writes elsewhere"
                    )
            return
        difference = self._difference(config)
        if difference is not None:
            other = "--resume needs the same one" if resume else "--overwrite replaces it"
            raise ConfigError(
                f"{self.path} holds a run of another configuration ({difference}); {other}, "
                "--output-dir DIR writes elsewhere"
            )
        if not resume and not self._results.exists():
            raise ConfigError(
                f"{self.path} holds an unfinished run; --resume continues it, --overwrite "
                "replaces it"
            )

    def open(self, config: RunConfig, resume: bool) -> None:
        """Creates the directory; what an earlier run left goes, unless this one resumes it."""
        self.path.mkdir(parents=True, exist_ok=True)
        if not resume:
            files = (self._results, self._inspection, self._report, self.samples.path, self.log)
            for file in files:
                file.unlink(missing_ok=True)
        heading = "# The configuration of this run, defaults included.\n"
        write_whole(self._config, heading + yaml.safe_dump(_plain(config), sort_keys=False))

    @property
    def inspected(self) -> bool:
        """Whether the run's inspection is here."""
        return self._inspection.exists()

    def write_inspection(self, inspections: Sequence[Inspection]) -> None:
        """Writes ``inspection.json``."""
        entries = [inspection.as_json() for inspection in inspections]
        write_whole(self._inspection, json.dumps(entries, allow_nan=False) + "\n")

    def write_results(self, results: dict[str, Any]) -> Path:
        """Writes ``results.json`` and returns its path."""
        write_whole(self._results, json.dumps(results, indent=2, allow_nan=False) + "\n")
        return self._results

    def _difference(self, config: RunConfig) -> str | None:
        """The first setting that differs from the run that is here, other than the name, how many
        replicas of the engine answer, and whether delta is inspected."""
        try:
            here = yaml.safe_load(self._config.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            here = None
        if not isinstance(here, dict):
            return f"{self._config.name} cannot be read"
        free = {"name": None, "ray": None, "inspect": None}
        return _first_difference({**_plain(config), **free}, {**here, **free})


def _plain(config: RunConfig) -> dict[str, Any]:
    return config.model_dump(mode="json")


def _first_difference(now: Any, here: Any, key: str = "") -> str | None:
    if now == here:
        return None
    if isinstance(now, dict) and isinstance(here, dict):
        pairs = [(name, now.get(name), here.get(name)) for name in {**now, **here}]
    elif isinstance(now, list) and isinstance(here, list) and len(now) == len(here):
        pairs = [(str(i), *pair) for i, pair in enumerate(zip(now, here, strict=True))]
    else:
        return f"{key}={now!r}, there {here!r}"
    below = (_first_difference(a, b, f"{key}.{name}" if key else name) for name, a, b in pairs)
    return next((difference for difference in below if difference is not None), None)
