"""A run: all arms answer all tasks on one engine; answers are kept as they finish."""

import logging
import time
from collections.abc import Iterator, Sequence

from lighteval.models.abstract_model import ModelConfig
from lighteval.tasks.requests import Doc

from slot_vllm.evaluation import inspection, report, scoring, stored_tasks, tasks
from slot_vllm.evaluation.answering import Answering
from slot_vllm.evaluation.config import RunConfig
from slot_vllm.evaluation.directory import RunDirectory, write_results
from slot_vllm.evaluation.errors import ConfigError
from slot_vllm.evaluation.generation import Completion, check_option_names
from slot_vllm.evaluation.lighteval_model import SlotModel, response
from slot_vllm.evaluation.phases import Phases
from slot_vllm.evaluation.plan import Part, Plan
from slot_vllm.evaluation.record import RunRecord, Sample
from slot_vllm.evaluation.run_settings import changed, text_hash
from slot_vllm.evaluation.scoring import graded, number, score
from slot_vllm.evaluation.task_definition import item_hash

logger = logging.getLogger(__name__)


def run(config: RunConfig, directory: RunDirectory, resume: bool) -> RunRecord:
    """Runs what is still to be done and writes the results.

    Nothing but the log is written before everything that can be wrong with the input was looked at.
    Raises ConfigError, and RunFailed if the engine does not start.
    """
    check_option_names(config)
    stored = directory.samples.read() if resume else []
    with Phases("reading the problems"):
        loaded = tasks.load(config)
    stored_tasks.documents(loaded, stored, directory.path)
    plan = Plan(config, loaded, stored)
    for task in {part.task.name: part.task for part in plan.parts if part.pending}.values():
        scoring.check(task)
    model = SlotModel(ModelConfig(model_name=config.model), config)
    for part in plan.parts:
        _recall(part, model)
    if any(part.pending for part in plan.wanted):
        # Without a control, prompts and sampling are those of the problem, whatever the arm.
        asked = {
            (part.task.name, doc.id, part.arm.name if part.arm.control else None): (doc, part.arm)
            for part in plan.parts
            for doc in part.pending
        }
        model.prepare(asked.values())
        model.start()
        for part in plan.parts:
            part.requests = {doc.id: model.request(doc, part.arm) for doc in part.pending}
    directory.open(config, resume)
    kept = {s.key: s for part in plan.parts for of_one in part.samples.values() for s in of_one}
    directory.samples.rewrite(kept[sample.key] for sample in stored if sample.key in kept)
    try:
        _answer(plan.selecting, plan, model, directory)
        _answer(plan.reported, plan, model, directory)
    except BaseException:
        done = sum(len(part.samples) for part in plan.wanted)
        total = sum(len(part.docs) for part in plan.wanted)
        where = directory.path
        logger.warning("%s of %s answers are in %s; --resume continues there", done, total, where)
        raise
    results = plan.record()
    logger.info("written: %s", write_results(results, directory.results))
    if config.inspect and config.uses_slot and not directory.inspected:
        inspections = [
            inspection.inspect(model, p.arm, p.task.name, p.docs) for p in plan.inspected
        ]
        directory.write_inspection(inspections)
    logger.info("written: %s", report.write([directory.path]))
    directory.finish()
    return results


def _recall(part: Part, model: SlotModel) -> None:
    """Scores the answers that an interrupted run left. Raises ConfigError if they were asked
    otherwise."""
    for doc in part.docs:
        samples = part.samples.get(doc.id)
        if samples is None:
            continue
        prompt, item, golds = model.prompt(doc, part.arm), item_hash(doc), doc.get_golds()
        asked = (text_hash(prompt), part.arm.steps, part.arm.lr)
        seed = model.seed(doc)
        if any(
            (s.prompt_sha256, s.steps, s.lr) != asked
            or s.seed != seed + s.sample
            or s.prompt not in (None, prompt)
            for s in samples
        ):
            raise ConfigError(
                f"{part.task.name}, problem {doc.id}: it is not what the unfinished run was "
                "asked; --resume needs the same data, model and settings"
            )
        part.samples[doc.id] = [
            changed(s, prompt=prompt, gold=golds, item_sha256=item) for s in samples
        ]
    part.score_stored()


def _answer(parts: Sequence[Part], plan: Plan, model: SlotModel, directory: RunDirectory) -> None:
    """Problem by problem, all arms one after the other: what they ask alike is still in the prefix
    cache, the engine has work for all of its places until the end, and a run that is interrupted
    has the answers of all arms to the same problems."""
    started = time.monotonic() - plan.seconds
    pending = list(_by_problem(parts))
    if not pending:
        return
    asked = {part.requests[doc.id].id: (part, doc) for part, doc in pending}
    requests = [part.requests[doc.id] for part, doc in pending]
    label = " · ".join(dict.fromkeys(part.task.name for part in parts))
    answered = sum(len(part.docs) for part in parts) - len(pending)
    with Answering(label, requests, answered) as progress:
        for completion in model.engine.generate(requests, progress.add_tokens):
            part, doc = asked[completion.request.id]
            scores = score(part.task, doc, response(completion), part.arm.name)
            samples = _samples(part, doc, completion, time.monotonic() - started)
            samples = graded(samples, scores)
            directory.samples.append(samples)
            part.samples[doc.id] = samples
            part.scores[doc.id] = scores
            progress.finish(completion.request.id)
    for part in parts:
        logger.info("%s, %s: %s problems answered", part.arm.name, part.task.name, len(part.docs))
        adapted = part.samples.values() if part.arm.steps else ()
        silent = sum(samples[0].first_loss is None for samples in adapted)
        if silent:
            logger.warning("%s of them without a report that SLOT adapted them", silent)


def _by_problem(parts: Sequence[Part]) -> Iterator[tuple[Part, Doc]]:
    """What is pending, task by task; parts of one task have the same problems."""
    for task in dict.fromkeys(part.task.name for part in parts):
        of_task = [part for part in parts if part.task.name == task]
        for docs in zip(*(part.docs for part in of_task), strict=True):
            for part, doc in zip(of_task, docs, strict=True):
                if doc.id not in part.samples:
                    yield part, doc


def _samples(part: Part, doc: Doc, completion: Completion, seconds: float) -> list[Sample]:
    asked = completion.request
    losses: Sequence[float | None] = completion.losses or [None]
    return [
        Sample(
            arm=part.arm.name,
            task=part.task.name,
            id=doc.id,
            sample=index,
            prompt=asked.text,
            prompt_sha256=text_hash(asked.text),
            item_sha256=item_hash(doc),
            completion=text,
            gold=doc.get_golds(),
            score=None,
            scores={},
            steps=part.arm.steps,
            lr=part.arm.lr,
            first_loss=number(losses[0]),
            last_loss=number(losses[-1]),
            seed=asked.sampling["seed"] + index,
            finish_reason=completion.finish_reasons[index],
            prompt_tokens=len(asked.prompt),
            generated_tokens=len(completion.tokens[index]),
            seconds=round(seconds, 3),
        )
        for index, text in enumerate(completion.texts)
    ]
