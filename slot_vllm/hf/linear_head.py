"""The head of a transformers model: found by watching it work, checked to be linear."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from slot_vllm.optim.head import PROBE_ROWS, Head, check_difference, check_shape, weight_of
from slot_vllm.params import SlotError

# Granite divides by its logits_scaling and HyperCLOVA X multiplies by it: both are tried.
_SCALES = ("logit_scale", "logits_scaling", "lm_head_multiplier")


@dataclass(frozen=True)
class TransformersHead:
    """module: gives h W^T + bias, before f. decoder: its ``last_hidden_state`` is that h, for every
    position, also where the module is only given the last one."""

    module: nn.Module
    decoder: nn.Module
    head: Head


@dataclass
class _Watched:
    """What one forward pass on the probe's tokens showed."""

    hidden: list[Tensor]
    probe: Tensor
    states: list[tuple[nn.Module, Tensor]]
    logits: Tensor


def find_head(model: Any) -> TransformersHead:
    """The head of ``model``, a causal language model. Raises SlotError if it is not
    f(h W^T + bias), with h the last hidden states of the decoder."""
    name = type(model).__name__
    module = model.get_output_embeddings()
    if weight_of(module, name).device.type == "meta":
        raise SlotError(f"SLOT needs the head's weight on a device; {name}'s is offloaded")
    try:
        watched = _watch(model, module)
    except Exception as error:
        raise SlotError(
            f"SLOT needs a causal language model; {name} failed on four tokens: {error}"
        ) from error
    if len(watched.hidden) != 1:
        raise SlotError(
            f"SLOT needs one head, used once; {name} used its {type(module).__name__} "
            f"{len(watched.hidden)} times"
        )
    return TransformersHead(
        module, _decoder_of(name, watched), _fitting_head(model, module, watched, name)
    )


def _decoder_of(name: str, watched: _Watched) -> nn.Module:
    given = watched.hidden[0]
    for module, state in watched.states:
        if state.shape == given.shape and torch.equal(state.to(given), given):
            return module
    raise SlotError(
        f"SLOT needs the decoder's last_hidden_state to be what the head is given; in {name} "
        "it is changed on the way"
    )


def _fitting_head(model: Any, module: Any, watched: _Watched, name: str) -> Head:
    """The head with the scale among the config's that fits best."""
    config = model.config.get_text_config()
    bias = getattr(module, "bias", None)
    plain = Head(
        module.weight.detach(),
        None if bias is None else bias.detach(),
        getattr(config, "final_logit_softcapping", None),
    )
    z = plain.exact_shift(watched.probe.to(plain.weight.device))
    if plain.bias is not None:
        z += plain.bias.float()
    logits = watched.logits.to(z)
    check_shape(logits, plain.vocabulary, name)
    heads = [replace(plain, scale=scale) for scale in _scales(config)]
    differences = [_difference(head.activate(z), logits) for head in heads]
    difference, best = min(zip(differences, range(len(heads)), strict=True))
    check_difference(difference, plain.weight.dtype, name)
    return heads[best]


def _scales(config: Any) -> list[float]:
    scales = [1.0]
    for name in _SCALES:
        value = getattr(config, name, None)
        if isinstance(value, int | float) and value > 0:
            scales += [float(value), 1.0 / value]
    return scales


def _difference(expected: Tensor, logits: Tensor) -> float:
    """The largest difference of any row, relative to the row's largest logit."""
    largest = expected.abs().amax(dim=1).clamp(min=1e-3)
    difference = ((logits - expected).abs().amax(dim=1) / largest).max().item()
    return difference if difference == difference else float("inf")


@torch.no_grad()
def _watch(model: Any, module: nn.Module) -> _Watched:
    """One forward pass on a few tokens, in which the head is given random rows."""
    hidden: list[Tensor] = []
    probes: list[Tensor] = []
    states: list[tuple[nn.Module, Tensor]] = []

    def before_head(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden.append(arguments[0])
        rows = torch.randn(arguments[0].shape, generator=torch.Generator().manual_seed(0))
        # A soft cap shows in large logits.
        rows *= 4.0 ** torch.arange(PROBE_ROWS).unsqueeze(1)
        probes.append(rows.to(arguments[0]))
        return (probes[-1], *arguments[1:])

    def after_decoder(decoder: nn.Module, _: Any, output: Any) -> None:
        # The last hidden states come first, in a tuple as in a ModelOutput.
        states.append((decoder, output[0]))

    decoders = {id(m): m for m in (model.base_model, model.get_decoder()) if m is not model}
    hooks = [module.register_forward_pre_hook(before_head)]
    hooks += [m.register_forward_hook(after_decoder) for m in decoders.values()]
    tokens = torch.arange(PROBE_ROWS, device=model.device).unsqueeze(0)
    try:
        logits = model(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            use_cache=False,
            return_dict=True,
        ).logits
    finally:
        for hook in hooks:
            hook.remove()
    probe = probes[0][0] if probes else torch.empty(0)
    return _Watched(hidden, probe, states, logits[0])
