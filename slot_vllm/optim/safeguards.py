"""How much of each learned delta is applied: a holdout's choice, then a trust region's bound."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from slot_vllm.optim.device import to_device
from slot_vllm.optim.head import Head
from slot_vllm.optim.holdout import SCALES, choose
from slot_vllm.optim.parts import Parts
from slot_vllm.optim.prompt import Prompt
from slot_vllm.optim.scaled_rows import Logits, ScaledRows
from slot_vllm.optim.trust_region import largest_scales
from slot_vllm.optim.workspace import Workspace, aligned


class Safeguards:
    """Of a group of prompts, some of which ask for one. Takes its part of the workspace: for each
    that asks a float32 vector over the vocabulary, W delta, and the tiles of ``ScaledRows``.

    prompts: the rows that a form must have besides those that are learned from, in the order in
    which it must have them, after the group's.
    """

    def __init__(self, head: Head, group: Sequence[Parts], workspace: Workspace) -> None:
        self._head, self._group = head, group
        self._guarded = [i for i, parts in enumerate(group) if parts.guarded]
        self.prompts: list[Prompt] = []
        self._held: dict[int, int] = {}
        self._rest: dict[int, int] = {}
        for i in self._guarded:
            for part, places in ((group[i].held, self._held), (group[i].rest, self._rest)):
                if part is not None:
                    places[i] = len(group) + len(self.prompts)
                    self.prompts.append(part)
        if self._guarded:
            shape = (len(self._guarded), head.vocabulary)
            self._shifts = workspace.take(shape, torch.float32)
            self._rows = ScaledRows(head, workspace)

    def __bool__(self) -> bool:
        return bool(self._guarded)

    @staticmethod
    def vector_bytes(head: Head) -> int:
        """What one request needs that asks for a safeguard."""
        return aligned(head.vocabulary * 4)

    @staticmethod
    def smallest_rows_bytes(head: Head) -> int:
        """What a group needs besides ``vector_bytes``, with tiles of one row."""
        return ScaledRows.smallest_bytes(head)

    def scales(self, form: Logits, deltas: Tensor, biases: Tensor | None) -> Tensor:
        """(B,) float32, from 0 to 1: what deltas (B, d) and biases (B, V), None for zero, are to be
        multiplied by. form: has learned them."""
        scales = torch.ones(len(deltas), dtype=torch.float32, device=deltas.device)
        if not self._guarded:
            return scales
        guarded = self._places(self._guarded, deltas)
        self._head.exact_shift(deltas.index_select(0, guarded), out=self._shifts)
        if biases is not None:
            for i, shift in zip(self._guarded, self._shifts, strict=True):
                shift += biases[i]
        shifts = dict(zip(self._guarded, self._shifts, strict=True))
        if self._held:
            losses = [
                self._rows.losses(form, place, self._held_of(i), shifts[i], SCALES)
                for i, place in self._held.items()
            ]
            scales.index_copy_(0, self._places(self._held, deltas), choose(torch.stack(losses)))
        if self._rest:
            bounded = list(self._rest)
            bounds = [self._group[i].prompt.params.max_kl for i in bounded]
            places = self._places(bounded, deltas)

            def divergence(at: Tensor, needed: Sequence[bool]) -> Tensor:
                zero = torch.zeros((), device=at.device)
                return torch.stack(
                    [
                        self._divergence(form, i, shifts[i], scale) if need else zero
                        for i, scale, need in zip(bounded, at, needed, strict=True)
                    ]
                )

            within = largest_scales(
                divergence, scales[places], to_device(bounds, torch.float32, scales.device)
            )
            scales.index_copy_(0, places, within)
        return scales

    @staticmethod
    def _places(requests: Iterable[int], like: Tensor) -> Tensor:
        return to_device(list(requests), torch.int64, like.device)

    def _held_of(self, i: int) -> Prompt:
        held = self._group[i].held
        assert held is not None
        return held

    def _divergence(self, form: Logits, i: int, shift: Tensor, scale: Tensor) -> Tensor:
        """The larger one: of the prompt's last position, or the mean over all of them."""
        places = [i, self._rest[i]] if i not in self._held else [i, self._held[i], self._rest[i]]
        rows = torch.cat([self._rows.divergences(form, place, shift, scale) for place in places])
        # The last row of the last part is the prompt's.
        return torch.maximum(rows.mean(), rows[-1])
