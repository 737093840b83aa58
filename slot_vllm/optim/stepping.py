"""The steps of a group's optimizers: rates by schedule, early stops, AdamW or gradient descent."""

from collections.abc import Sequence

import torch
from torch import Tensor

from slot_vllm.kernels import backend
from slot_vllm.kernels.adamw import adamw_step
from slot_vllm.optim.device import to_device
from slot_vllm.optim.prompt import Prompt
from slot_vllm.optim.schedule import factors

# Columns of a vector over the vocabulary at a time, for what torch's AdamW allocates.
_COLUMNS = 1 << 14


class Stepping:
    """Of B requests, those with many steps first; each with settings of its own."""

    def __init__(self, prompts: Sequence[Prompt], device: torch.device) -> None:
        params = [prompt.params for prompt in prompts]
        columns = [[p.lr, *p.betas, p.eps, p.weight_decay] for p in params]
        self._settings = to_device(columns, torch.float32, device)
        self._descends = [p.optimizer == "sgd" for p in params]
        self._rates: Tensor | None = None
        self._tolerances: Tensor | None = None
        self._steps = [p.steps for p in params]
        most = self._steps[0]
        if any(p.tolerance or p.lr_schedule != "constant" for p in params):
            rates = [
                [p.lr * factor for factor in factors(p)] + [0.0] * (most - p.steps) for p in params
            ]
            self._rates = to_device(rates, torch.float32, device)
        if any(p.tolerance for p in params):
            tolerances = [p.params.tolerance * p.rows or -torch.inf for p in prompts]
            self._tolerances = to_device(tolerances, torch.float64, device)
        self._running = torch.ones(len(params), dtype=torch.bool, device=device)

    def begin(self, t: int, losses: Tensor) -> bool:
        """Before step t, 1 at first. losses: (B, t or more), summed, up to this step's. Whether
        any request may still move; where that cannot be seen without waiting, it is said to."""
        if self._tolerances is not None and t > 1:
            self._running &= ~(losses[:, t - 2] - losses[:, t - 1] < self._tolerances)
        if self._rates is not None and t <= self._rates.shape[1]:
            # A rate of 0 moves nothing, in either optimizer.
            self._settings[:, 0] = self._rates[:, t - 1] * self._running
        if self._tolerances is None or self._running.is_cuda:
            return True
        # Who has taken all of its steps moves no more, stopped or not.
        learning = sum(steps >= t for steps in self._steps)
        return bool(self._running[:learning].any())

    @property
    def rates(self) -> Tensor:
        """(B, 1) float32, of the step that has begun."""
        return self._settings[:, :1]

    def step(
        self, parameter: Tensor, gradient: Tensor, moments: tuple[Tensor, Tensor], t: int
    ) -> None:
        """The first len(parameter) requests take step t. parameter, gradient, and the two moments:
        (b, k) float32; all but the gradient are changed in place."""
        b = len(parameter)
        if not any(self._descends[:b]):
            self._adamw(slice(b), parameter, gradient, moments, t)
            return
        for i in range(b):
            one = slice(i, i + 1)
            if self._descends[i]:
                rate, decay = self._settings[i, 0], self._settings[i, 4]
                parameter[one].mul_(1 - rate * decay).addcmul_(gradient[one], -rate)
            else:
                first, second = moments
                self._adamw(one, parameter[one], gradient[one], (first[one], second[one]), t)

    def _adamw(
        self, of: slice, parameter: Tensor, gradient: Tensor, moments: tuple[Tensor, Tensor], t: int
    ) -> None:
        lr, beta1, beta2, eps, weight_decay = self._settings[of].split(1, dim=1)
        # Triton's is one launch and allocates nothing.
        columns = parameter.shape[1] if backend.uses_triton(parameter) else _COLUMNS
        for p, g, m, v in zip(
            *(x.split(columns, dim=1) for x in (parameter, gradient, *moments)), strict=True
        ):
            adamw_step(p, g, m, v, t, lr, beta1, beta2, eps, weight_decay)
