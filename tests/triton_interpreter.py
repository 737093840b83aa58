"""Spares Triton's interpreter what it does in vain. Imported by what turns it on."""

from dataclasses import replace
from typing import Any

from triton.runtime import interpreter

_patch = interpreter._patch_lang
# The namespaces of functions whose language is patched, by their id.
_patched: dict[int, dict[str, Any]] = {}


def _patched_once(function: Any) -> Any:
    """It looks at all of Triton's names with every launch, and with every call in a kernel. Where
    everything is interpreted the patch can stay."""
    namespace = function.__globals__
    if id(namespace) not in _patched:
        _patched[id(namespace)] = namespace
        _patch(function)
    return interpreter._LangPatchScope()


interpreter._patch_lang = _patched_once
_look_up = interpreter._get_np_dtype
_dtypes: dict[str, Any] = {}


def _known_dtype(dtype: Any) -> Any:
    """It makes a table of all dtypes to look one up."""
    name = dtype.scalar.name
    if name not in _dtypes:
        _dtypes[name] = _look_up(dtype)
    return _dtypes[name]


interpreter._get_np_dtype = _known_dtype
# It computes whether integers overflow, and without ``debug`` does not say so.
builder = interpreter.interpreter_builder
assert not builder.options.debug
builder.options = replace(builder.options, sanitize_overflow=False)
