"""The slot generator against plain forward passes of the same model."""

import copy
import dataclasses
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen3Config

from trainer.decoder import supports
from trainer.rollout.length import Interruption
from trainer.rollout.seeds import request_seed
from trainer.rollout.torch_generator import TorchGenerator
from trainer.types import Completion, Group, GroupRequest, Prompt, Sampling, Version

TEXTS = ("07+3-2+5=", "1=", "12-4+1+1+1-2=", "05+5=", "19-1-1=", "03+2+2=")


def generator(model: Any, tokenizer: Any, slots: int = 6, length: int = 16, endless: bool = False) -> TorchGenerator:
    """With a cache that is too short at first."""
    rule = Interruption(
        tuple(tokenizer.encode("</think><answer>")), tokenizer.convert_tokens_to_ids("</think>"), (0.5, 1.0)
    )
    end = -1 if endless else tokenizer.eos_token_id
    return TorchGenerator(model, slots, rule, end, length=length)


def request(
    tokenizer: Any, index: int, n: int = 3, limit: int = 20, budget: int = 0, heat: float = 1.0
) -> GroupRequest:
    text = TEXTS[index % len(TEXTS)]
    prompt = Prompt(index, text, tuple(tokenizer.encode(text)))
    return GroupRequest(index, prompt, n, Sampling(heat, limit, budget), request_seed(1, index))


def drain(engine: TorchGenerator) -> list[Group]:
    groups: list[Group] = []
    for _ in range(2000):
        groups += engine.poll()
        if not engine.inflight and not engine._queue:
            return groups
    raise AssertionError("the generator never finished")


def plain_logprobs(model: Any, prompt: tuple[int, ...], completion: Completion, temperature: float) -> torch.Tensor:
    ids = torch.tensor([prompt + completion.tokens])
    with torch.no_grad():
        logp = torch.log_softmax(model(input_ids=ids).logits[0] / temperature, dim=-1)
    return logp[len(prompt) - 1 : -1].gather(1, torch.tensor(completion.tokens).unsqueeze(1)).squeeze(1)


def architecture(name: str, tokenizer: Any) -> Any:
    """A tiny model of each kind, with weights large enough for the distributions to be far from flat."""
    shape = {"vocab_size": len(tokenizer), "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48}
    heads = {"num_attention_heads": 4, "head_dim": 8, "initializer_range": 0.2}
    config = {
        "one kv head": lambda: Qwen3Config(**shape, **heads, num_key_value_heads=1),
        "tied": lambda: Qwen3Config(**shape, **heads, num_key_value_heads=2, tie_word_embeddings=True),
        "no grouping": lambda: Qwen3Config(**shape, **heads, num_key_value_heads=4),
        "biased qwen3": lambda: Qwen3Config(**shape, **heads, num_key_value_heads=2, attention_bias=True),
        "llama": lambda: LlamaConfig(**shape, **heads, num_key_value_heads=2),
        "gpt2": lambda: GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, initializer_range=0.2),
    }[name]()
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa").eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    assert supports(model) == (config.model_type == "qwen3" and not config.attention_bias)
    return model


ARCHITECTURES = ("one kv head", "tied", "no grouping", "biased qwen3", "llama", "gpt2")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logprobs_equal_a_plain_forward_pass_also_after_refills_and_growth(name: str, tokenizer: Any) -> None:
    model = architecture(name, tokenizer)
    plain = copy.deepcopy(model)
    engine = generator(model, tokenizer)
    for index in range(12):  # 36 completions of different lengths through 6 slots
        engine.submit(request(tokenizer, index, limit=5 + 3 * (index % 5), heat=0.75 + 0.25 * (index % 3), budget=12))
    groups = drain(engine)
    assert sorted(group.request.id for group in groups) == list(range(12))
    for group in groups:
        assert len(group.completions) == 3
        for completion in group.completions:
            expected = plain_logprobs(
                plain, group.request.prompt.tokens, completion, group.request.sampling.temperature
            )
            torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("name", ["one kv head", "llama"])
