"""What the page's sample browser shows: an arm's answers beside the baseline's."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from slot_vllm.evaluation.record import BASELINE, Sample
from slot_vllm.evaluation.stored_run import StoredPart, StoredRun

# At most: problems per arm and task, answers per problem and side, characters per text, and
# characters of all texts together.
PROBLEMS = 200
ANSWERS = 4
CHARACTERS = 6_000
ALL_CHARACTERS = 8_000_000

NOT_KEPT = "[… packed answers hold no prompts, and the task's data are not here …]"


@dataclass(frozen=True)
class _Problem:
    """One problem; difference: the arm's score minus the baseline's, if both have one."""

    id: str
    difference: float | None
    baseline: list[Sample]
    arm: list[Sample]


@dataclass
class _Texts:
    """Prompts and answers, each kept once however many arms show it."""

    prompts: list[dict[str, Any]] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list)
    characters: int = 0
    _places: dict[Any, int] = field(default_factory=dict)

    def prompt(self, sample: Sample) -> int:
        key = (sample.task, sample.id, sample.prompt_sha256)
        if key not in self._places:
            self._places[key] = len(self.prompts)
            gold = [self._kept(text) for text in sample.gold or []]
            self.prompts.append({"text": self._kept(sample.prompt or NOT_KEPT), "gold": gold})
        return self._places[key]

    def answer(self, sample: Sample) -> int:
        key = id(sample)
        if key not in self._places:
            self._places[key] = len(self.answers)
            self.answers.append(
                {
                    "text": self._kept(sample.completion),
                    "score": sample.score,
                    "tokens": sample.generated_tokens,
                    "finish_reason": sample.finish_reason,
                    "losses": [sample.first_loss, sample.last_loss],
                }
            )
        return self._places[key]

    def _kept(self, text: str) -> str:
        # The end holds the answer, so it is the middle that goes.
        left_out = len(text) - CHARACTERS
        if left_out > 0:
            half = CHARACTERS // 2
            note = f"[… {left_out} characters are left out here; samples.jsonl has them …]"
            text = f"{text[:half]}\n\n{note}\n\n{text[-half:]}"
        self.characters += len(text)
        return text


def content(runs: Iterable[StoredRun]) -> dict[str, Any]:
    """The data of the browser: largest differences first; where not all fits, every arm is shown
    equally deep."""
    arms: list[dict[str, Any]] = []
    ranked: list[tuple[list[dict[str, Any]], list[_Problem]]] = []
    for run in runs:
        parts = [part for task in run.tasks for part in run.of_task(task)]
        for part in parts:
            if part.arm != BASELINE or len(run.of_task(part.task)) == 1:
                problems = _ranked(part, run.baseline(part.task))
                shown: list[dict[str, Any]] = []
                about = {"run": run.label, "task": part.task, "arm": part.arm}
                arms.append({**about, "problems": shown, "all": len(problems)})
                ranked.append((shown, problems))
    texts = _Texts()
    for rank in range(PROBLEMS):
        if texts.characters > ALL_CHARACTERS:
            break
        for shown, problems in ranked:
            if rank < len(problems):
                shown.append(_entry(problems[rank], texts))
    return {"prompts": texts.prompts, "answers": texts.answers, "arms": arms}


def _ranked(part: StoredPart, baseline: StoredPart | None) -> list[_Problem]:
    problems = []
    for i, answers in part.answers.items():
        beside = baseline.answers.get(i, []) if baseline and baseline is not part else []
        after, before = answers[0].score, beside[0].score if beside else None
        difference = None if after is None or before is None else after - before
        problems.append(_Problem(i, difference, beside, answers))
    return sorted(problems, key=lambda problem: -abs(problem.difference or 0.0))


def _entry(problem: _Problem, texts: _Texts) -> dict[str, Any]:
    asked = {sample.prompt_sha256 for sample in (*problem.baseline, *problem.arm)}
    return {
        "id": problem.id,
        "difference": problem.difference,
        "prompt": texts.prompt(problem.arm[0]),
        "own_prompt": len(asked) > 1,
        "baseline": [texts.answer(sample) for sample in problem.baseline[:ANSWERS]],
        "arm": [texts.answer(sample) for sample in problem.arm[:ANSWERS]],
        "drawn": len(problem.arm),
    }
