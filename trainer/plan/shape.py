"""The shape of a model, from the `config.json` of a Hugging Face directory: parameters, KV cache and FLOPs per token.

Counts are exact: a test compares them with models of transformers, parameter for parameter. An architecture whose
parameters are not known here is refused, because a plan that is silently wrong is worse than none.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controlplane.contract.yamlfile import FileError
from trainer.settings import TinyModel

SHIPPED = Path(__file__).parent / "shapes"

KNOWN = ("llama", "llama4_text", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe")


@dataclass(frozen=True)
class Shape:
    """A decoder. Counts are parameters unless a name says otherwise."""

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    """Head and embedding are one matrix."""
    mlp: int
    """Width of the gated MLP of a layer without experts."""
    expert_layers: int
    """Layers with experts."""
    experts: int
    chosen: int
    """Experts that a token passes through."""
    expert_mlp: int
    shared_mlp: int
    """Width of the expert that every token passes through; 0: there is none."""
    qk_norm: bool
    qkv_bias: bool
    out_bias: bool
    local_layers: int
    """Layers whose attention looks back over at most `window` tokens."""
    window: int

    # Parameters

    @property
    def attention(self) -> int:
        """Of one layer, with its bias terms and norms of query and key."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        weights = self.hidden * (2 * q + 2 * kv)
        return weights + self.qkv_bias * (q + 2 * kv) + self.out_bias * self.hidden + self.qk_norm * 2 * self.head_dim

    @property
    def dense_layer(self) -> int:
        """A layer without experts."""
        return self.attention + 3 * self.hidden * self.mlp + 2 * self.hidden

    @property
    def expert_layer(self) -> int:
        """A layer with experts: all of them, router and shared expert included; 0 without experts."""
        if not self.expert_layers:
            return 0
        widths = self.experts * self.expert_mlp + self.shared_mlp
        return self.attention + 3 * self.hidden * widths + self.hidden * self.experts + 2 * self.hidden

    @property
    def largest_layer(self) -> int:
        """What FSDP gathers at once."""
        return max(self.expert_layer, self.dense_layer if self.layers > self.expert_layers else 0)

    @property
    def head(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def total(self) -> int:
        """All parameters."""
        dense = (self.layers - self.expert_layers) * self.dense_layer
        return dense + self.expert_layers * self.expert_layer + self.hidden + self.head * (1 if self.tied else 2)

    @property
    def active(self) -> int:
        """Parameters that one token passes through, embedding and head included: what people put in the name."""
        return self.total - self.expert_layers * 3 * self.hidden * self.expert_mlp * (self.experts - self.chosen)

    # Work and cache

    @property
    def body_flops(self) -> float:
        """Multiply-adds x 2 of one token through all layers, attention scores not counted."""
        embedding_and_head = self.head * (1 if self.tied else 2)
        return 2.0 * (self.active - embedding_and_head - self.hidden)

    @property
    def head_flops(self) -> float:
        return 2.0 * self.head

    def score_flops(self, context: float) -> float:
        """Of one token that attends to `context` tokens, over all layers: QK^T and its product with V."""
        seen = (self.layers - self.local_layers) * context + self.local_layers * min(context, self.window)
        return 4.0 * self.heads * self.head_dim * seen

    @property
    def kv_values(self) -> int:
        """Numbers in the KV cache for one token: keys and values of every layer."""
        return 2 * self.layers * self.kv_heads * self.head_dim

    def kv_read(self, context: float) -> float:
        """Numbers of the KV cache that the next token reads behind `context` tokens."""
        seen = (self.layers - self.local_layers) * context + self.local_layers * min(context, self.window)
        return 2.0 * self.kv_heads * self.head_dim * seen

    def touched(self, tokens: float) -> float:
        """Parameters that one decoding step of `tokens` completions reads: with experts, those that somebody chose."""
        if not self.expert_layers:
            return float(self.total)
        unchosen: float = (1 - self.chosen / self.experts) ** tokens
        return self.total - self.expert_layers * 3 * self.hidden * self.expert_mlp * self.experts * unchosen


def read_shape(directory: Path) -> Shape:
    """The shape of a model directory.

    Raises:
        FileError: no readable config.json, or an architecture that is not known.
    """
    file = directory / "config.json"
    try:
        config = json.loads(file.read_text())
    except OSError as error:
        raise FileError(f"{file}: cannot be read ({error.strerror or error})") from None
    except ValueError as error:
        raise FileError(f"{file}: is not JSON ({error})") from None
    if not isinstance(config, dict):
        raise FileError(f"{file}: must hold an object, not {type(config).__name__}")
    return shape_of(config, directory.resolve().name, str(file))


def tiny_shape(model: TinyModel, vocabulary: int) -> Shape:
    """The shape of a model made from nothing (trainer.model.make_tiny)."""
    config = {
        "model_type": "qwen3",
        "hidden_size": model.hidden,
        "intermediate_size": model.mlp,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_dim,
        "vocab_size": vocabulary,
    }
    return shape_of(config, model.name)


def shape_of(config: Mapping[str, Any], name: str, where: str = "config.json") -> Shape:
    """The shape that a Hugging Face configuration describes; a vision model's text part counts.

    Raises:
        FileError: a key is missing, or the architecture is not known.
    """
    config = config.get("text_config") or config
    kind = config.get("model_type")
    if kind not in KNOWN:
        raise FileError(f"{where}: model_type is {kind!r}; known are {', '.join(KNOWN)}")
    try:
        return _shape(config, kind, name)
    except KeyError as error:
        raise FileError(f"{where}: has no {error.args[0]}, which a {kind} model needs") from None
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise FileError(f"{where}: does not describe a {kind} model ({error})") from None


def _shape(config: Mapping[str, Any], kind: str, name: str) -> Shape:
    layers, heads = int(config["num_hidden_layers"]), int(config["num_attention_heads"])
    expert_layers, experts, chosen, expert_mlp, shared, mlp = _experts(config, kind, layers)
    biased = kind == "qwen2" or bool(config.get("attention_bias", False))
    local, window = _local(config, kind, layers)
    return Shape(
        name=name,
        hidden=int(config["hidden_size"]),
        layers=layers,
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=int(config.get("head_dim") or config["hidden_size"] // heads),
        vocabulary=int(config["vocab_size"]),
        tied=bool(config.get("tie_word_embeddings", False)),
        mlp=mlp,
        expert_layers=expert_layers,
        experts=experts,
        chosen=chosen,
        expert_mlp=expert_mlp,
        shared_mlp=shared,
        qk_norm=kind in ("qwen3", "qwen3_moe"),
        qkv_bias=biased,
        out_bias=biased and kind != "qwen2",
        local_layers=local,
        window=window,
    )


def _experts(config: Mapping[str, Any], kind: str, layers: int) -> tuple[int, int, int, int, int, int]:
    """Layers with experts, experts, chosen, their width, width of the shared one, width of a layer without."""
    mlp = int(config["intermediate_size"])
    match kind:
        case "mixtral":
            return layers, int(config["num_local_experts"]), int(config["num_experts_per_tok"]), mlp, 0, mlp
        case "qwen3_moe":
            dense, every = set(config.get("mlp_only_layers") or ()), int(config.get("decoder_sparse_step", 1))
            sparse = sum(layer not in dense and (layer + 1) % every == 0 for layer in range(layers))
            width = int(config["moe_intermediate_size"])
            experts = int(config.get("num_experts") or config["num_local_experts"])  # older and newer files
            return sparse, experts, int(config["num_experts_per_tok"]), width, 0, mlp
        case "llama4_text":
            every = int(config.get("interleave_moe_layer_step", 1))
            listed = config.get("moe_layers")
            sparse = len(listed) if listed is not None else len(range(every - 1, layers, every))
            width = int(config["intermediate_size_mlp"])
            return sparse, int(config["num_local_experts"]), int(config["num_experts_per_tok"]), mlp, mlp, width
    return 0, 0, 0, 0, 0, mlp


def _local(config: Mapping[str, Any], kind: str, layers: int) -> tuple[int, int]:
    """Layers with bounded attention, and the bound."""
    window = config.get("attention_chunk_size") if kind == "llama4_text" else config.get("sliding_window")
    if not window or config.get("use_sliding_window") is False:
        return 0, 0
    kinds = config.get("layer_types")
    if kinds is not None:
        return sum(entry != "full_attention" for entry in kinds), int(window)
    if kind == "llama4_text":  # every fourth layer has no rotary embedding and sees everything
        every = int(config.get("no_rope_layer_interval", 4))
        return layers - layers // every, int(window)
    return layers, int(window)