def test_an_update_in_flight_counts_from_the_next_token_on_and_keeps_the_cache(name: str, tokenizer: Any) -> None:
    """Against a forward pass that reads keys and values of the first tokens from a cache made with the first weights."""
    model = architecture(name, tokenizer)
    plain, engine = copy.deepcopy(model), generator(model, tokenizer, endless=True)
    engine.submit(request(tokenizer, 0, limit=9))
    for _ in range(4):
        engine.poll()
    weights = {key: value * 1.1 for key, value in plain.state_dict().items()}
    engine.load(weights, Version(0, 1))
    (group,) = drain(engine)
    prompt = group.request.prompt.tokens
    for completion in group.completions:
        ids = torch.tensor([prompt + completion.tokens])
        old = copy.deepcopy(plain)
        with torch.no_grad():
            # Four tokens were sampled with the old weights; the last one of them goes in with the new ones.
            first = old(input_ids=ids[:, : len(prompt) + 3], use_cache=True)
            old.load_state_dict(weights)
            rest = old(input_ids=ids[:, len(prompt) + 3 :], past_key_values=first.past_key_values, use_cache=True)
        scores = torch.cat((first.logits[0], rest.logits[0]))[len(prompt) - 1 : -1]
        expected = torch.log_softmax(scores, dim=-1).gather(1, torch.tensor(completion.tokens).unsqueeze(1)).squeeze(1)
        torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-5, rtol=1e-6)


def test_the_same_model_may_serve_two_generators(model: Any, tokenizer: Any) -> None:
    first, second = generator(model, tokenizer), generator(model, tokenizer, slots=4)
    first.load({name: value * 1.1 for name, value in model.state_dict().items()}, Version(0, 1))
    plain = copy.deepcopy(model)
    second.submit(request(tokenizer, 1, limit=6))
    (group,) = drain(second)
    for completion in group.completions:
        expected = plain_logprobs(plain, group.request.prompt.tokens, completion, 1.0)
        torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-5, rtol=1e-6)


def test_a_bfloat16_model_samples_with_a_float32_head(model: Any, tokenizer: Any) -> None:
    half = model.to(torch.bfloat16)
    engine = generator(half, tokenizer)
    for index in range(4):
        engine.submit(request(tokenizer, index, limit=6))
    for group in drain(engine):
        for completion in group.completions:
            expected = plain_logprobs(half, group.request.prompt.tokens, completion, 1.0)
            torch.testing.assert_close(torch.tensor(completion.logprobs), expected.float(), atol=0.03, rtol=0)


def test_a_long_completion_idles_nobody(model: Any, tokenizer: Any) -> None:
    engine = generator(model, tokenizer, slots=4, endless=True)
    engine.submit(request(tokenizer, 0, n=1, limit=60))
    for index in range(1, 10):
        engine.submit(request(tokenizer, index, n=3, limit=4))
    order = [group.request.id for group in drain(engine)]
    assert order == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]


def test_an_update_in_flight_gives_two_spans_and_the_same_versions_per_token(model: Any, tokenizer: Any) -> None:
    engine = generator(model, tokenizer)
    engine.submit(request(tokenizer, 0, n=4, limit=12))
    for _ in range(5):
        engine.poll()
    weights = {name: value + 0.01 for name, value in model.state_dict().items()}
    engine.load(weights, Version(0, 1))
    (group,) = drain(engine)
    spans = [completion.spans for completion in group.completions if len(completion.tokens) > 6]
    assert spans
    for completion in group.completions:
        assert sum(span.tokens for span in completion.spans) == len(completion.tokens)
        assert all(torch.isfinite(torch.tensor(completion.logprobs)))
    assert all([span.version for span in each] == [Version(0, 0), Version(0, 1)] for each in spans)
    assert group.oldest == Version(0, 0)


def test_interruption_forces_the_phrase_and_masks_exactly_it(model: Any, tokenizer: Any) -> None:
    engine = generator(model, tokenizer)
    for index in range(6):
        engine.submit(request(tokenizer, index, limit=20, budget=10))
    phrase = tuple(tokenizer.encode("</think><answer>"))
    cut = 0
    for group in drain(engine):
        for completion in group.completions:
            forced = [i for i, own in enumerate(completion.loss_mask) if not own]
            assert completion.interrupted == bool(forced)
            if len(forced) == len(phrase):
                cut += 1
                assert 5 <= forced[0] <= 10
                assert completion.tokens[forced[0] : forced[0] + 2] == phrase
                assert forced == [forced[0], forced[0] + 1]
    assert cut > 3


def test_a_closed_thought_is_not_interrupted(model: Any, tokenizer: Any) -> None:
    closing = tokenizer.convert_tokens_to_ids("</think>")
    engine = generator(model, tokenizer)
    for index in range(40):
        engine.submit(request(tokenizer, index, limit=20, budget=20))
    closed_early = [
        completion for group in drain(engine) for completion in group.completions if closing in completion.tokens[:10]
    ]
    assert closed_early
    assert not any(completion.interrupted for completion in closed_early)


