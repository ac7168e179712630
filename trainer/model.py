"""Models and tokenizers are ordinary Hugging Face directories; this file makes the tiny one and opens any."""

from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config
from transformers.utils.logging import disable_progress_bar

from trainer.settings import TinyModel

Model = Any
"""A Hugging Face causal language model; transformers ships no types worth checking against."""
Tokenizer = Any

disable_progress_bar()  # a bar for a load of milliseconds would only disturb the terminal


def make_tiny(shape: TinyModel, tokenizer: Tokenizer, seed: int) -> Model:
    """A freshly initialised model, float32, in training mode."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        intermediate_size=shape.mlp,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")


def load_model(path: Path, dtype: torch.dtype | Literal["auto"] = torch.float32) -> Model:
    """Open a model directory; `auto` is the format of its files."""
    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="sdpa")


def load_tokenizer(path: Path) -> Tokenizer:
    """Open a tokenizer directory."""
    return AutoTokenizer.from_pretrained(path)
