"""The forward pass of decoders of the Qwen3 kind, made for decoding: few large kernels, nothing computed twice.

    x [rows, hidden] --norm--> q k v in one product --norm, rotary--> cache, attention over slots --> + x
                     --norm--> gate and up in one product --> down --> + x                          (per layer)

Running rows and new prompts go through every product together; only attention treats them apart. The packed weights
are the memory of the model's own parameters, which become views of it: whoever writes to the model writes to both.
Numbers equal the Hugging Face forward pass up to the order of summation.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.model import Model
from trainer.rollout.forward import NewPrompt, padded

_AVAILABLE = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
_onednn = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if _AVAILABLE else None
_ONEDNN_FROM = 1_000_000
"""Multiply-adds from which oneDNN's faster product makes up for its dearer call."""
_MULTIPLE = 8
"""Products have a multiple of this number of rows: oneDNN compiles a kernel for every shape that it meets."""


class PackedForward:
    """Implements `SlotForward`; `trainer.decoder.supports` says for which models."""

    def __init__(self, model: Model, slots: int, length: int) -> None:
        config = model.config
        decoder = model.base_model
        first = decoder.layers[0].self_attn
        self._decoder = decoder
        self._heads, self._kv_heads, self._head_dim = (
            config.num_attention_heads,
            config.num_key_value_heads,
            first.head_dim,
        )
        self._layers = [_Layer(layer) for layer in decoder.layers]
        weight = decoder.embed_tokens.weight
        shape = (len(self._layers), slots + -slots % _MULTIPLE, self._kv_heads)
        self._keys = torch.zeros(*shape, self._head_dim, length, dtype=weight.dtype, device=weight.device)
        self._values = torch.zeros(*shape, length, self._head_dim, dtype=weight.dtype, device=weight.device)
        self._tabulate(length)

    def step(self, tokens: Tensor, positions: Tensor, active: int, prompts: Sequence[NewPrompt]) -> Tensor:
        running, kv = len(tokens), self._kv_heads
        n = running + -running % _MULTIPLE
        if n > running:
            tokens, positions = (F.pad(each, (0, n - running)) for each in (tokens, positions))
        # Rows beyond the running ones write into slots that are free or about to be filled.
        places = positions.repeat_interleave(kv) if kv > 1 else positions
        hidden_from = self._entries[:active] > places.unsqueeze(1)
        mask = torch.zeros_like(hidden_from, dtype=self._keys.dtype).masked_fill_(hidden_from, -torch.inf).unsqueeze(1)
        fresh = _Fresh(prompts, tokens.device) if prompts else None
        if fresh is not None:
            tokens, positions = torch.cat((tokens, fresh.tokens)), torch.cat((positions, fresh.positions))
        x = self._decoder.embed_tokens.weight.index_select(0, tokens)
        cos, sin = self._cos.index_select(0, positions), self._sin.index_select(0, positions)
        for index, layer in enumerate(self._layers):
            heads = _product(_unit(x, layer.eps).mul_(layer.input_norm), layer.qkv).view(len(x), -1, self._head_dim)
            rotating = self._heads + kv
            scaled = _unit(heads[:, :rotating], layer.eps)
            scaled[:, : self._heads] *= layer.query_norm
            scaled[:, self._heads :] *= layer.key_norm
            turned = _rotated(scaled, cos, sin)
            query, key, value = turned[:, : self._heads], turned[:, self._heads :], heads[:, rotating:]
            mixed = []
            if n:
                mixed.append(self._attend_slots(index, query[:n], key[:n], value[:n], places, mask, layer.scaling))
            if fresh is not None:
                mixed.append(self._attend_prompts(index, running, fresh, query[n:], key[n:], value[n:], layer.scaling))
            x = x + _product(mixed[0] if len(mixed) == 1 else torch.cat(mixed), layer.out)
            gate, up = _product(_unit(x, layer.eps).mul_(layer.mlp_norm), layer.gate_up).chunk(2, dim=-1)
            x += _product(F.silu(gate).mul_(up), layer.down)
        if fresh is not None:
            x = torch.cat((x[:running], x[n:].index_select(0, fresh.last).repeat_interleave(fresh.rows, dim=0)))
            x = F.pad(x, (0, 0, 0, -len(x) % _MULTIPLE))
        return _unit(x, self._decoder.norm.variance_epsilon).mul_(self._decoder.norm.weight)

    def _attend_slots(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, places: Tensor, mask: Tensor, scaling: float
    ) -> Tensor:
        """Store one key and value per row at `places` [rows * kv_heads] and attend over the rows: [rows, heads * dim]."""
        n, many, dim, active = len(query), len(places), self._head_dim, mask.shape[-1]
        keys = self._keys[layer].view(-1, dim, self._length)[:many]
        values = self._values[layer].view(-1, self._length, dim)[:many]
        every = self._entries_of_rows[:many]
        keys[every, :, places] = key.reshape(many, dim)
        values[every, places] = value.reshape(many, dim)
        grouped = query.reshape(many, -1, dim)
        scores = torch.baddbmm(mask.expand(many, grouped.shape[1], active), grouped, keys[:, :, :active], alpha=scaling)
        return torch.bmm(scores.softmax(dim=-1), values[:, :active]).view(n, -1)

    def _attend_prompts(
        self, layer: int, first: int, fresh: "_Fresh", query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """Store the prompts' keys and values in their rows and attend inside each prompt: [tokens, heads * dim]."""
        query, key, value = (
            states.view(fresh.count, fresh.width, -1, self._head_dim).transpose(1, 2) for states in (query, key, value)
        )
        rows = slice(first, first + fresh.total)
        self._keys[layer, rows, :, :, : fresh.width] = key.transpose(2, 3).repeat_interleave(fresh.rows, dim=0)
        self._values[layer, rows, :, : fresh.width] = value.repeat_interleave(fresh.rows, dim=0)
        grouped = query.shape[1] != key.shape[1]
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=grouped)
        return mixed.transpose(1, 2).reshape(fresh.count * fresh.width, -1)

    @property
    def _length(self) -> int:
        return self._values.shape[3]

    def ensure(self, length: int) -> None:
        old = self._length
        if length <= old:
            return
        self._keys = F.pad(self._keys, (0, length - old))
        self._values = F.pad(self._values, (0, 0, 0, length - old))
        self._tabulate(length)

    def _tabulate(self, length: int) -> None:
        """Rotary tables [length, 1, head_dim], and the numbers of entries and of rows times heads."""
        device = self._keys.device
        self._entries = torch.arange(length, device=device)
        self._entries_of_rows = torch.arange(self._keys.shape[1] * self._kv_heads, device=device)
        cos, sin = self._decoder.rotary_emb(self._keys, self._entries.unsqueeze(0))
        self._cos, self._sin = cos[0].unsqueeze(1), sin[0].unsqueeze(1)

    def move(self, source: Tensor, target: Tensor, active: int) -> None:
        self._keys[:, target, :, :, :active] = self._keys[:, source, :, :, :active]
        self._values[:, target, :, :active] = self._values[:, source, :, :active]

    def save(self, rows: int, active: int) -> Sequence[Tensor]:
        return [self._keys[:, :rows, :, :, :active].clone(), self._values[:, :rows, :, :active].clone()]

    def restore(self, saved: Sequence[Tensor]) -> None:
        keys, values = saved
        rows, active = keys.shape[1], keys.shape[-1]
        self.ensure(active)
        self._keys[:, :rows, :, :, :active] = keys
        self._values[:, :rows, :, :active] = values


