"""A worker extension whose faults are switched on and off over RPC."""

import time
from typing import Any

import torch

from slot_vllm.engine.worker import learning
from slot_vllm.engine.worker.extension import SlotWorkerExtension

# Requests with this learning rate are those that ``poison`` hits.
POISONED_LR = 0.0625


class FaultyExtension(SlotWorkerExtension):
    """Starts without faults. ``switch`` is "on" or "off", unless a fault says what it is."""

    model_runner: Any
    execute_quickly: Any

    def break_optimizer(self, switch: str) -> None:
        """Every optimization raises."""
        if switch == "on":
            self.optimize = learning.optimize
            learning.optimize = _broken
        else:
            learning.optimize = self.optimize

    def slow(self, switch: str) -> None:
        """Every step takes ``switch`` seconds more, so that requests can be met within it."""
        runner = self.model_runner
        if switch == "off":
            runner.execute_model = self.execute_quickly
            return
        self.execute_quickly = runner.execute_model

        def slowly(*args: Any, **kwargs: Any) -> Any:
            time.sleep(float(switch))
            return self.execute_quickly(*args, **kwargs)

        runner.execute_model = slowly

    def poison(self, switch: str) -> None:
        """The first hidden state of prompts with ``POISONED_LR`` is NaN when SLOT sees it."""
        state = self.model_runner.slot_state
        if switch == "off":
            del state.learner._prompt
            return
        prompt = state.learner._prompt

        def poisoned(request: Any, rows: torch.Tensor) -> Any:
            if request.params.lr == POISONED_LR:
                rows = rows.clone()
                rows[0] = torch.nan
            return prompt(request, rows)

        state.learner._prompt = poisoned


def _broken(*_args: Any, **_kwargs: Any) -> Any:
    raise RuntimeError("injected into the optimizer")
