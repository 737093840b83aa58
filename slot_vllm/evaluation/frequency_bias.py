"""The prompt's own token frequencies against the model's prediction of them, as a logit bias."""

import gc
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import softplus

from slot_vllm.evaluation.config import RunConfig
from slot_vllm.evaluation.control import Bias
from slot_vllm.evaluation.models.in_transformers import load
from slot_vllm.evaluation.progress import Stage

# Of logits, [rows, V], that are in memory at once.
_ROWS = 256


@dataclass(frozen=True)
class PromptFrequencies:
    """Of the k distinct targets x_2, ..., x_n of a prompt.

    tokens: [k] ids. counts: [k]. log_mean: [k] float32, of the mean over the n - 1 rows of the
        probability that the model itself gives the token.
    """

    tokens: torch.Tensor
    counts: torch.Tensor
    log_mean: torch.Tensor

    def bias(self, settings: Bias) -> dict[int, float]:
        """By token (``control.Bias`` derives it): strength * log(1 + c / (pseudo_count * m))."""
        ratio = self.counts.log() - math.log(settings.pseudo_count) - self.log_mean
        values = settings.strength * softplus(ratio)
        return dict(zip(self.tokens.tolist(), values.tolist(), strict=True))


def frequencies(config: RunConfig, prompts: Sequence[Sequence[int]]) -> list[PromptFrequencies]:
    """Of each prompt, by the run's model in transformers, whose memory is free afterwards.

    One forward pass over the prompt, in the engine's dtype. Raises ConfigError for a model that
    transformers does not load.
    """
    model = load(config, "a control's bias")
    found = []
    with Stage("the model's own predictions of the prompts") as stage:
        for prompt in prompts:
            found.append(of_prompt(model, prompt))
            stage.reach(len(found) / len(prompts))
    del model
    gc.collect()
    torch.cuda.empty_cache()
    return found


@torch.inference_mode()
def of_prompt(model: Any, prompt: Sequence[int]) -> PromptFrequencies:
    """model: a causal language model of transformers. A single token has no targets."""
    if len(prompt) < 2:
        return PromptFrequencies(torch.empty(0, dtype=torch.long), torch.empty(0), torch.empty(0))
    ids = torch.tensor([prompt], device=model.device)
    tokens, counts = ids[0, 1:].unique(return_counts=True)
    parts = []
    cache = None
    for rows in ids[:, :-1].split(_ROWS, dim=1):
        read = model(rows, past_key_values=cache, use_cache=True)
        cache, logits = read.past_key_values, read.logits[0].float()
        log_p = logits[:, tokens] - logits.logsumexp(-1, keepdim=True)
        parts.append(log_p.logsumexp(0))
    log_mean = torch.stack(parts).logsumexp(0) - math.log(len(prompt) - 1)
    return PromptFrequencies(tokens.cpu(), counts.cpu(), log_mean.cpu())
