"""The model that lighteval evaluates: vLLM with SLOT, through a LightevalModel.

From lighteval's own command line the file named by ``SLOT_CONFIG`` gives engine, generation and
SLOT settings; of its arms, ``SLOT_ARM`` names the one that runs (default: the first with SLOT):

    SLOT_CONFIG=RUN.yaml lighteval custom MODEL slot_vllm/evaluation/lighteval_model.py TASKS
"""

import functools
import hashlib
import itertools
import logging
import os
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn

from lighteval.models.abstract_model import LightevalModel, ModelConfig
from lighteval.models.model_input import GenerationParameters
from lighteval.models.model_output import ModelResponse
from lighteval.tasks.prompt_manager import PromptManager
from lighteval.tasks.requests import Doc
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from slot_vllm.evaluation import benchmarks, engine_output, unicode_text
from slot_vllm.evaluation.answering import Answering
from slot_vllm.evaluation.config import RunConfig, load, system_prompt
from slot_vllm.evaluation.control import Control
from slot_vllm.evaluation.errors import ConfigError, bad_input, one_line
from slot_vllm.evaluation.frequency_bias import PromptFrequencies, frequencies
from slot_vllm.evaluation.generation import (
    Completion,
    Request,
    VllmEngine,
    check_controls,
    check_sampling,
    engine_options,
    matching,
)
from slot_vllm.evaluation.interruption import Interruption
from slot_vllm.evaluation.models.catalog import path as model_path
from slot_vllm.evaluation.models.get import make_model
from slot_vllm.evaluation.phases import Phases
from slot_vllm.evaluation.record import Arm

if TYPE_CHECKING:
    from slot_vllm.evaluation.replicas import Replicas
    from slot_vllm.evaluation.transformers_engine import TransformersEngine

logger = logging.getLogger(__name__)


