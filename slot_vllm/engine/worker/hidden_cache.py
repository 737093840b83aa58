"""The last hidden states as one more layer of vLLM's paged KV cache.

The layer lies in the blocks of the attention layers, under the same block table: what vLLM does
with a block (prefix caching, copy-on-write, preemption, reuse) it does with its hidden states.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from vllm.config import get_current_vllm_config, set_current_vllm_config
from vllm.model_executor.models.extract_hidden_states import (
    CacheOnlyAttentionBackend,
    CacheOnlyAttentionLayer,
    CacheOnlyAttentionMetadata,
    CacheOnlyAttentionMetadataBuilder,
    basic_cache,
)
from vllm.v1.attention.backend import AttentionCGSupport

from slot_vllm.engine.worker.ranks import ALONE, Ranks

_PREFIX = "slot.hidden_states"


@dataclass(frozen=True)
class Cost:
    """What the layer takes of the KV cache. bytes_per_token: of hidden states. share: of all bytes
    of a token. tokens: the KV cache's capacity. tokens_lost: how many more would fit without."""

    bytes_per_token: int
    share: float
    tokens: int
    tokens_lost: int

    def describe(self) -> str:
        return (
            f"{self.bytes_per_token} bytes per token, {100 * self.share:.1f} % of the KV budget; "
            f"room for {self.tokens} tokens, {self.tokens_lost} fewer than without"
        )


class _Builder(CacheOnlyAttentionMetadataBuilder):
    # The layer is written after the forward pass. vLLM's builder, which writes within it, allows
    # no CUDA graphs, and the model's graphs are those that all its layers allow.
    _cudagraph_support = AttentionCGSupport.ALWAYS

    def build(
        self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False
    ) -> CacheOnlyAttentionMetadata:
        return CacheOnlyAttentionMetadata(common_attn_metadata.slot_mapping)


class _Backend(CacheOnlyAttentionBackend):
    # The V1 runner pads what a separate update in the forward pass would read.
    forward_includes_kv_cache_update = True

    @staticmethod
    def get_builder_cls() -> type[CacheOnlyAttentionMetadataBuilder]:
        return _Builder


class _Layer(CacheOnlyAttentionLayer):
    def __init__(self, size: int, name: str) -> None:
        # In the model's dtype, whatever the attention layers' caches have.
        cache_config = replace(get_current_vllm_config().cache_config, cache_dtype="auto")
        super().__init__(num_heads=1, head_size=size, cache_config=cache_config, prefix=name)

    def get_attn_backend(self) -> type[CacheOnlyAttentionBackend]:
        return _Backend


class HiddenCache:
    """The layer of one runner, whose model is loaded and whose KV cache is not yet allocated.

    size: of a hidden state, d. ranks: each keeps a slice of d / ranks values per token, if that is
    whole, else all d; a prompt's slices are gathered once all ranks have read theirs. name: of the
    layer, with exactly one integer, after those of the model's layers: vLLM orders its caches by
    it. width: the values kept per token on this rank.
    """

    def __init__(self, vllm_config: Any, size: int, ranks: Ranks = ALONE) -> None:
        layers = vllm_config.compilation_config.static_forward_context
        indices = [int(part) for name in layers for part in name.split(".") if part.isdecimal()]
        # Twice, because vLLM counts two attention modules per layer in some models.
        self.name = f"{_PREFIX}.{2 * (1 + max(indices, default=-1))}"
        self.width = size if size % ranks.size else size // ranks.size
        first = 0 if self.width == size else ranks.rank * self.width
        self._slice = slice(first, first + self.width)
        with set_current_vllm_config(vllm_config):
            self._layer = _Layer(self.width, self.name)
        self.cost: Cost | None = None

    @property
    def allocated(self) -> bool:
        return self._layer.kv_cache.numel() > 0

    def group(self, kv_cache_config: Any) -> int:
        """The index of the layer's KV-cache group, and so of its block table."""
        groups = kv_cache_config.kv_cache_groups
        return next(i for i, group in enumerate(groups) if self.name in group.layer_names)

    def write(self, hidden: Tensor, slots: Tensor) -> None:
        """hidden: (r, d). slots: (r,) int64, vLLM's slot mapping; what is negative
        goes to the first block, which is nobody's."""
        basic_cache(hidden[:, None, self._slice], self._layer.kv_cache, slots)

    def invalidate(self, slots: Callable[[], Tensor]) -> None:
        """After a failed write: what the slots held before was another prompt's, and nobody may
        read it as his own. They are NaN until they are written again, which no delta is learned
        from; all slots are, if it cannot be told which these are."""
        cache = self._layer.kv_cache
        try:
            basic_cache(cache.new_full((), torch.nan), cache, slots())
        except Exception:
            cache.fill_(torch.nan)

    def read(self, blocks: Tensor, block_size: int, start: int, stop: int) -> Tensor:
        """A request's hidden states ``start`` to ``stop``, (stop - start, d) or this rank's slice
        of them. blocks: its row of the block table, (k,) int32 on the device."""
        positions = torch.arange(start, stop, device=blocks.device)
        slots = blocks[positions // block_size].long() * block_size + positions % block_size
        cache = self._layer.kv_cache
        # A kernel may see vLLM's blocks as several smaller ones.
        return cache[slots // cache.shape[2], :, slots % cache.shape[2]].flatten(1)

    def measure(self, kv_cache_config: Any) -> Cost:
        """What the layer costs in a KV cache that is laid out like this."""
        group = kv_cache_config.kv_cache_groups[self.group(kv_cache_config)]
        spec = getattr(group.kv_cache_spec, "kv_cache_specs", {}).get(
            self.name, group.kv_cache_spec
        )
        mine = spec.page_size_bytes // spec.block_size
        total = sum(
            g.kv_cache_spec.page_size_bytes // g.kv_cache_spec.block_size
            for g in kv_cache_config.kv_cache_groups
        )
        blocks, size = kv_cache_config.num_blocks, spec.block_size
        tokens = blocks * size
        without = blocks * total // max(1, total - mine) * size
        self.cost = Cost(mine, mine / total, tokens, without - tokens)
        return self.cost
