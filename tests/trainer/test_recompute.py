"""Activations computed again: the same step bit for bit, and next to nothing kept."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.trainer.learn_cases import TUNABLES, scored
from trainer.learn.learner import PlainLearner
from trainer.model import make_tiny
from trainer.recipe import Recipe
from trainer.settings import OptimizerSpec, Precision, TinyModel
from trainer.tasks.tokenizer import character_tokenizer

SPEC = OptimizerSpec(lr=1e-2, eps=1e-8, warmup_steps=3, tokens_per_micro_batch=64)
GROUPS = [scored([1.0, -1.0, -1.0], [3, 9, 5]), scored([1.0, -1.0], [30, 2], ordinal=9)]


def model(kind: str) -> Any:
    if kind == "qwen3":  # the lean pass
        shape = TinyModel(hidden=32, layers=3, heads=4, kv_heads=2, head_dim=8, mlp=48)
        return make_tiny(shape, character_tokenizer(), seed=3)
    from transformers import AutoModelForCausalLM, LlamaConfig

    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
    torch.manual_seed(3)
    return AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=len(character_tokenizer()), **sizes))


def kept(kind: str, recompute: bool, precision: Precision) -> tuple[int, list[Any], dict[str, torch.Tensor]]:
    """Bytes that one forward pass keeps, the results of three steps, and the weights after them."""
    learner = PlainLearner(model(kind), SPEC.model_copy(update={"recompute": recompute}), precision=precision)
    seen: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        seen[tensor.untyped_storage().data_ptr()] = tensor  # held, or an address would be used again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        results = [learner.step(1, GROUPS, TUNABLES)]
    results += [learner.step(step, GROUPS, TUNABLES) for step in (2, 3)]
    size = sum(tensor.untyped_storage().nbytes() for tensor in seen.values())
    return size, [replace(result) for result in results], learner.model.state_dict()


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_step_is_the_same_bit_for_bit_and_keeps_less(kind: str, dtype: Any) -> None:
    precision = Precision(dtype=dtype)
    much, expected, weights = kept(kind, False, precision)
    little, results, same = kept(kind, True, precision)
    assert repr(results) == repr(expected)
    assert all(torch.equal(weights[name], same[name]) for name in weights)
    assert little < 0.7 * much


def test_compiled_and_recomputed_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="cannot be combined with recompute"):
        Recipe.model_validate({"name": "x", "steps": 1, "optimizer": {"compile": True, "recompute": True}})
