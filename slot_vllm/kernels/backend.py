"""Which implementation of a kernel a tensor gets."""

from collections.abc import Callable
from functools import update_wrapper
from importlib import import_module
from importlib.util import find_spec
from typing import Generic, ParamSpec, TypeVar

from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


_TRITON_IS_INSTALLED = find_spec("triton") is not None


def uses_triton(tensor: Tensor) -> bool:
    """Whether work on ``tensor`` goes to the Triton kernels: on CUDA, where Triton is installed.

    Under Triton's interpreter the torch versions stay the choice for CPU tensors: they are what
    an engine on a CPU needs.
    """
    return tensor.is_cuda and _TRITON_IS_INSTALLED


class Kernel(Generic[P, R]):
    """Decorates a kernel's torch version, a function whose first argument is a tensor. A call goes
    to ``torch``, that version, or where ``uses_triton`` says so of the tensor to the function of
    the same name in the file of the same name in ``kernels/triton``."""

    def __init__(self, torch: Callable[P, R]) -> None:
        self.torch = torch
        self._name = torch.__name__
        self._triton = torch.__module__.replace("slot_vllm.kernels", "slot_vllm.kernels.triton")
        update_wrapper(self, torch)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        if not uses_triton(args[0]):  # type: ignore[arg-type]
            return self.torch(*args, **kwargs)
        on_device: Callable[P, R] = getattr(import_module(self._triton), self._name)
        return on_device(*args, **kwargs)
