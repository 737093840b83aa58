"""One vLLM engine that answers requests and hands out each answer as it finishes."""

import difflib
import gc
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from slot_vllm.evaluation.config import RESERVED_ENGINE_OPTIONS, RunConfig
from slot_vllm.evaluation.errors import ConfigError, RunFailed, bad_input, one_line
from slot_vllm.evaluation.models import memory
from slot_vllm.evaluation.models.catalog import path as model_path

logger = logging.getLogger(__name__)

# The engine options that transformers has, too.
_OF_TRANSFORMERS = (
    *("dtype", "max_model_len", "max_num_seqs", "revision", "tokenizer", "tokenizer_revision"),
    "trust_remote_code",
)

# Of so many finished requests the engine keeps the losses.
KEPT_LOSSES = 1024

# Engine options that say whether the model is compiled, and how.
_COMPILING = {"enforce_eager", "compilation_config", "optimization_level"}


@dataclass(frozen=True)
class Request:
    """A prompt (token ids), the arguments of its ``SamplingParams``, and the prompt's text."""

    id: str
    prompt: list[int]
    sampling: dict[str, Any]
    text: str = ""


@dataclass
class Completion:
    """The answers to one request: ``sampling["n"]`` texts, their tokens and why they ended.

    losses: the prompt's loss before the first step of SLOT, ..., after the last; None without SLOT.
    shifts: where they are asked for, W delta, [V] float32: what is added to every row of the
        request's logits before the model's soft cap and scale. None if it has no delta.
    """

    request: Request
    texts: list[str]
    tokens: list[list[int]]
    finish_reasons: list[str]
    losses: list[float] | None = None
    shifts: np.ndarray | None = None


# Called with a request's id and how many tokens it got since the last call: 0 when it begins.
OnTokens = Callable[[str, int], None]


def check_option_names(config: RunConfig) -> None:
    """Raises ConfigError for an engine option that vLLM does not have, with the nearest names; and
    for what a run asks for that its backend does not have."""
    if config.backend == "transformers":
        _check_for_transformers(config)
        return
    from vllm import EngineArgs

    known = {option.name for option in fields(EngineArgs)} - {*RESERVED_ENGINE_OPTIONS}
    for option in config.engine:
        if option not in known:
            near = difflib.get_close_matches(option.replace("-", "_"), sorted(known))
            allowed = "an engine option of vLLM (`vllm serve --help=all`), with underscores"
            raise ConfigError(
                f"engine.{option}: unknown key; near names: {', '.join(near) or 'none'}; "
                f"allowed: {allowed}"
            )


def _check_for_transformers(config: RunConfig) -> None:
    for option in config.engine:
        if option not in _OF_TRANSFORMERS:
            allowed = ", ".join(_OF_TRANSFORMERS)
            raise ConfigError(
                f"engine.{option}: not of backend='transformers', which takes {allowed}"
            )
    if config.ray is not None:
        raise ConfigError("ray: its replicas are vLLM's; allowed: backend='vllm'")
    for arm in config.all_arms:
        for kind in ("regex", "bias"):
            if arm.control and getattr(arm.control, kind) is not None:
                raise ConfigError(f"arms.{arm.name}.control.{kind}: it needs backend='vllm'")


def engine_options(config: RunConfig) -> dict[str, Any]:
    """The arguments of ``vllm.LLM`` for a run. Raises ConfigError for an unknown option."""
    check_option_names(config)
    if config.uses_slot:
        # SLOT is opt-in per request.
        always = {"steps": 0, "report_loss": True, "keep_deltas": KEPT_LOSSES}
        own: dict[str, Any] = {
            "worker_extension_cls": "slot_vllm.SlotWorkerExtension",
            "additional_config": {"slot": {**config.slot.model_dump(), **always}},
        }
    else:
        own = _seeded_on_cpu(config)
    return {"use_tqdm_on_load": False, **own, **config.engine, "model": model_path(config.model)}


def matching(regex: str) -> Any:
    """The ``structured_outputs`` of ``SamplingParams`` whose answers match an expression."""
    from vllm.sampling_params import StructuredOutputsParams

    return StructuredOutputsParams(regex=regex)


def check_controls(
    config: RunConfig, options: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase
) -> None:
    """Raises ConfigError for an arm's control that an engine of these options would refuse."""
    from vllm import EngineArgs, SamplingParams
    from vllm.exceptions import VLLMError

    for arm in config.all_arms:
        if arm.control is None or not (arm.control.regex or arm.control.bias):
            continue
        with bad_input(f"arms.{arm.name}.control: vLLM refuses", ValueError, TypeError, VLLMError):
            arguments = EngineArgs(**options)
            SamplingParams(
                structured_outputs=matching(arm.control.regex) if arm.control.regex else None,
                logit_bias={0: 1.0} if arm.control.bias else None,
            ).verify(
                arguments.create_model_config(),
                arguments.speculative_config,
                arguments.structured_outputs_config,
                tokenizer,
            )


