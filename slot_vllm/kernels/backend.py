"""Which implementation of a kernel a tensor gets."""

from functools import cache
from importlib.util import find_spec

from torch import Tensor


@cache
def _triton_is_installed() -> bool:
    return find_spec("triton") is not None


def uses_triton(tensor: Tensor) -> bool:
    """Whether work on ``tensor`` goes to the Triton kernels: on CUDA, where Triton is installed.

    Under Triton's interpreter the torch versions stay the choice for CPU tensors: they are what
    an engine on a CPU needs.
    """
    return tensor.is_cuda and _triton_is_installed()
