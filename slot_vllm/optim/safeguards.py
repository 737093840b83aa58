"""How much of each learned delta is applied: a holdout's choice, then a trust region's bound. And
what it does where it is first applied, for those who want to know."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from slot_vllm.optim.device import to_device
from slot_vllm.optim.head import Head
from slot_vllm.optim.holdout import SCALES, choose
from slot_vllm.optim.parts import Parts
from slot_vllm.optim.prompt import Prompt
from slot_vllm.optim.scaled_rows import Logits, ScaledRows, row_divergences, summed_losses
from slot_vllm.optim.shard import Shard, widest
from slot_vllm.optim.trust_region import EVALUATIONS, largest_scales
from slot_vllm.optim.workspace import Workspace, aligned


class Safeguards:
    """Of a group of prompts, some of which ask for one. Takes its part of the workspace: for each
    that asks, or whose ``effects`` are wanted, a float32 vector over the vocabulary, W delta, and
    the tiles of ``ScaledRows``.

    prompts: the rows that a form must have besides those that are learned from, in the order in
    which it must have them, after the group's. shard: as of ``TwoPassForm``. effects: whether
    ``held_losses`` and ``last_kl`` are wanted; each prompt then has its last row in ``rest``.
    held_losses: (2,) float32 by request, once ``scales`` was called; see ``Learned``.
    """

    def __init__(
        self,
        head: Head,
        group: Sequence[Parts],
        workspace: Workspace,
        shard: Shard | None = None,
        effects: bool = False,
    ) -> None:
        self._head, self._group, self._effects = head, group, effects
        self.held_losses: dict[int, Tensor] = {}
        # A CPU is where the host sees results at once; but ranks must gather equally often.
        self._ends_early = shard is None and head.weight.device.type == "cpu"
        self._examined = [i for i, parts in enumerate(group) if parts.examined]
        self.prompts: list[Prompt] = []
        self._held: dict[int, int] = {}
        self._rest: dict[int, int] = {}
        for i in self._examined:
            for part, places in ((group[i].held, self._held), (group[i].rest, self._rest)):
                if part is not None:
                    places[i] = len(group) + len(self.prompts)
                    self.prompts.append(part)
        self._bounded = [i for i in self._rest if group[i].bounded]
        if self._examined:
            count = len(self._examined)
            self._shifts = workspace.take(
                (count, head.vocabulary), torch.float32, (count, widest(head, shard))
            )
            self._rows = ScaledRows(head, workspace, shard)

    def __bool__(self) -> bool:
        return bool(self._examined)

    @staticmethod
    def vector_bytes(head: Head) -> int:
        """What one request needs whose delta is examined."""
        return aligned(head.vocabulary * 4)

    @staticmethod
    def smallest_rows_bytes(head: Head) -> int:
        """What a group needs besides ``vector_bytes``, with tiles of one row."""
        return ScaledRows.smallest_bytes(head)

    def gathered(self) -> list[tuple[int, ...]]:
        """The shapes of what a rank gives in ``scales``, in their order."""
        held = sum(self._held_of(i).rows for i in self._held)
        bounded = sum(part.rows for i in self._bounded for part in self._group[i].all)
        return [(2, len(SCALES), held)] * bool(held) + [(3, bounded)] * (
            EVALUATIONS if bounded else 0
        )

    def gathered_for_last_kl(self) -> list[tuple[int, ...]]:
        """The same of ``last_kl``."""
        return [(3, sum(self._rest_of(i).rows for i in self._rest))] * self._effects

    def scales(self, form: Logits, deltas: Tensor) -> Tensor:
        """(B,) float32, from 0 to 1: what deltas (B, d) are to be multiplied by. form: has learned
        them."""
        scales = torch.ones(len(deltas), dtype=torch.float32, device=deltas.device)
        if not self._examined:
            return scales
        examined = self._places(self._examined, deltas)
        self._head.exact_shift(deltas.index_select(0, examined), out=self._shifts)
        shifts = self._shift_of
        if self._held:
            terms = [
                self._rows.losses(form, place, self._held_of(i), shifts[i], SCALES)
                for i, place in self._held.items()
            ]
            losses = torch.stack([summed_losses(one) for one in self._rows.over_ranks(terms)])
            scales.index_copy_(0, self._places(self._held, deltas), choose(losses))
            if self._effects:
                self._keep_held_losses(losses)
        if self._bounded:
            bounded = self._bounded
            bounds = [self._group[i].prompt.params.max_kl for i in bounded]
            places = self._places(bounded, deltas)

            def divergence(at: Tensor, needed: Sequence[bool]) -> Tensor:
                chosen = [k for k, need in enumerate(needed) if need]
                terms = [self._terms(form, bounded[k], shifts[bounded[k]], at[k]) for k in chosen]
                found = list(torch.zeros_like(at))
                for k, one in zip(chosen, self._rows.over_ranks(terms), strict=True):
                    rows = row_divergences(one)
                    # The last row of the last part is the prompt's.
                    found[k] = torch.maximum(rows.mean(), rows[-1])
                return torch.stack(found)

            within = largest_scales(
                divergence,
                scales[places],
                to_device(bounds, torch.float32, scales.device),
                self._ends_early,
            )
            scales.index_copy_(0, places, within)
        return scales

    def last_kl(self, form: Logits, scales: Tensor) -> Tensor:
        """(B,) float32, nats: KL(adapted || own) of the next-token distribution at each prompt's
        last position, with ``scales`` (B,) times the deltas that the method of that name got."""
        shifts = self._shift_of
        terms = [
            self._rows.divergences(form, place, self._rest_of(i), shifts[i], scales[i])
            for i, place in self._rest.items()
        ]
        return torch.stack([row_divergences(one)[-1] for one in self._rows.over_ranks(terms)])

    def _keep_held_losses(self, losses: Tensor) -> None:
        """losses: (k, len(SCALES)), summed, of those that have a holdout."""
        chosen = losses.nan_to_num(nan=torch.inf).amin(dim=1)
        for i, pair in zip(self._held, torch.stack((losses[:, 0], chosen), dim=1), strict=True):
            self.held_losses[i] = (pair / self._held_of(i).rows).float()

    @staticmethod
    def _places(requests: Iterable[int], like: Tensor) -> Tensor:
        return to_device(list(requests), torch.int64, like.device)

    def _held_of(self, i: int) -> Prompt:
        held = self._group[i].held
        assert held is not None
        return held

    @property
    def _shift_of(self) -> dict[int, Tensor]:
        """W delta by request."""
        return dict(zip(self._examined, self._shifts, strict=True))

    def _rest_of(self, i: int) -> Prompt:
        rest = self._group[i].rest
        assert rest is not None
        return rest

    def _terms(self, form: Logits, i: int, shift: Tensor, scale: Tensor) -> Tensor:
        """(3, n), of ``ScaledRows.divergences`` for all rows of the prompt."""
        places = [i, self._rest[i]] if i not in self._held else [i, self._held[i], self._rest[i]]
        return torch.cat(
            [
                self._rows.divergences(form, place, part, shift, scale)
                for place, part in zip(places, self._group[i].all, strict=True)
            ],
            dim=1,
        )