class SlotModel(LightevalModel):
    """Answers lighteval's documents on a vLLM engine, with the SLOT settings of one arm at a time.

    lighteval constructs it with its own model configuration alone; run, arm and engine then come
    from ``SLOT_CONFIG``. Raises ConfigError, and RunFailed for a model that cannot be made.
    """

    def __init__(self, config: ModelConfig, run: RunConfig | None = None) -> None:
        self.run = run or _run_from_environment(config.model_name)
        make_model(self.run.model)
        self.arm = self.run.all_arms[0] if run else _arm_from_environment(self.run)
        self.config = config.model_copy(update=_described(self.run, self.arm))
        # lighteval's cache of samples, which would serve one arm's answers to another, is off.
        self._cache = SimpleNamespace(_init_registry=lambda registry: None)
        self._request_numbers = itertools.count()
        self._tokenizer = _load_tokenizer(self.run)
        self._use_chat_template = _uses_chat_template(self.run, self._tokenizer)
        self._system_prompt = system_prompt(self.run)
        self._encoded: dict[str, list[int]] = {}
        self._frequencies: dict[tuple[int, ...], PromptFrequencies] = {}

    @functools.cached_property
    def engine(self) -> "VllmEngine | Replicas | TransformersEngine":
        """Starts when it is first needed. Raises ConfigError and RunFailed."""
        if self.run.backend == "transformers":
            from slot_vllm.evaluation.transformers_engine import TransformersEngine

            return TransformersEngine(self.run, self._tokenizer)
        options = engine_options(self.run)
        check_controls(self.run, options, self._tokenizer)
        if self.run.ray is None:
            return VllmEngine(options)
        from slot_vllm.evaluation.replicas import Replicas

        return Replicas(options, self.run.ray)

    def start(self) -> None:
        """Starts the engine, unless it has started. What vLLM prints goes to the log."""
        if "engine" in vars(self):
            return
        with_vllm = self.run.backend == "vllm"
        backend = "vLLM" if with_vllm else self.run.backend
        logger.info("starting %s with %s", backend, self.run.model)
        started = time.monotonic()
        phases = Phases("starting its processes" if with_vllm else "loading the weights")
        with Interruption(at_once=True), engine_output.logged(phases.see), phases:
            _ = self.engine
        logger.info("%s is up after %.0f s", backend, time.monotonic() - started)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self._tokenizer

    @property
    def add_special_tokens(self) -> bool:
        # A chat template writes them itself.
        return not self._use_chat_template

    @property
    def max_length(self) -> int:
        return self.engine.max_model_len

    def cleanup(self) -> None:
        if "engine" in vars(self):
            self.engine.close()
            del self.engine

    def greedy_until(self, docs: list[Doc]) -> list[ModelResponse]:
        """The arm's answers to the documents, in their order."""
        self.prepare([(doc, self.arm) for doc in docs])
        requests = [self.request(doc, self.arm) for doc in docs]
        found = {}
        with Answering(self.arm.name, requests) as progress:
            for completion in self.engine.generate(requests, progress.add_tokens):
                progress.finish(completion.request.id)
                found[completion.request.id] = response(completion)
        return [found[request.id] for request in requests]

    def loglikelihood(self, docs: list[Doc]) -> NoReturn:
        task = docs[0].task_name if docs else "this task"
        raise NotImplementedError(
            f"{task} scores log-likelihoods, which SLOT does not serve: it adapts what a prompt's "
            "answer is generated from; choose a generative task (for GPQA: gpqa:diamond)"
        )

    def loglikelihood_rolling(self, docs: list[Doc]) -> NoReturn:
        self.loglikelihood(docs)

    def prepare(self, asked: Collection[tuple[Doc, Arm]]) -> None:
        """Checks what is to be asked, and reads the prompts of arms whose control is a bias, with
        transformers. An engine that has started is then ended: the model need not fit twice.
        Raises ConfigError and RunFailed."""
        said = self.run.engine.get("max_model_len")
        limit = said if isinstance(said, int) and said > 0 else None
        # A control's bias is not known yet.
        drafts = [self._request(doc, arm.without("bias"), limit) for doc, arm in asked]
        if self.run.backend == "vllm":  # all that the other takes, the run's file was checked for
            check_sampling(drafts)
        biased = (pair for pair in asked if pair[1].control and pair[1].control.bias)
        prompts = dict.fromkeys(tuple(self.tokens(self.prompt(*pair))) for pair in biased)
        new = [prompt for prompt in prompts if prompt not in self._frequencies]
        if new:
            self.cleanup()
            self._frequencies |= dict(zip(new, frequencies(self.run, new), strict=True))

    def prompt(self, doc: Doc, arm: Arm | None = None) -> str:
        """A document as an arm, or one without a control, asks it. The system prompt is the run's
        or, where it gives none, the benchmark's own. Raises ConfigError for a text that cannot be
        encoded, or that the chat template rejects."""
        system = self._system_prompt
        if system is None:
            system = benchmarks.SYSTEM_PROMPTS.get(doc.task_name.split("|")[0])
        manager = PromptManager(self._use_chat_template, self._tokenizer, system)
        where = f"{doc.task_name}, problem {doc.id}"
        try:
            asked = self._with_control(doc, arm.control if arm else None)
            text: str = manager.prepare_prompt(asked)
        except Exception as error:  # whatever a model's template raises
            reason = f"{type(error).__name__}: {one_line(error)}"
            if not self._use_chat_template:
                raise ConfigError(f"{where}: its prompt cannot be made: {reason}") from None
            raise ConfigError(
                f"{where}: the model's chat template refuses its prompt: {reason}; allowed: "
                "chat_template=False, or a prompt and a system prompt (or none) that it takes"
            ) from None
        unicode_text.check(f"{where}: its prompt", text)
        return text

    def _with_control(self, doc: Doc, control: Control | None) -> Doc:
        """The run's examples come before the arm's own."""
        examples = [*self.run.examples, *((control and control.examples) or ())]
        turns = [Doc(one.problem, [one.answer], 0) for one in examples]
        end = f"\n\n{control.append}" if control and control.append else ""
        return replace(doc, query=doc.query + end, fewshot_samples=[*doc.fewshot_samples, *turns])

    def tokens(self, text: str) -> list[int]:
        if text not in self._encoded:
            special = self.add_special_tokens
            self._encoded[text] = self._tokenizer.encode(text, add_special_tokens=special)
        return [*self._encoded[text]]

    def seed(self, doc: Doc) -> int:
        """The seed of a document's first answer (the next have the next numbers), below 2**31.

        It depends on the run's seed, the task and the document, not on the arm.
        """
        text = f"{self.run.generation.seed}|{doc.task_name}|{doc.id}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) >> 1

    def request(self, doc: Doc, arm: Arm) -> Request:
        """What the engine is asked for a document, which ``prepare`` has seen if the arm's control
        is a bias. Raises ConfigError if its prompt is too long."""
        return self._request(doc, arm, self.max_length)

    def _request(self, doc: Doc, arm: Arm, limit: int | None) -> Request:
        """limit: of prompt and answer, in tokens; None where only the engine knows it."""
        text = self.prompt(doc, arm)
        prompt = self.tokens(text)
        where = f"{doc.task_name}, problem {doc.id}"
        if not prompt:
            raise ConfigError(f"{where}: its prompt has no token; required: one or more")
        room = None if limit is None else limit - len(prompt)
        if room is not None and room < 1:
            raise ConfigError(
                f"engine.max_model_len={limit}: the prompt of {where}, has {len(prompt)} tokens; "
                "allowed: more than that"
            )
        generation = self.run.generation
        stop = [] if self._use_chat_template else list(doc.stop_sequences or ())
        unicode_text.check(f"{where}: its stop strings", stop)
        wanted = generation.max_new_tokens or doc.generation_size or room
        sampling: dict[str, Any] = {
            **generation.model_dump(exclude={"max_new_tokens", "seed", "stop"}),
            "n": doc.num_samples,
            "max_tokens": wanted if room is None or wanted is None else min(room, wanted),
            "seed": self.seed(doc),
            "stop": [*stop, *generation.stop],
            **self._controlled(prompt, arm.control),
        }
        if self.run.uses_slot:
            sampling["extra_args"] = arm.request_args()
        number = next(self._request_numbers)
        name = f"{arm.name}/{doc.task_name}/{doc.id}/{number}"
        return Request(name, prompt, sampling, text)

    def _controlled(self, prompt: Sequence[int], control: Control | None) -> dict[str, Any]:
        """What a control sets of the ``SamplingParams``."""
        if control is None:
            return {}
        sampling: dict[str, Any] = {}
        if control.temperature is not None:
            sampling["temperature"] = control.temperature
        if control.regex is not None:
            sampling["structured_outputs"] = matching(control.regex)
        if control.bias is not None:
            sampling["logit_bias"] = self._frequencies[tuple(prompt)].bias(control.bias)
        return sampling


