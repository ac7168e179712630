"""The lean forward pass against the Hugging Face model, and the layout in which completions share their prompt."""

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.trainer.learn_cases import TUNABLES, completion, group_of, scored
from trainer import decoder
from trainer.learn.batch import Batch, assemble
from trainer.learn.forward import share_prompts
from trainer.learn.learner import PlainLearner
from trainer.model import make_tiny
from trainer.settings import Loss, OptimizerSpec, TinyModel

GROUPS = [
    scored([1.0, -1.0, -1.0], [3, 9, 5]),
    group_of(
        [1.0, -1.0, 1.0],
        [completion([20 + i] * n, [-1.0] * n) for i, n in enumerate((1, 6, 4))],
        1,
        (30, 31, 32, 33, 34),
    ),
    group_of([1.0, -1.0], [completion([40 + i] * 2, [-1.0] * 2) for i in range(2)], 2, (50,)),
]


def batch() -> Batch:
    assembled = assemble(GROUPS, Loss())
    assert assembled is not None
    return assembled[0]


def test_every_prompt_is_computed_once_and_every_row_reads_its_own_tokens() -> None:
    whole = batch()
    layout = share_prompts(whole)
    prompts, inputs = 3 + 5 + 1, sum(len(c.tokens) - 1 for g in GROUPS for c in g.group.completions)
    computed = prompts + inputs
    assert len(layout.tokens) == len(layout.positions) == len(layout.home) == decoder.ROWS > computed
    assert int(layout.rows.max()) < computed  # what only fills up stands in no row
    for row in range(len(whole.length)):
        n = int(whole.length[row]) - 1
        assert torch.equal(layout.tokens[layout.rows[row, :n]], whole.tokens[row, :n])
        assert torch.equal(layout.positions[layout.rows[row, :n]], torch.arange(n))
    assert torch.equal(layout.rows.flatten()[layout.home[:computed]], torch.arange(computed))


@pytest.mark.parametrize("shape", [(4, 2, 8), (2, 2, 6), (3, 1, 16)])
def test_hidden_states_and_gradients_equal_those_of_hugging_face(tokenizer: Any, shape: tuple[int, int, int]) -> None:
    heads, kv_heads, head_dim = shape
    spec = TinyModel(hidden=24, layers=3, heads=heads, kv_heads=kv_heads, head_dim=head_dim, mlp=40)
    model = make_tiny(spec, tokenizer, seed=2).eval()
    with torch.no_grad():  # norms of ones would hide a forgotten weight
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(len(name)))
    assert decoder.supports(model)
    whole = batch()
    layout = share_prompts(whole)
    real = torch.arange(layout.rows.shape[1]) < whole.length.unsqueeze(1) - 1
    lean = decoder.hidden_states(model, layout)[layout.rows[real]]
    full = model.base_model(input_ids=whole.tokens[:, :-1], use_cache=False).last_hidden_state[real]
    torch.testing.assert_close(lean, full, rtol=1e-4, atol=2e-6)
    weight = torch.randn(full.shape, generator=torch.Generator().manual_seed(0))
    parameters = list(model.base_model.parameters())
    mine = torch.autograd.grad((lean * weight).sum(), parameters)
    theirs = torch.autograd.grad((full * weight).sum(), parameters)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()))


@pytest.mark.parametrize("shape", [(7, 3, 5), (128, 8, 2), (256, 64, 16), (256, 16, 64)])
def test_linear_and_its_gradients_equal_those_of_pytorch(shape: tuple[int, int, int]) -> None:
    rows, fan_in, fan_out = shape
    random = torch.Generator().manual_seed(0)
    x = torch.randn(rows, fan_in, generator=random, requires_grad=True)
    weight = torch.randn(fan_out, fan_in, generator=random, requires_grad=True)
    grad = torch.randn(rows, fan_out, generator=random)
    mine = decoder.linear(x, weight)
    theirs = torch.nn.functional.linear(x, weight)
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    for a, b in zip(
        torch.autograd.grad(mine, (x, weight), grad), torch.autograd.grad(theirs, (x, weight), grad), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_another_architecture_takes_the_hugging_face_pass() -> None:
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    assert not decoder.supports(model)
    result = PlainLearner(model, OptimizerSpec(lr=1e-3)).step(1, GROUPS, TUNABLES)
    assert (result.skipped, result.trained_tokens) == ("", 17 + 11 + 4)


def test_a_sliding_window_takes_the_hugging_face_pass(tokenizer: Any) -> None:
    model = make_tiny(TinyModel(hidden=16, layers=1, heads=1, kv_heads=1, head_dim=4, mlp=8), tokenizer, seed=0)
    model.config.layer_types = ["sliding_attention"]
    assert not decoder.supports(model)
