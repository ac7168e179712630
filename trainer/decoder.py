"""A lean forward pass for decoders of the Qwen3 kind, over the parameters of the Hugging Face model itself.

    flat tokens [T] -> (RMSNorm, q k v, norm and rotary -> rows [n, L] -> attention -> flat, SwiGLU) per layer -> [T, hidden]

Only attention sees rows with padding; everything else works on the flat tokens. A token may stand in several rows: so
the completions of a group share their prompt, which is computed once and gets the sum of their gradients. Products in
float32 on a CPU go to oneDNN, which is about twice as fast as the BLAS that PyTorch takes there. The result equals that
of the Hugging Face forward pass up to the order of summation; any other architecture takes that one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.model import Model

ROWS = 128
"""oneDNN compiles a kernel, in milliseconds, for every new shape, and remembers 1024: so rows come in multiples of this."""

_onednn: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None  # type: ignore[no-untyped-call]


class Layout(NamedTuple):
    """T tokens, each computed once, and the n sequences of at most L tokens that they stand in."""

    tokens: Tensor
    """[T] token ids; T is a multiple of `ROWS`, filled up with tokens that stand in no sequence."""
    positions: Tensor
    """[T] positions in their sequences."""
    rows: Tensor
    """[n, L] for every sequence the indices in 0..T-1 of its tokens in order; padding, at the end, is any index."""
    home: Tensor
    """[T] where in `rows.flatten()` each token reads its attention output."""


def supports(model: Model) -> bool:
    """Whether `hidden_states` computes what this model computes."""
    config = model.config
    return bool(
        config.model_type == "qwen3"
        and config.hidden_act == "silu"
        and not config.attention_bias
        and not config.attention_dropout
        and all(kind == "full_attention" for kind in config.layer_types)
        and "dynamic" not in config.rope_parameters["rope_type"]
        and config.rope_parameters["rope_type"] != "longrope"
    )


def hidden_states(model: Model, layout: Layout, run: Callable[..., Tensor] | None = None) -> Tensor:
    """Final hidden states [T, hidden] of the tokens of a layout. `run` calls `block` with what it is given."""
    tokens, positions, rows, home = layout
    decoder, run = model.base_model, run or block
    x = F.embedding(tokens, decoder.embed_tokens.weight)
    cos, sin = (table[0].unsqueeze(1) for table in decoder.rotary_emb(x, positions.unsqueeze(0)))
    for layer in decoder.layers:
        x = run(layer, x, cos, sin, rows, home)
    return rms_norm(x, decoder.norm)


def block(layer: Any, x: Tensor, cos: Tensor, sin: Tensor, rows: Tensor, home: Tensor) -> Tensor:
    """One layer: the residual stream x [T, hidden] before and after it."""
    attention, mlp, where = layer.self_attn, layer.mlp, rows.flatten()

    def spread(states: Tensor) -> Tensor:
        """[T, heads, head_dim] -> [n, heads, L, head_dim]"""
        return states.index_select(0, where).view(*rows.shape, *states.shape[1:]).transpose(1, 2)

    normed = rms_norm(x, layer.input_layernorm)
    query, key, value = (
        linear(normed, part.weight).view(len(x), -1, attention.head_dim)
        for part in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    mixed = F.scaled_dot_product_attention(
        spread(rotary(rms_norm(query, attention.q_norm), cos, sin)),
        spread(rotary(rms_norm(key, attention.k_norm), cos, sin)),
        spread(value),
        is_causal=True,
        scale=attention.scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    x = x + linear(mixed.transpose(1, 2).flatten(2).flatten(0, 1).index_select(0, home), attention.o_proj.weight)
    normed = rms_norm(x, layer.post_attention_layernorm)
    gated = F.silu(linear(normed, mlp.gate_proj.weight)) * linear(normed, mlp.up_proj.weight)
    return x + linear(gated, mlp.down_proj.weight)


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x [..., in] times weight [out, in] transposed. Fast where there is a multiple of `ROWS` rows."""
    if (
        _onednn is None
        or x.device.type != "cpu"
        or x.dtype != torch.float32
        or not x.numel()
        or x.numel() % (ROWS * x.shape[-1])
        or torch.is_autocast_enabled("cpu")
    ):
        return F.linear(x, weight)
    product: Tensor = _Linear.apply(x.reshape(-1, x.shape[-1]), weight)  # type: ignore[no-untyped-call]
    return product.view(*x.shape[:-1], -1)


def filled_up(values: Tensor) -> Tensor:
    """[T] with zeros added until T is a multiple of `ROWS`."""
    return F.pad(values, (0, -len(values) % ROWS))


def rms_norm(x: Tensor, norm: Any) -> Tensor:
    """A Hugging Face RMSNorm module over the last dimension."""
    normed: Tensor = _RMSNorm.apply(x.float(), norm.weight.float(), norm.variance_epsilon)  # type: ignore[no-untyped-call]
    return normed.type_as(x)


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates [T, heads, head_dim] by the angles of cos, sin [T, 1, head_dim], whose two halves are alike."""
    rotated: Tensor = _Rotary.apply(x, cos, sin)  # type: ignore[no-untyped-call]
    return rotated


def _product(x: Tensor, weight: Tensor) -> Tensor:
    result: Tensor = _onednn(x, weight, None, "none", [], None)
    return result


class _Linear(torch.autograd.Function):
    """F.linear through oneDNN."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        wide = weight.shape[0] > weight.shape[1]  # few long rows are faster than many short ones
        return _product(grad, weight.t()), _product(x.t(), grad.t()).t() if wide else _product(grad.t(), x.t())


class _RMSNorm(torch.autograd.Function):
    """x / rms(x) * weight, in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        length: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = (length.square_() / x.shape[-1] + eps).rsqrt_()
        normed = x * scale
        ctx.save_for_backward(normed, scale, weight)
        return normed * weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        normed, scale, weight = ctx.saved_tensors
        product = grad * normed
        along = (product @ weight).unsqueeze(-1) / -weight.shape[0]
        dx = (grad * weight).addcmul_(normed, along).mul_(scale)
        return dx, product.flatten(0, -2).sum(dim=0), None


class _Rotary(torch.autograd.Function):
    """The rotation, and the opposite one for the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin[..., : sin.shape[-1] // 2])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotate(grad, cos, -sin[..., : sin.shape[-1] // 2]), None, None


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """As `rotary`, with half of the sines."""
    half = x.shape[-1] // 2
    out = x * cos
    out[..., :half].addcmul_(x[..., half:], sin, value=-1)
    out[..., half:].addcmul_(x[..., :half], sin)
    return out
