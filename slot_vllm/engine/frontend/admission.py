"""Admission: every request of an engine gets its resolved SLOT settings here, or an error.

A request that names a ``slot_*`` key and cannot be served gets an error (HTTP 400). One that has
SLOT only from the engine's defaults is served without it; the worker counts it by reason.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import SamplingParams
from vllm.v1.engine.input_processor import InputProcessor

from slot_vllm.chat_turns import UndeterminedError
from slot_vllm.engine.frontend.lora import changes_the_head
from slot_vllm.engine.frontend.origins import current_origin
from slot_vllm.engine.vllm_contract.wraps import over, wrap
from slot_vllm.engine.wire.engine_settings import asks_for_slot, read_config
from slot_vllm.engine.wire.resolved import RESOLVED, Resolved, ResolvedDict
from slot_vllm.loss_tokens import LossTokens, Span, without
from slot_vllm.params import SlotConfig, SlotError, SlotParams, named

logger = logging.getLogger("vllm.slot_vllm")

LONG_PROMPT = "long_prompt"


class AcceptedDict(dict[str, Any]):
    """Marks the ``extra_args`` of a request whose response has begun: a later prompt of it that
    cannot have SLOT is served without it, as an error comes too late."""


class Admission:
    """Admission to one engine. ``check``, ``spans`` and ``admit`` raise VLLMValidationError.
    tokenizer: gives the engine's, or None."""

    def __init__(self, config: SlotConfig, tokenizer: Callable[[], Any] = lambda: None) -> None:
        self.config = config
        self._tokenizer = tokenizer
        self._loss_tokens: LossTokens | None = None
        self._warned: set[str] = set()

    def obstacle(
        self,
        embeddings: bool,
        resumable: bool,
        lora_request: Any,
        prompt_tokens: int,
    ) -> str | None:
        """Why a request cannot have SLOT, as the counter names it; None if it can."""
        if resumable:
            return "streaming_input"
        if embeddings:
            return "prompt_embeddings"
        if lora_request is not None and changes_the_head(lora_request):
            return "lora_on_head"
        if self.config.refuses(prompt_tokens):
            return LONG_PROMPT
        return None

    def check(
        self, extra_args: Mapping[str, Any] | None, reason: str | None
    ) -> tuple[SlotParams, str | None]:
        """The request's settings and why they are bypassed, or None."""
        if extra_args and RESOLVED in extra_args:
            raise VLLMValidationError(f"{RESOLVED}: unknown key; settings start with slot_")
        try:
            params = self.config.resolve(extra_args)
        except SlotError as error:
            raise VLLMValidationError(str(error)) from None
        if reason is None or not params.steps:
            return params, None
        if named(extra_args) and not isinstance(extra_args, AcceptedDict):
            keys = ", ".join(named(extra_args))
            message = f"{keys}: SLOT cannot serve this request: {reason}"
            if reason == LONG_PROMPT:
                message += f"; allowed: at most max_prompt_tokens={self.config.max_prompt_tokens}"
            raise VLLMValidationError(message)
        self._warn(reason)
        return params, reason

    def _warn(self, reason: str) -> None:
        if reason not in self._warned:
            self._warned.add(reason)
            logger.warning("SLOT is left out of requests with %s", reason)

    def spans(
        self,
        extra_args: Mapping[str, Any] | None,
        params: SlotParams,
        tokens: Sequence[int],
        features: Sequence[Any] = (),
    ) -> tuple[list[Span] | None, str | None]:
        """The spans of the tokens that the request learns from, None if the worker can tell; and
        why it is bypassed, or None. features: the prompt's images and the like."""
        if not params.steps:
            return None, None
        spans, bypassed = self._spans_of_words(extra_args, params, tokens)
        # Where embeddings of an image or the like take the places of tokens; vLLM names the first
        # and the last.
        placeholders = [
            (first, last + 1)
            for feature in features
            for first, last in feature.mm_position.extract_embeds_range()
        ]
        if bypassed is None and placeholders:
            length = len(tokens)
            spans = without([(0, length)] if spans is None else spans, placeholders, length)
        return spans, bypassed

    def _spans_of_words(
        self, extra_args: Mapping[str, Any] | None, params: SlotParams, tokens: Sequence[int]
    ) -> tuple[list[Span] | None, str | None]:
        wanted = params.words
        if wanted is None:
            return None, None
        if self._loss_tokens is None:
            self._loss_tokens = LossTokens(self._tokenizer())
        try:
            return self._loss_tokens.spans(tokens, wanted), None
        except UndeterminedError as error:
            if named(extra_args) and not isinstance(extra_args, AcceptedDict):
                message = f"slot_loss_tokens={wanted!r}: {error}; allowed: 'all' or an integer"
                raise VLLMValidationError(message) from None
        self._warn("loss_tokens")
        return None, "loss_tokens"

    def admit(self, request: Any, request_id: str) -> None:
        """Write the resolved settings into the engine's own copy of the request's parameters."""
        sampling_params = request.sampling_params
        if sampling_params is None:
            return
        extra_args = sampling_params.extra_args
        if extra_args and isinstance(extra_args.get(RESOLVED), ResolvedDict):
            return
        origin = current_origin.get()
        reason = (
            origin.reason
            if origin
            else self.obstacle(
                embeddings=request.prompt_embeds is not None,
                resumable=request.resumable,
                lora_request=request.lora_request,
                prompt_tokens=len(request.prompt_token_ids or ()),
            )
        )
        params, bypassed = self.check(extra_args, reason)
        spans = None
        if bypassed is None:
            spans, bypassed = self.spans(
                extra_args, params, request.prompt_token_ids, request.mm_features or ()
            )
        sampling_params = sampling_params.clone()
        counted = origin is None or origin.counts()
        resolved = Resolved(request_id, params, bypassed, request.cache_salt, spans, counted)
        sampling_params.extra_args = {
            **(extra_args or {}),
            RESOLVED: ResolvedDict(asdict(resolved) | {"params": params.model_dump(mode="json")}),
        }
        if params.steps and bypassed is None and self.config.hidden_cache == "off":
            # A hit in the prefix cache or of a KV connector brings no hidden states.
            sampling_params.skip_reading_prefix_cache = True
        request.sampling_params = sampling_params


def install() -> None:
    """From now on each new InputProcessor of a SLOT engine has its own admission; those of other
    engines are left alone. Idempotent."""

    @wrap(InputProcessor, "__init__")
    def initialize(original: Any, self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        if asks_for_slot(vllm_config):
            _hook(self, Admission(read_config(vllm_config), lambda: self.tokenizer))
        original(self, vllm_config, *args, **kwargs)


def _hook(processor: Any, admission: Admission) -> None:
    # On the instance, before its __init__ hands process_inputs to an executor.
    @over(processor, "process_inputs")
    def process_inputs(
        original: Any, request_id: str, prompt: Any, params: Any, *a: Any, **k: Any
    ) -> Any:
        if isinstance(params, SamplingParams):
            # Bad settings are refused before vLLM works on the prompt.
            admission.check(params.extra_args, None)
        request = original(request_id, prompt, params, *a, **k)
        admission.admit(request, request_id)
        return request

    @over(processor, "assign_request_id")
    def assign_request_id(original: Any, request: Any) -> None:
        # A ready-made EngineCoreRequest did not come through process_inputs.
        admission.admit(request, request.request_id)
        original(request)

    processor.slot_admission = admission
