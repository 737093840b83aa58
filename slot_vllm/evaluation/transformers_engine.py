"""transformers' ``generate``, with SLOT around it (``slot_vllm.hf``), as an engine of a run."""

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from slot_vllm.evaluation.config import RunConfig
from slot_vllm.evaluation.errors import ConfigError, RunFailed, bad_input
from slot_vllm.evaluation.generation import Completion, OnTokens, Request
from slot_vllm.evaluation.models.in_transformers import load
from slot_vllm.hf import Slot, slot
from slot_vllm.params import REQUEST_PREFIX, SlotError


class TransformersEngine:
    """The run's model, on CUDA where there is a GPU. Greedy requests are answered
    ``engine.max_num_seqs`` (1) at a time, sampled ones one by one, by their seeds.

    Raises ConfigError for a model or an option that cannot be used.
    """

    def __init__(self, run: RunConfig, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._batch = _positive(run, "max_num_seqs", 1)
        self._model = load(run, "backend='transformers'")
        self._settings = run.slot.model_dump(include={"max_steps", "workspace_mb"})
        pads = (tokenizer.pad_token_id, tokenizer.eos_token_id)
        self._pad = next((token for token in pads if token is not None), 0)
        ends = self._model.generation_config.eos_token_id
        self._ends = {self._pad, *(ends if isinstance(ends, list) else [ends])}
        positions = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        self.max_model_len = _positive(run, "max_model_len", positions)
        if run.uses_slot:
            settings = {**self._settings, "steps": 0}
            with bad_input(f"model={run.model!r}", SlotError), slot(self._model, **settings):
                pass

    def generate(
        self, requests: Sequence[Request], on_tokens: OnTokens, with_shifts: bool = False
    ) -> Iterator[Completion]:
        for batch in self._batches(requests):
            for request in batch:
                on_tokens(request.id, 0)
            for completion in self._answer(batch, with_shifts):
                on_tokens(completion.request.id, sum(map(len, completion.tokens)))
                yield completion

    def close(self) -> None:
        """Frees the model's memory."""
        del self._model
        gc.collect()
        torch.cuda.empty_cache()

    def _batches(self, requests: Sequence[Request]) -> Iterator[list[Request]]:
        """Requests that one call can answer, the first ones first."""
        kinds = {one.id: repr({**one.sampling, "seed": None}) for one in requests}
        waiting = {one.id: one for one in requests}
        while waiting:
            first = next(iter(waiting.values()))
            size = 1 if first.sampling["temperature"] else self._batch
            alike = (one for one in waiting.values() if kinds[one.id] == kinds[first.id])
            batch = [*islice(alike, size)]
            for one in batch:
                del waiting[one.id]
            yield batch

    def _answer(self, requests: Sequence[Request], with_shifts: bool) -> Iterator[Completion]:
        sampling = requests[0].sampling
        count, stop = sampling["n"], sampling["stop"]
        torch.manual_seed(sampling["seed"])
        try:
            with self._slot(sampling) as context:
                inputs = self._inputs(requests)
                output = self._model.generate(**inputs, **self._options(sampling))
                shifts = context.shifts() if context is not None and with_shifts else None
        except SlotError as error:
            raise RunFailed(f"{requests[0].id}: {error}") from None
        rows = output[:, inputs["input_ids"].shape[1] :].tolist()
        for i, request in enumerate(requests):
            own = [self._read(row, stop) for row in rows[i * count : (i + 1) * count]]
            texts, tokens, reasons = (list(part) for part in zip(*own, strict=True))
            losses = None if context is None else context.losses[i * count].tolist()
            own_shifts = None if shifts is None else shifts[i * count].cpu().numpy()
            yield Completion(request, texts, tokens, reasons, losses, own_shifts)

    def _slot(self, sampling: Mapping[str, Any]) -> AbstractContextManager[Slot | None]:
        asked = sampling.get("extra_args", {})
        if not asked.get("slot_steps"):
            return nullcontext()
        own = {key.removeprefix(REQUEST_PREFIX): value for key, value in asked.items()}
        return slot(self._model, self._tokenizer, **self._settings, report_loss=True, **own)

    def _inputs(self, requests: Sequence[Request]) -> dict[str, torch.Tensor]:
        """Prompts, padded on the left."""
        prompts = [torch.tensor(request.prompt) for request in requests]
        pad = partial(pad_sequence, batch_first=True, padding_side="left")
        mask = pad([torch.ones_like(prompt) for prompt in prompts])
        tokens, device = pad(prompts, padding_value=self._pad), self._model.device
        return {"input_ids": tokens.to(device), "attention_mask": mask.to(device)}

    def _options(self, sampling: Mapping[str, Any]) -> dict[str, Any]:
        options: dict[str, Any] = {
            "max_new_tokens": sampling["max_tokens"],
            "num_return_sequences": sampling["n"],
            "repetition_penalty": sampling["repetition_penalty"],
            "pad_token_id": self._pad,
            "do_sample": sampling["temperature"] > 0,
        }
        if sampling["stop"]:
            options |= {"stop_strings": sampling["stop"], "tokenizer": self._tokenizer}
        if options["do_sample"]:
            options |= {key: sampling[key] for key in ("temperature", "top_p", "top_k", "min_p")}
        return options

    def _read(self, row: list[int], stop: Sequence[str]) -> tuple[str, list[int], str]:
        """Text, tokens and why they ended, of an answer that padding may follow."""
        length = next((i for i, token in enumerate(row) if token in self._ends), len(row))
        text = self._tokenizer.decode(row[:length], skip_special_tokens=True)
        stops = [place for one in stop if (place := text.find(one)) >= 0]
        if stops:
            return text[: min(stops)], row[:length], "stop"
        return text, row[: length + 1], "length" if length == len(row) else "stop"


def _positive(run: RunConfig, option: str, default: Any) -> int:
    value = run.engine.get(option, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"engine.{option}={value!r}: an integer from 1 is required")
    return value
