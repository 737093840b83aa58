"""Imported first by the tests of the Triton kernels: turns on Triton's interpreter.

It also learns to multiply bfloat16, and refuses what a device would not survive or not show: reads
and writes outside of a launch's tensors.
"""

import os

os.environ["TRITON_INTERPRET"] = "1"

from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder, TensorHandle

import tests.triton_interpreter  # noqa: F401

_create_dot = InterpreterBuilder.create_dot


def _widened(operand: Any) -> Any:
    if operand.dtype.scalar != tl.bfloat16:
        return operand
    wide = (operand.data.astype(np.uint32) << 16).view(np.float32)
    return TensorHandle(wide, tl.float32)


def _dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
    # The interpreter keeps bfloat16 as integers and would multiply those.
    return _create_dot(self, _widened(a), _widened(b), *rest)


InterpreterBuilder.create_dot = _dot


_begins, _ends = np.zeros(0, np.int64), np.zeros(0, np.int64)
_load, _store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store
_take_arguments = GridExecutor._init_args_hst


def _remembered(self: Any, arguments: Any, options: Any) -> Any:
    global _begins, _ends
    taken = _take_arguments(self, arguments, options)
    storages = [a.untyped_storage() for a in taken[0] if isinstance(a, torch.Tensor)]
    ranges = sorted({(s.data_ptr(), s.data_ptr() + s.nbytes()) for s in storages})
    _begins = np.array([begin for begin, _ in ranges], dtype=np.int64)
    _ends = np.array([end for _, end in ranges], dtype=np.int64)
    return taken


def _check(pointers: Any, mask: Any) -> None:
    addresses = pointers.data[mask.data.astype(bool)].astype(np.int64)
    size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
    at = np.searchsorted(_begins, addresses, side="right") - 1
    if addresses.size and (at.min() < 0 or bool((addresses + size > _ends[at]).any())):
        raise IndexError("an address outside of the launch's tensors")


def _checked_load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
    _check(pointers, mask)
    return _load(self, pointers, mask, *rest)


def _checked_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
    _check(pointers, mask)
    return _store(self, pointers, value, mask, *rest)


GridExecutor._init_args_hst = _remembered
InterpreterBuilder.create_masked_load = _checked_load
InterpreterBuilder.create_masked_store = _checked_store
