"""The language-model head in float32, on the learner and on the generator alike (ScaleRL, section 3).

One-sided FP32 makes the mismatch between sampler and learner worse, so both call this file. No float32 copy of the
head is cached: a cached copy would have to be invalidated at every weight update.
"""

from typing import Any

import torch
from torch import Tensor


def hidden_states(model: Any, **inputs: Any) -> Tensor:
    """Final hidden states of any Hugging Face decoder, shape [rows, tokens, hidden], in the dtype of the model."""
    states: Tensor = model.base_model(**inputs).last_hidden_state
    return states


def logits(model: Any, hidden: Tensor) -> Tensor:
    """Float32 logits [..., vocabulary] of hidden states [..., hidden]."""
    head = model.get_output_embeddings()
    bias = None if getattr(head, "bias", None) is None else head.bias.float()
    return torch.nn.functional.linear(hidden.float(), head.weight.float(), bias)


def logprobs(model: Any, hidden: Tensor, temperature: float | Tensor) -> Tensor:
    """Log-probabilities [..., vocabulary] after temperature, as the sampler uses them."""
    return torch.log_softmax(logits(model, hidden) / temperature, dim=-1)
