"""SLOT for transformers' ``generate``, without vLLM."""

from slot_vllm.hf.slot import Slot, slot

__all__ = ["Slot", "slot"]
