"""``samples.jsonl``: one line per answer, appended when its problem is finished."""

import gzip
import json
from collections.abc import Iterable
from pathlib import Path

from pydantic import ValidationError

from slot_vllm.evaluation.errors import ConfigError, bad_input
from slot_vllm.evaluation.record import Sample
from slot_vllm.validation_errors import first_fault

SAMPLES = "samples.jsonl"
PACKED = ".gz"


class SampleFile:
    """The samples of a run, in ``path`` or, packed, in ``path`` with ``.gz`` added."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.packed = path.with_name(path.name + PACKED)

    @property
    def found(self) -> Path:
        """The file that there is."""
        return self.packed if self.packed.exists() and not self.path.exists() else self.path

    def read(self) -> list[Sample]:
        """What the file holds; nothing if there is none. The last line may have been cut off by
        an interruption and is then left out. Raises ConfigError for any other unreadable line."""
        if not self.found.exists():
            return []
        with bad_input(f"{self.found}: cannot be read", OSError, EOFError, UnicodeDecodeError):
            content = self.found.read_bytes()
            content = gzip.decompress(content) if self.found == self.packed else content
            *lines, _cut_off = content.decode("utf-8").split("\n")
        return [self._sample(number, line) for number, line in enumerate(lines, 1)]

    def append(self, samples: Iterable[Sample]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_lines(samples))

    def rewrite(self, samples: Iterable[Sample]) -> None:
        """Replaces what the file holds."""
        write_whole(self.path, _lines(samples))
        self.packed.unlink(missing_ok=True)

    def _sample(self, number: int, line: str) -> Sample:
        try:
            return Sample.model_validate(json.loads(line))
        except ValidationError as error:
            reason = first_fault(error)
        except (ValueError, RecursionError) as error:
            reason = repr(error)
        raise ConfigError(f"{self.found}:{number}: not a sample: {reason}")


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes all of a file or nothing; a text as UTF-8."""
    unfinished = path.with_name(f"{path.name}.tmp")
    unfinished.write_bytes(content.encode() if isinstance(content, str) else content)
    unfinished.replace(path)


def _lines(samples: Iterable[Sample]) -> str:
    return "".join(
        json.dumps(sample.model_dump(mode="python"), allow_nan=False) + "\n" for sample in samples
    )
