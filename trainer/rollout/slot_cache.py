"""A static KV cache in which every row is at its own position, so that a finished row can be replaced at once.

    rows    0 .. n-1 are in use, always contiguous        keys, values: [slots, kv_heads, length, head_dim] per layer
    prefill writes one prompt into several rows (the completions of a group share it) and attends inside the prompt
    decode  writes one token per row at that row's position and attends over the longest length in use

Stale entries beyond a row's position are never read: the mask hides them until they are overwritten.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin


class SlotLayer(CacheLayerMixin):  # type: ignore[misc]
    """Keys and values of one layer. What `update` does is set by its cache before each forward pass."""

    def __init__(self, slots: int, length: int, kv_heads: int, head_dim: int, like: Tensor) -> None:
        super().__init__()
        self.keys = torch.zeros(slots, kv_heads, length, head_dim, dtype=like.dtype, device=like.device)
        self.values = torch.zeros_like(self.keys)
        self.first = 0
        self.repeats: Tensor | None = None
        self.positions: Tensor | None = None
        self.active = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the buffers exist from the start."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store new keys and values [rows, kv_heads, tokens, head_dim]; return what to attend over."""
        n, _, tokens, _ = key_states.shape
        if self.repeats is not None:
            shared = key_states.repeat_interleave(self.repeats, dim=0)
            rows = slice(self.first, self.first + len(shared))
            self.keys[rows, :, :tokens] = shared
            self.values[rows, :, :tokens] = value_states.repeat_interleave(self.repeats, dim=0)
            return key_states, value_states
        every = torch.arange(n, device=key_states.device)
        self.keys[every, :, self.positions] = key_states[:, :, 0]
        self.values[every, :, self.positions] = value_states[:, :, 0]
        return self.keys[:n, :, : self.active], self.values[:n, :, : self.active]

    def grow(self, length: int) -> None:
        """Make room for longer rows; what is stored stays."""
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_zeros(*old.shape[:2], length, old.shape[3])
            new[:, :, : old.shape[2]] = old
            setattr(self, name, new)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.active, 0

    def get_seq_length(self) -> int:
        return self.active

    def get_max_length(self) -> int:
        return int(self.keys.shape[2])


class SlotCache(Cache):  # type: ignore[misc]
    """All layers of one model. Callers pass explicit position ids and a 4-D mask with every forward pass."""

    def __init__(self, config: Any, slots: int, length: int, like: Tensor) -> None:
        """`like` has the dtype and the device of the model."""
        kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.slot_layers = [SlotLayer(slots, length, kv_heads, head_dim, like) for _ in range(config.num_hidden_layers)]
        super().__init__(layers=list(self.slot_layers))
        self.length = length

    @property
    def stored(self) -> Iterator[Tensor]:
        """Keys and values of every layer, [slots, kv_heads, length, head_dim]."""
        for layer in self.slot_layers:
            yield layer.keys
            yield layer.values

    def prefill(self, first: int, repeats: Tensor, tokens: int) -> None:
        """The next forward pass stores prompts: prompt i goes into the next `repeats[i]` rows, from row `first` on."""
        for layer in self.slot_layers:
            layer.first, layer.repeats, layer.positions, layer.active = first, repeats, None, tokens

    def decode(self, positions: Tensor, active: int) -> None:
        """The next forward pass stores one token per row at `positions`; attention sees `active` entries."""
        for layer in self.slot_layers:
            layer.repeats, layer.positions, layer.active = None, positions, active

    def ensure(self, length: int) -> None:
        """Rows of up to `length` tokens fit afterwards."""
        if length > self.length:
            self.length = length
            for layer in self.slot_layers:
                layer.grow(length)
