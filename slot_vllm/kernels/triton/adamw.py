"""One AdamW step for a batch of vectors, on CUDA: one launch.

Floor, for B vectors of size d: 28 B d bytes (parameter and both moments read and written, the
gradient read): 0.4 MB at d = 3584, B = 4. Bound by the launch, a few microseconds.
"""

import triton
import triton.language as tl
from torch import Tensor

from slot_vllm.kernels.adamw import AdamW

_BLOCK = 1024


def adamw_step(gradient: Tensor, state: AdamW, step: int) -> None:
    """See ``slot_vllm.kernels.adamw.adamw_step``."""
    vectors, size = gradient.shape
    moments = (state.first, state.second)
    assert all(t.is_contiguous() for t in (state.parameter, gradient, *moments))
    _adamw_step[(vectors, -(-size // _BLOCK))](
        state.parameter,
        gradient,
        *moments,
        *state.settings.split(1, dim=1),
        state.settings.stride(0),
        step,
        size,
        BLOCK=_BLOCK,
        num_warps=4,
    )


@triton.jit(do_not_specialize=["step", "settings_stride"])
def _adamw_step(
    parameter,
    gradient,
    first,
    second,
    lr,
    beta1,
    beta2,
    eps,
    weight_decay,
    settings_stride,
    step,
    size,
    BLOCK: tl.constexpr,
):
    vector = tl.program_id(0)
    setting = vector * settings_stride
    rate = tl.load(lr + setting)
    decay1 = tl.load(beta1 + setting)
    decay2 = tl.load(beta2 + setting)
    # beta ** step; the logarithm of a beta near 1 would lose what is left of 1 - beta ** step.
    power1 = decay1.to(tl.float64)
    power2 = decay2.to(tl.float64)
    for _ in range(1, step):
        power1 *= decay1
        power2 *= decay2
    correction1 = (1.0 - power1).to(tl.float32)
    correction2 = (1.0 - power2).to(tl.float32)

    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < size
    offset = vector.to(tl.int64) * size + column
    g = tl.load(gradient + offset, mask=mask, other=0.0)
    p = tl.load(parameter + offset, mask=mask, other=0.0)
    m = tl.load(first + offset, mask=mask, other=0.0)
    v = tl.load(second + offset, mask=mask, other=0.0)
    p *= 1.0 - rate * tl.load(weight_decay + setting)
    m += (1.0 - decay1) * (g - m)
    v = decay2 * v + (1.0 - decay2) * g * g
    p -= rate / correction1 * m / (tl.sqrt(v / correction2) + tl.load(eps + setting))
    tl.store(parameter + offset, p, mask=mask)
    tl.store(first + offset, m, mask=mask)
    tl.store(second + offset, v, mask=mask)
