"""Recorded answers of the transformers reference, one file per tiny model under ``answers/``.

``python -m pytest PATH --record-answers`` computes what is not there yet and keeps it;
``test_answers.py`` makes all of them again, with ``--full``, and compares. An answer belongs to the
model's weights, its configuration and the case: what any other one would get is not found.
"""

import gzip
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock

RECORDED = Path(__file__).with_name("answers")
LOCK = Path(__file__).parents[2] / ".cache/answers.lock"
# Says that what is missing shall be recorded, in processes that tests start too.
RECORD = "SLOT_TEST_RECORD_ANSWERS"
# The tolerances are a hundred times as wide, and gaps are compared with 1e-3.
DIGITS = {"delta": 7, "losses": 7, "gaps": 4, "last_hidden": 7}


def fingerprint(model: Path) -> str:
    """Of its weights and what makes them a model."""
    config = json.loads((model / "config.json").read_text())
    config.pop("transformers_version", None)
    digest = hashlib.sha256()
    for file in sorted(model.glob("*.safetensors")):
        digest.update(file.read_bytes())
    digest.update(json.dumps(config, sort_keys=True).encode())
    return digest.hexdigest()


def _key(case: Mapping[str, Any]) -> str:
    """A greedy answer is the beginning of every longer one."""
    return json.dumps({**case, "new_tokens": None}, sort_keys=True)


class Answers:
    """The recorded answers of one model, as ``reference.py`` writes them, with
    ``last_hidden`` where it was asked for.

    file: where they are kept. model: the fingerprint that they belong to."""

    def __init__(self, file: Path, model: str) -> None:
        self.file, self.model = file, model
        self._kept: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}
        self._read()

    def _read(self) -> None:
        if not self.file.is_file():
            return
        kept = json.loads(gzip.decompress(self.file.read_bytes()))
        if kept["model"] == self.model:
            self._kept = {_key(case): (case, answer) for case, answer in kept["answers"]}

    def __iter__(self) -> Any:
        """(case, answer), both as dictionaries."""
        return iter(self._kept.values())

    def find(self, case: Mapping[str, Any], last_hidden: bool = False) -> dict[str, Any] | None:
        _, answer = self._kept.get(_key(case), (None, None))
        count = case["new_tokens"]
        if answer is None or len(answer["tokens"]) < count:
            return None
        if last_hidden and "last_hidden" not in answer:
            return None
        cut = {name: answer[name][:count] for name in ("tokens", "gaps")}
        return {**answer, **cut}

    def record(
        self,
        answers: Iterable[tuple[Mapping[str, Any], Mapping[str, Any]]],
        last_hidden: bool = False,
    ) -> None:
        """Beside what other processes recorded, and with whatever is known of a case already."""
        self.file.parent.mkdir(exist_ok=True)
        LOCK.parent.mkdir(exist_ok=True)
        with FileLock(LOCK):
            self._read()
            for case, answer in answers:
                rounded = {
                    name: _rounded(value, DIGITS[name]) if name in DIGITS else value
                    for name, value in answer.items()
                    if name != "last_hidden" or last_hidden
                }
                _, known = self._kept.get(_key(case), (None, {}))
                if len(known.get("tokens", ())) > len(rounded["tokens"]):
                    case = {**case, "new_tokens": len(known["tokens"])}
                    rounded |= {name: known[name] for name in ("tokens", "gaps")}
                self._kept[_key(case)] = (json.loads(json.dumps(case)), {**known, **rounded})
            ordered = [self._kept[key] for key in sorted(self._kept)]
            text = json.dumps({"model": self.model, "answers": ordered}, separators=(",", ":"))
            new = self.file.with_suffix(".new")
            new.write_bytes(gzip.compress(text.encode(), mtime=0))
            new.replace(self.file)


def _rounded(value: Any, digits: int) -> Any:
    if isinstance(value, list):
        return [_rounded(one, digits) for one in value]
    return float(f"{value:.{digits}g}")


@cache
def answers_of(model: str) -> Answers:
    """Of the model in this directory."""
    path = Path(model)
    return Answers(RECORDED / f"{path.name}.json.gz", fingerprint(path))


def recording() -> bool:
    return os.environ.get(RECORD) == "1"