def response(completion: Completion) -> ModelResponse:
    """What lighteval scores."""
    asked = completion.request
    return ModelResponse(
        input=asked.text,
        input_tokens=asked.prompt,
        text=completion.texts,
        output_tokens=completion.tokens,
    )


def _run_from_environment(model: str) -> RunConfig:
    path = os.environ.get("SLOT_CONFIG")
    if not path:
        raise ConfigError("SLOT_CONFIG: not set; it names the YAML file of a run (see configs/)")
    return load(Path(path)).model_copy(update={"model": model})


def _arm_from_environment(run: RunConfig) -> Arm:
    arms = {arm.name: arm for arm in run.all_arms}
    first = next((arm.name for arm in run.all_arms if arm.steps), run.all_arms[0].name)
    name = os.environ.get("SLOT_ARM", first)
    if name not in arms:
        raise ConfigError(f"SLOT_ARM={name!r}: no such arm; allowed: {', '.join(arms)}")
    return arms[name]


def _described(run: RunConfig, arm: Arm) -> dict[str, Any]:
    """What lighteval's own result files say about the model."""
    generation = run.generation.model_dump(exclude={"stop"})
    generation["temperature"] = arm.temperature(run.generation.temperature)
    parameters = GenerationParameters(**generation, stop_tokens=run.generation.stop)
    return {"system_prompt": system_prompt(run), "generation_parameters": parameters}


def _load_tokenizer(run: RunConfig) -> PreTrainedTokenizerBase:
    name = run.engine.get("tokenizer") or model_path(run.model)
    with bad_input(f"model={name!r}: its tokenizer cannot be loaded", OSError, ValueError):
        return AutoTokenizer.from_pretrained(
            str(name),
            revision=run.engine.get("tokenizer_revision") or run.engine.get("revision"),
            trust_remote_code=bool(run.engine.get("trust_remote_code", False)),
        )


def _uses_chat_template(run: RunConfig, tokenizer: PreTrainedTokenizerBase) -> bool:
    has_one = getattr(tokenizer, "chat_template", None) is not None
    if run.chat_template == "auto":
        return has_one
    if run.chat_template and not has_one:
        raise ConfigError(
            "chat_template=True: the model's tokenizer has none; allowed: false or auto"
        )
    return bool(run.chat_template)