def check_sampling(requests: Sequence[Request]) -> None:
    """Raises ConfigError for what vLLM's SamplingParams refuse, before anything is written."""
    from vllm import SamplingParams
    from vllm.exceptions import VLLMError

    with bad_input("generation: vLLM refuses", ValueError, TypeError, VLLMError):
        for request in requests:
            SamplingParams(**request.sampling)


def _seeded_on_cpu(config: RunConfig) -> dict[str, Any]:
    """Without SLOT (``engine.cpu_generators``) vLLM on a CPU cannot split the prompt of a request
    that has a seed, so sampled answers take whole prompts."""
    from vllm.platforms import current_platform

    if max(config.temperatures) == 0 or not current_platform.is_cpu():
        return {}
    if config.engine.get("enable_chunked_prefill"):
        raise ConfigError(
            "engine.enable_chunked_prefill=True: sampling with seeds on a CPU needs False; "
            "allowed: False, or a temperature of 0 in all arms"
        )
    return {"enable_chunked_prefill": False}


def _eager_on_cpu(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Compiling takes longer than it saves, unless the run is long; so it is done where it is asked
    for, and in pipelines, which vLLM does not start on a CPU without it."""
    if not _COMPILING.intersection(options) and options.get("pipeline_parallel_size", 1) == 1:
        return {**options, "enforce_eager": True}
    if not options.get("enforce_eager"):
        logger.info(
            "vLLM compiles the model before it answers, which takes from half a minute to many "
            "minutes on a CPU; engine.enforce_eager=true does without"
        )
    return options


class VllmEngine:
    """A ``vllm.LLM`` in this process. ``options`` are its arguments, as engine_options gives them.

    Raises ConfigError for options that vLLM refuses, RunFailed if it does not start.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        from vllm import LLM
        from vllm.platforms import current_platform

        if current_platform.is_cpu():
            memory.check_engine(options)
            # Otherwise vLLM leaves one core to the process that schedules, which has little to do.
            os.environ.setdefault("VLLM_CPU_NUM_OF_RESERVED_CPU", "0")
            options = _eager_on_cpu(options)
        try:
            self._llm = LLM(**options)
        except (ValueError, TypeError, NotImplementedError) as error:
            raise ConfigError(f"engine: vLLM refuses: {one_line(error)}") from error
        except Exception as error:  # whatever else keeps an engine from starting
            raise RunFailed(f"vLLM did not start: {error}") from error

    @property
    def max_model_len(self) -> int:
        return self._llm.model_config.max_model_len

    def generate(
        self, requests: Sequence[Request], on_tokens: OnTokens, with_shifts: bool = False
    ) -> Iterator[Completion]:
        """Yields each request's completion when it has finished, in any order. with_shifts: each
        with W delta; then there are at most KEPT_LOSSES requests."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        engine = self._llm.llm_engine
        waiting = deque(requests)
        running: dict[str, Completion] = {}
        while waiting or running:
            # The engine runs ahead of us, and keeps the losses of so many finished requests only.
            while waiting and len(running) < KEPT_LOSSES:
                request = waiting.popleft()
                params = SamplingParams(**request.sampling, output_kind=RequestOutputKind.DELTA)
                (prompt,) = self._llm.renderer.render_cmpl([{"prompt_token_ids": request.prompt}])
                engine.add_request(request.id, prompt, params)
                tokens: list[list[int]] = [[] for _ in range(params.n)]
                running[request.id] = Completion(request, [""] * params.n, tokens, [""] * params.n)
            for output in engine.step():
                answers = running[output.request_id]
                for part in output.outputs:
                    answers.texts[part.index] += part.text
                    answers.tokens[part.index] += part.token_ids
                    answers.finish_reasons[part.index] = part.finish_reason or ""
                on_tokens(output.request_id, sum(len(part.token_ids) for part in output.outputs))
                if output.finished:
                    if answers.request.sampling.get("extra_args", {}).get("slot_steps"):
                        answers.losses = self._report("slot_losses", output.request_id)
                    if with_shifts:
                        shifts = self._report("slot_token_shifts", output.request_id)
                        answers.shifts = (
                            None if shifts is None else np.frombuffer(shifts, np.float32)
                        )
                    yield running.pop(output.request_id)

    def _report(self, method: str, request_id: str) -> Any:
        """Of the first worker that knows the request."""
        reports = self._llm.collective_rpc(method, args=(request_id,))
        return next((report for report in reports if report is not None), None)

    def close(self) -> None:
        """Ends the engine and frees its memory."""
        del self._llm
        gc.collect()
