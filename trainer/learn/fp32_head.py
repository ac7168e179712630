"""The language-model head, in float32 or in the format of the model, on the learner and on the generator alike.

A float32 head on one side alone makes the mismatch between sampler and learner worse (ScaleRL, section 3), so both call
this file. No float32 copy of the head is cached: a cached copy would have to be invalidated at every weight update. TF32
would turn a float32 product into one of 10 bits without a word, so it is switched off, and looked at again at each step.
"""

from typing import Any

import torch
from torch import Tensor

from trainer.decoder import linear


def forbid_tf32() -> None:
    """Products of float32 tensors are float32 products, on every device, from now on."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.allow_tf32 = False


def require_float32() -> None:
    """Raises RuntimeError when somebody has allowed reduced precision since."""
    precision = torch.get_float32_matmul_precision()
    if precision != "highest" or torch.backends.cuda.matmul.allow_tf32:
        raise RuntimeError(
            f"precision.learner_head is float32 but float32 matrix products are set to {precision!r} with reduced "
            "precision (TF32 or bfloat16): call torch.set_float32_matmul_precision('highest'), or set both heads to 'model'"
        )


def hidden_states(model: Any, **inputs: Any) -> Tensor:
    """Final hidden states of any Hugging Face decoder, shape [rows, tokens, hidden], in the dtype of the model."""
    states: Tensor = model.base_model(**inputs).last_hidden_state
    return states


def logits(model: Any, hidden: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Float32 logits [..., vocabulary] of hidden states [..., hidden]; `dtype` is the format of the product."""
    head = model.get_output_embeddings()
    with torch.autocast(hidden.device.type, enabled=False):
        scores = linear(hidden.to(dtype), head.weight.to(dtype))
        if getattr(head, "bias", None) is not None:
            scores = scores + head.bias.to(dtype)
        return scores.float()


def logprobs(model: Any, hidden: Tensor, temperature: float | Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Log-probabilities [..., vocabulary] after temperature, as the sampler uses them."""
    return torch.log_softmax(logits(model, hidden, dtype) / temperature, dim=-1)


def chosen(scores: Tensor, tokens: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of each token and entropy of its distribution (nats, no gradient), both [T].

    Args:
        scores: [T, vocabulary], float32 logits.
        tokens: [T], the token that was sampled.
        temperature: [T].
    """
    logp, entropy = _Chosen.apply(scores, tokens, temperature.unsqueeze(1))  # type: ignore[no-untyped-call]
    return logp, entropy


class _Chosen(torch.autograd.Function):
    """Value and gradient of log_softmax(scores / temperature) at one token per row, in few passes over [T, vocabulary]."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, tokens: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor]:
        scaled = scores / temperature
        total = torch.logsumexp(scaled, dim=1)
        probabilities = (scaled - total.unsqueeze(1)).exp_()
        logp = scaled.gather(1, tokens.unsqueeze(1)).squeeze(1) - total
        entropy = total - scaled.mul_(probabilities).sum(dim=1)
        ctx.save_for_backward(probabilities, tokens, temperature)
        ctx.mark_non_differentiable(entropy)
        return logp, entropy

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        probabilities, tokens, temperature = ctx.saved_tensors
        grad = grad.unsqueeze(1) / temperature
        return (probabilities * -grad).scatter_add_(1, tokens.unsqueeze(1), grad), None, None
