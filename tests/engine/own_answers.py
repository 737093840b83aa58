"""What the paper's loop makes of vLLM's own hidden states: for models whose hidden states are not
those of transformers. Nothing here goes through what SLOT takes of a step."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from slot_vllm.optim.head import Head
from slot_vllm.optim.oracle import oracle
from slot_vllm.optim.prompt import Prompt
from slot_vllm.params import SlotParams
from tests.engine.cases import Answer, Case
from tests.engine.runner import V2


class Recorded:
    """From now on, the hidden state of every token that ``runner``'s model computes."""

    def __init__(self, runner: Any) -> None:
        self._runner = runner
        self._rows: dict[str, dict[int, Tensor]] = {}
        self._batch: Any = None
        if V2:
            # Which keeps the batch to itself until the model has run.
            runner.prepare_inputs = self._keeping_batch(runner.prepare_inputs)
        runner.get_model().register_forward_hook(self._record, with_kwargs=True)

    def _keeping_batch(self, prepare_inputs: Callable[..., Any]) -> Callable[..., Any]:
        def prepare(*args: Any, **kwargs: Any) -> Any:
            self._batch = prepare_inputs(*args, **kwargs)
            return self._batch

        return prepare

    def _record(self, model: Any, args: Any, kwargs: dict[str, Any], hidden: Tensor) -> None:
        if V2:
            request_ids, starts = self._batch.req_ids, self._batch.query_start_loc_np
        else:
            request_ids = self._runner.input_batch.req_ids
            starts = self._runner.query_start_loc.np
        for i, request_id in enumerate(request_ids):
            rows = slice(starts[i], starts[i + 1])
            positions = kwargs["positions"][rows].tolist()
            own = self._rows.setdefault(request_id, {})
            own.update(zip(positions, hidden[rows].clone(), strict=True))

    def of(self, output: Any) -> Tensor:
        """(n + new tokens - 1, d), of the request with this output."""
        # The engine appends a suffix of its own.
        (rows,) = (
            rows for name, rows in self._rows.items() if name.startswith(f"{output.request_id}-")
        )
        return torch.stack([rows[position] for position in range(len(rows))])


@torch.no_grad()
def own_answer(head: Head, case: Case, states: Tensor) -> Answer:
    """tokens: at each position the best one, after those that vLLM generated before it."""
    tokens, weight = torch.tensor(case.tokens), head.weight.double()
    params = SlotParams(steps=case.steps, lr=case.lr)
    learned = oracle(head, Prompt(states[: len(tokens)], tokens, params, case.counts))
    z = (states[len(tokens) - 1 :].double() + learned.delta) @ weight.T
    best = head.activate(z if head.bias is None else z + head.bias.double()).topk(2)
    return Answer(
        best.indices[:, 0].tolist(),
        (best.values[:, 0] - best.values[:, 1]).tolist(),
        learned.delta.tolist(),
        learned.losses.tolist(),
    )