def test_finish_reason_is_length_only_at_the_limit(model: Any, tokenizer: Any) -> None:
    engine = generator(model, tokenizer)
    for index in range(20):
        engine.submit(request(tokenizer, index, limit=15))
    completions = [completion for group in drain(engine) for completion in group.completions]
    for completion in completions:
        ended = completion.tokens[-1] == tokenizer.eos_token_id
        assert (completion.finish == "stop") == ended
        assert completion.finish == "stop" or len(completion.tokens) == 15
    assert {completion.finish for completion in completions} == {"stop", "length"}


def test_abort_forgets_everything_and_counts_what_it_threw_away(model: Any, tokenizer: Any) -> None:
    engine = generator(model, tokenizer)
    for index in range(4):
        engine.submit(request(tokenizer, index, limit=30))
    for _ in range(3):
        engine.poll()
    assert engine.abort() > 0
    assert (engine.inflight, engine.room, engine.poll()) == (0, 6, [])
    engine.submit(request(tokenizer, 0))
    assert len(drain(engine)) == 1


def plainly(groups: list[Group]) -> dict[int, list[tuple[Any, ...]]]:
    """What was sampled, without the clock; completions of a group in an order of their own."""
    return {
        group.request.id: sorted(
            dataclasses.astuple(dataclasses.replace(each, seconds=0.0)) for each in group.completions
        )
        for group in groups
    }


def tokens_of(groups: list[Group]) -> dict[int, list[tuple[int, ...]]]:
    return {group.request.id: sorted(each.tokens for each in group.completions) for group in groups}


def test_slots_and_order_do_not_change_what_is_sampled(model: Any, tokenizer: Any) -> None:
    """Distributions are equal up to rounding, so tokens are unless a number falls within rounding of an edge."""

    def once(slots: int, order: range) -> dict[int, list[tuple[int, ...]]]:
        engine = generator(model, tokenizer, slots)
        for index in order:
            engine.submit(request(tokenizer, index, n=8, limit=20, budget=16))
        return tokens_of(drain(engine))

    reference = once(8, range(16))
    assert once(128, range(16)) == reference
    assert once(20, range(15, -1, -1)) == reference


def test_completions_of_a_group_and_groups_of_other_seeds_differ(model: Any, tokenizer: Any) -> None:
    engine = generator(model, tokenizer, slots=64, endless=True)
    same = request(tokenizer, 0, n=8, limit=20)
    for index in range(8):
        engine.submit(dataclasses.replace(same, id=index, seed=same.seed + index))
    sampled = [tokens for group in tokens_of(drain(engine)).values() for tokens in group]
    assert len(set(sampled)) == 64


@pytest.mark.parametrize("name", ["tied", "llama"])
def test_a_snapshot_goes_on_bit_for_bit(name: str, tokenizer: Any) -> None:
    model = architecture(name, tokenizer)
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    engine = generator(model, tokenizer)
    for index in range(8):
        engine.submit(request(tokenizer, index, limit=6 + 5 * (index % 3), budget=8))
    early = [group for _ in range(9) for group in engine.poll()]
    snapshot = engine.snapshot()
    assert all((engine.inflight, engine._queue, engine._partial))
    expected = plainly(drain(engine))
    assert len(early) + len(expected) == 8
    engine.load({key: value * 1.3 for key, value in weights.items()}, Version(0, 9))
    engine.submit(request(tokenizer, 100, limit=60))  # other things happen, and the cache grows
    for _ in range(20):
        engine.poll()
    for _ in range(2):
        engine.load(weights, Version(0, 0))
        engine.restore(snapshot)
        assert plainly(drain(engine)) == expected


def test_a_snapshot_fits_another_generator(model: Any, tokenizer: Any) -> None:
    engine, other = generator(model, tokenizer), generator(model, tokenizer)
    for index in range(6):
        engine.submit(request(tokenizer, index))
    for _ in range(5):
        engine.poll()
    other.restore(engine.snapshot())
    assert plainly(drain(other)) == plainly(drain(engine))


def test_logits_that_are_not_numbers_are_an_error(model: Any, tokenizer: Any) -> None:
    engine = generator(model, tokenizer)
    engine.submit(request(tokenizer, 0))
    engine.load({name: value * torch.nan for name, value in model.state_dict().items()}, Version(0, 1))
    with pytest.raises(FloatingPointError, match="prompt 0"):
        drain(engine)


def test_a_group_larger_than_the_slots_is_refused(model: Any, tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="6 slots"):
        generator(model, tokenizer).submit(request(tokenizer, 0, n=7))
