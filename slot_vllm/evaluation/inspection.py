"""What delta does: prompts read again with SLOT, and the tokens that W delta raises and lowers."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from lighteval.models.abstract_model import ModelConfig
from lighteval.tasks.requests import Doc

from slot_vllm.evaluation import config as configuration
from slot_vllm.evaluation import inspection_view, tasks, unicode_text
from slot_vllm.evaluation.config import RunConfig
from slot_vllm.evaluation.console import say
from slot_vllm.evaluation.errors import ConfigError, of_file
from slot_vllm.evaluation.generation import check_option_names
from slot_vllm.evaluation.inspection_record import Inspection, PromptShifts, extremes
from slot_vllm.evaluation.lighteval_model import SlotModel
from slot_vllm.evaluation.progress import Stage
from slot_vllm.evaluation.record import Arm
from slot_vllm.evaluation.run_settings import changed
from slot_vllm.evaluation.token_text import TokenText

logger = logging.getLogger(__name__)

TOP = 15
# So many W delta are in memory at most: 75 MiB with a vocabulary of 152 thousand.
_TOGETHER = 128


def inspect(
    model: SlotModel, arm: Arm, task: str, docs: Sequence[Doc], top: int = TOP
) -> Inspection:
    """What one arm does on documents, which ``task`` names.

    Starts the engine if it has not started. Raises ConfigError and RunFailed.
    """
    text = TokenText(model.tokenizer)
    read = _reading(arm)
    total = np.zeros(0)
    prompts: list[PromptShifts] = []
    model.start()
    requests = [model.request(doc, read) for doc in docs]
    one_token = {"n": 1, "max_tokens": 1}
    requests = [replace(r, sampling={**r.sampling, **one_token}) for r in requests]
    with Stage(f"W delta of {arm.name} · {task}") as stage:
        for start in range(0, len(docs), _TOGETHER):
            part = slice(start, start + _TOGETHER)
            together = requests[part]
            answered: dict[str, np.ndarray | None] = {}
            for answer in model.engine.generate(together, lambda *_: None, with_shifts=True):
                answered[answer.request.id] = answer.shifts
                stage.reach((start + len(answered)) / len(docs))
            # In the order of the problems, whatever order they finish in.
            for doc, request in zip(docs[part], together, strict=True):
                shifts = answered.pop(request.id)
                if shifts is not None:
                    total = total + shifts if prompts else shifts.astype(float)
                    found = extremes(shifts, top, text)
                    prompts.append(PromptShifts(id=doc.id, prompt=request.text, **dict(found)))
    if len(prompts) < len(docs):
        missing = len(docs) - len(prompts)
        logger.warning("%s, %s: %s prompts have no delta to inspect", arm.name, task, missing)
    # Its bits depend on the order of the problems alone.
    found = extremes(total / max(len(prompts), 1), top, text)
    return Inspection(
        arm=arm.name, task=task, problems=len(prompts), prompts=prompts, **dict(found)
    )


def command(
    config: Path,
    set: Sequence[str],
    prompt: str | None,
    arm: str | None,
    top: int,
    output: Path | None,
) -> None:
    """``slot-vllm inspect``: prints tables, and draws a chart if ``output`` names a file.

    Raises ConfigError, and RunFailed if the engine does not start.
    """
    if top < 1:
        raise ConfigError(f"--top {top}: allowed: 1 or more")
    if output is not None:
        inspection_view.check_output(output)
    unicode_text.check("--prompt", prompt)
    run = configuration.load(config, set)
    with of_file(config):
        if prompt is not None:
            # The tasks, and so their data, are not needed.
            run = changed(run, tasks=[])
        configuration.check_paths(run)
        arms = _arms(run, arm)
        say()
        inspections = _inspections(run, arms, prompt, top)
    inspection_view.show(inspections)
    if output is not None:
        inspection_view.write_chart(inspections, output)


def _arms(config: RunConfig, name: str | None) -> list[Arm]:
    """The arm of that name, or all with SLOT."""
    with_slot = [arm for arm in config.all_arms if arm.steps]
    if not with_slot:
        raise ConfigError("arms: none of them has SLOT; required: an arm with steps of 1 or more")
    if name is None:
        return with_slot
    found = [arm for arm in with_slot if arm.name == name]
    if not found:
        known = any(arm.name == name for arm in config.all_arms)
        why = "it has no SLOT (steps=0)" if known else "no such arm"
        allowed = ", ".join(arm.name for arm in with_slot)
        raise ConfigError(f"--arm {name}: {why}; allowed: {allowed}")
    return found


def _inspections(
    config: RunConfig, arms: Sequence[Arm], prompt: str | None, top: int
) -> list[Inspection]:
    check_option_names(config)
    if prompt is None:
        asked = {task.name: task.docs for task in tasks.load(config)}
    else:
        asked = {"--prompt": [Doc(prompt, [""], 0, id="prompt", task_name="--prompt")]}
    model = SlotModel(ModelConfig(model_name=config.model), config)
    # Without a control, prompts are those of the problem, whatever the arm.
    for arm in {arm.name if arm.control else None: arm for arm in arms}.values():
        if prompt is not None:
            [doc] = asked["--prompt"]
            read = model.tokens(model.prompt(doc, arm))
            if len(read) < 2:
                raise ConfigError(
                    f"--prompt {prompt!r}: {'a single token' if read else 'no token'}, from which "
                    "nothing can be learned, so all shifts are zero; allowed: two tokens or more"
                )
        # At the temperature at which the arm draws as many answers as the task asks for.
        checked = arm.without("regex", "bias")
        model.prepare([(doc, checked) for docs in asked.values() for doc in docs])
    return [inspect(model, arm, name, docs, top) for arm in arms for name, docs in asked.items()]


def _reading(arm: Arm) -> Arm:
    """The arm without what its control does after the prompt is read, which moves no delta."""
    return arm.without("temperature", "regex", "bias")
