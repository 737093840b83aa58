"""A run: every arm answers every task on one engine; answers are kept as they finish."""

import logging
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from lighteval.models.abstract_model import ModelConfig
from lighteval.models.model_output import ModelResponse
from lighteval.tasks.requests import Doc

from slot_vllm.evaluation import inspection, tasks
from slot_vllm.evaluation.config import Arm, ConfigError, RunConfig
from slot_vllm.evaluation.console import RunLog
from slot_vllm.evaluation.directory import RunDirectory
from slot_vllm.evaluation.generation import Request, check_sampling
from slot_vllm.evaluation.lighteval_model import Answer, SlotModel
from slot_vllm.evaluation.model_script import make_model
from slot_vllm.evaluation.progress import Progress
from slot_vllm.evaluation.results import Result, as_json, compared, result
from slot_vllm.evaluation.samples import Sample
from slot_vllm.evaluation.scoring import Scores, number, score
from slot_vllm.evaluation.tasks import EvaluationTask

logger = logging.getLogger(__name__)


@dataclass
class _Part:
    """One arm on one task: what is answered, by problem id, and what is still to be asked."""

    arm: Arm
    task: EvaluationTask
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    scores: dict[str, Scores] = field(default_factory=dict)
    pending: list[Doc] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return max((s.seconds for answers in self.samples.values() for s in answers), default=0.0)

    def result(self) -> Result:
        """In the order of the task's problems, whatever order they finished in."""
        ids = [doc.id for doc in self.task.docs]
        samples = [sample for i in ids for sample in self.samples[i]]
        return result(self.arm, self.task, [self.scores[i] for i in ids], samples)


def run(config: RunConfig, directory: RunDirectory, resume: bool, log: RunLog) -> list[Result]:
    """Runs what is still to be done and writes the results.

    Nothing is written before everything that can be wrong with the input was looked at. Raises
    ConfigError, and RunFailed if the engine does not start.
    """
    stored = directory.samples.read() if resume else []
    loaded = tasks.load(config)
    parts = _parts(loaded, config.arms, stored)
    make_model(config)
    model = SlotModel(ModelConfig(model_name=config.model), config)
    for part in parts:
        _recall(part, model)
    if any(part.pending for part in parts):
        model.start()
    for part in parts:
        part.requests = [model.request(doc, part.arm) for doc in part.pending]
        check_sampling(part.requests)
    directory.open(config, resume)
    log.open(directory.log)
    kept = {id(s) for part in parts for samples in part.samples.values() for s in samples}
    directory.samples.rewrite(sample for sample in stored if id(sample) in kept)
    try:
        for part in parts:
            _answer(part, model, directory)
        if config.inspect and config.uses_slot and not directory.inspected:
            with_slot = [arm for arm in config.arms if arm.steps]
            directory.write_inspection(inspection.inspect_arms(model, with_slot, loaded))
    except BaseException:
        done = sum(len(part.samples) for part in parts)
        total = sum(len(part.task.docs) for part in parts)
        where = directory.path
        logger.warning("%s of %s answers are in %s; --resume continues there", done, total, where)
        raise
    answered = [s for part in parts for samples in part.samples.values() for s in samples]
    results = compared([part.result() for part in parts], answered)
    written = directory.write_results(as_json(config, results))
    logger.info("written: %s", written)
    return results


def _parts(
    loaded: Sequence[EvaluationTask], arms: Sequence[Arm], stored: Sequence[Sample]
) -> list[_Part]:
    answered: dict[tuple[str, str, str], list[Sample]] = defaultdict(list)
    for sample in stored:
        answered[sample.arm, sample.task, sample.id].append(sample)
    parts = []
    for arm in arms:
        for task in loaded:
            part = _Part(arm, task)
            for doc in task.docs:
                samples = answered.get((arm.name, task.name, doc.id), [])
                if len(samples) == doc.num_samples:
                    part.samples[doc.id] = samples
                else:
                    part.pending.append(doc)
            parts.append(part)
    return parts


def _recall(part: _Part, model: SlotModel) -> None:
    """Scores the answers that an interrupted run left. Raises ConfigError if they answer other
    problems than today's."""
    docs = {doc.id: doc for doc in part.task.docs}
    for problem, samples in part.samples.items():
        doc = docs[problem]
        prompt = model.prompt(doc)
        seed = model.seed(doc)
        asked = (prompt, doc.get_golds(), part.arm.steps, part.arm.lr)
        if any(
            (s.prompt, s.gold, s.steps, s.lr, s.seed) != (*asked, seed + s.sample) for s in samples
        ):
            raise ConfigError(
                f"{part.task.name}, problem {problem}: it is not what the unfinished run was "
                "asked; --resume needs the same data, model and settings"
            )
        response = ModelResponse(input=prompt, text=[sample.completion for sample in samples])
        part.scores[problem] = score(part.task, doc, response)


def _answer(part: _Part, model: SlotModel, directory: RunDirectory) -> None:
    started = time.monotonic() - part.seconds
    done, total = len(part.samples), len(part.task.docs)
    if not part.pending:
        return
    with Progress(part.arm.name, part.task.name, total, done) as progress:
        for answer in model.answers(part.pending, part.requests, progress.add_tokens):
            scores = score(part.task, answer.doc, answer.response)
            samples = _samples(part, answer, scores, time.monotonic() - started)
            directory.samples.append(samples)
            part.samples[answer.doc.id] = samples
            part.scores[answer.doc.id] = scores
            progress.advance()
    logger.info("%s, %s: %s problems answered", part.arm.name, part.task.name, total)
    silent = sum(s[0].first_loss is None for s in part.samples.values()) if part.arm.steps else 0
    if silent:
        logger.warning("%s of them without a report that SLOT adapted them", silent)


def _samples(part: _Part, answer: Answer, scores: Scores, seconds: float) -> list[Sample]:
    completion = answer.completion
    losses: Sequence[float | None] = completion.losses or [None]
    numbers = {metric: number(value) for metric, value in scores.items()}
    return [
        Sample(
            arm=part.arm.name,
            task=part.task.name,
            id=answer.doc.id,
            sample=index,
            prompt=answer.response.input,
            completion=text,
            gold=answer.doc.get_golds(),
            score=next(iter(numbers.values()), None),
            scores=numbers,
            steps=part.arm.steps,
            lr=part.arm.lr,
            first_loss=number(losses[0]),
            last_loss=number(losses[-1]),
            seed=answer.seed + index,
            finish_reason=completion.finish_reasons[index],
            prompt_tokens=len(answer.response.input_tokens),
            generated_tokens=len(completion.tokens[index]),
            seconds=round(seconds, 3),
        )
        for index, text in enumerate(completion.texts)
    ]
