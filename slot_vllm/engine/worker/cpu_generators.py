"""On CPUs, generators of seeded requests that vLLM's V1 runner can rewind.

It draws a token for every row of a step and takes that back for prompts that go on in the next one,
by the generator's offset. Only CUDA's generators have one: on a CPU the engine core dies, whoever
splits the prompt, vLLM (its limit on tokens per step) or this package (``max_concurrent``).
"""

from typing import Any

import numpy as np
import torch


class RewindableGenerator(torch.Generator):
    """torch's generator of a CPU. Setting an offset brings back the state that was kept."""

    def keep(self) -> None:
        self._kept = self.get_state()

    def get_offset(self) -> int:
        return 0

    def set_offset(self, offset: int) -> torch.Generator:
        self.set_state(self._kept)
        return self


def keep_states(runner: Any) -> None:
    """Before a step of the V1 runner draws tokens: those of rows that it will take back."""
    batch = runner.input_batch
    for row in map(int, np.flatnonzero(runner.discard_request_mask.np[: batch.num_reqs])):
        generator = batch.generators.get(row)
        if generator is None:
            continue
        if not isinstance(generator, RewindableGenerator):
            state = generator.get_state()
            generator = batch.generators[row] = RewindableGenerator()
            generator.set_state(state)
            runner.requests[batch.req_ids[row]].generator = generator
        generator.keep()
