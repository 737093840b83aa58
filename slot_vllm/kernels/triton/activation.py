"""f and its slope inside Triton kernels."""

import triton
import triton.language as tl


@triton.jit
def activated(z, soft_cap, scale):
    """f(z); z is float32.

    tanh is written with one exponential: tl has none, and the library one does not run under the
    interpreter. Its absolute error is a few units of 2^-24, so f's is that of float32 at the cap.
    """
    if soft_cap is not None:
        e = tl.exp(-2.0 * tl.abs(z) / soft_cap)
        t = (1.0 - e) / (1.0 + e)
        z = soft_cap * tl.where(z < 0.0, -t, t)
    return scale * z


@triton.jit
def activated_with_slope(z, soft_cap, scale):
    """f(z) and f'(z); 1 - tanh^2 without cancellation, as 4 e / (1 + e)^2."""
    if soft_cap is not None:
        e = tl.exp(-2.0 * tl.abs(z) / soft_cap)
        r = 1.0 / (1.0 + e)
        t = (1.0 - e) * r
        y = scale * soft_cap * tl.where(z < 0.0, -t, t)
        slope = scale * 4.0 * e * r * r
    else:
        y = scale * z
        slope = tl.zeros_like(z) + scale
    return y, slope
