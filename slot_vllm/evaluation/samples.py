"""``samples.jsonl``: one line per answer, appended when its problem is finished."""

import json
from collections.abc import Iterable
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path

from slot_vllm.evaluation.config import ConfigError


@dataclass(frozen=True)
class Sample:
    """One answer of one arm to one problem.

    id: the problem's id within its task; sample: which of the problem's answers this is.
    score: the problem's score in the task's first metric; scores: in all of them. Where a task
        draws several answers per problem, they share it.
    first_loss, last_loss: the prompt's mean cross entropy, nats per token, before SLOT's first
        step and after its last; null without SLOT.
    finish_reason: ``stop``, or ``length`` for an answer that was cut off.
    seconds: from the start of this arm on this task to the answer's end.
    scale: what safeguards multiplied delta by, 0 to 1; null without SLOT.
    """

    arm: str
    task: str
    id: str
    sample: int
    prompt: str
    completion: str
    gold: list[str]
    score: float | None
    scores: dict[str, float | None]
    steps: int
    lr: float
    first_loss: float | None
    last_loss: float | None
    seed: int
    finish_reason: str
    prompt_tokens: int
    generated_tokens: int
    seconds: float
    # Runs of earlier versions do not say.
    scale: float | None = None


class SampleFile:
    """The samples of a run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[Sample]:
        """What the file holds; nothing if there is none. The last line may have been cut off by
        an interruption and is then left out. Raises ConfigError for any other unreadable line."""
        if not self.path.exists():
            return []
        *lines, _cut_off = self.path.read_text(encoding="utf-8").split("\n")
        return [self._sample(number, line) for number, line in enumerate(lines, 1)]

    def append(self, samples: Iterable[Sample]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_lines(samples))

    def rewrite(self, samples: Iterable[Sample]) -> None:
        """Replaces what the file holds."""
        write_whole(self.path, _lines(samples))

    def _sample(self, number: int, line: str) -> Sample:
        try:
            values = json.loads(line)
            known = (f.name for f in fields(Sample) if f.default is MISSING or f.name in values)
            return Sample(**{name: values[name] for name in known})
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"{self.path}:{number}: not a sample: {error!r}") from None


def write_whole(path: Path, text: str) -> None:
    """Writes all of a file or nothing."""
    unfinished = path.with_name(f"{path.name}.tmp")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def _lines(samples: Iterable[Sample]) -> str:
    return "".join(json.dumps(asdict(sample), allow_nan=False) + "\n" for sample in samples)