class _Layer:
    """The weights of one layer, packed."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.qkv = packed(attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight)
        self.gate_up = packed(mlp.gate_proj.weight, mlp.up_proj.weight)
        self.out, self.down = attention.o_proj.weight, mlp.down_proj.weight
        self.input_norm, self.mlp_norm = layer.input_layernorm.weight, layer.post_attention_layernorm.weight
        self.query_norm, self.key_norm = attention.q_norm.weight, attention.k_norm.weight
        self.eps, self.scaling = layer.input_layernorm.variance_epsilon, attention.scaling


class _Fresh:
    """New prompts as flat tokens [count * width], padded, with what finds their way back."""

    def __init__(self, prompts: Sequence[NewPrompt], device: torch.device) -> None:
        tokens, last, self.rows = padded(prompts, device, _MULTIPLE)
        self.count, self.width = tokens.shape
        self.total = sum(prompt.rows for prompt in prompts)
        self.tokens = tokens.flatten()
        self.positions = torch.arange(self.width, device=device).repeat(self.count)
        self.last = last + torch.arange(self.count, device=device) * self.width


def packed(*parts: torch.nn.Parameter) -> Tensor:
    """The parts [rows, columns] as one tensor in one piece of memory, of which they are views afterwards.

    Parts that are packed already stay where they are, so that several caches can share one model.
    """
    rows = sum(len(part) for part in parts)
    end = parts[0].data_ptr()
    neighbours = True
    for part in parts:
        neighbours &= (
            part.data_ptr() == end and part.untyped_storage().data_ptr() == parts[0].untyped_storage().data_ptr()
        )
        end += part.numel() * part.element_size()
    first = parts[0].detach()
    if neighbours:
        return first.as_strided((rows, *first.shape[1:]), first.stride())
    whole = torch.cat([part.detach() for part in parts])
    start = 0
    for part in parts:
        part.data = whole[start : start + len(part)]
        start += len(part)
    return whole


def _unit(x: Tensor, eps: float) -> Tensor:
    """x over its root mean square in the last dimension, computed in float32."""
    wide = x.float()
    norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    return (wide * torch.addcmul(norm.new_full((), eps), norm, norm, value=1 / x.shape[-1]).rsqrt_()).to(x.dtype)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [rows, heads, head_dim] turned by the angles of cos, sin [rows, 1, head_dim] (both halves alike)."""
    half = x.shape[-1] // 2
    turned = x * cos
    turned[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
    turned[..., half:].addcmul_(x[..., :half], sin[..., half:])
    return turned


def _product(x: Tensor, weight: Tensor) -> Tensor:
    """x [rows, in] times weight [out, in] transposed."""
    if _onednn is None or x.device.type != "cpu" or x.dtype != torch.float32 or len(x) * weight.numel() < _ONEDNN_FROM:
        return F.linear(x, weight)
    product: Tensor = _onednn(x, weight, None, "none", [], None)
    return product
