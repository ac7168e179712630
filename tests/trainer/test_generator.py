"""The slot generator against plain forward passes of the same model."""

from typing import Any

import pytest
import torch

from trainer.rollout.length import Interruption
from trainer.rollout.torch_generator import TorchGenerator
from trainer.types import Completion, Group, GroupRequest, Prompt, Sampling, Version

TEXTS = ("07+3-2+5=", "1=", "12-4+1+1+1-2=", "05+5=", "19-1-1=", "03+2+2=")


def generator(model: Any, tokenizer: Any, slots: int = 6, length: int = 16, endless: bool = False) -> TorchGenerator:
    rule = Interruption(
        tuple(tokenizer.encode("</think><answer>")), tokenizer.convert_tokens_to_ids("</think>"), (0.5, 1.0)
    )
    end = -1 if endless else tokenizer.eos_token_id
    return TorchGenerator(model, slots, rule, end, torch.Generator().manual_seed(1), length)


def request(
    tokenizer: Any, index: int, n: int = 3, limit: int = 20, budget: int = 0, heat: float = 1.0
) -> GroupRequest:
    text = TEXTS[index % len(TEXTS)]
    return GroupRequest(index, Prompt(index, text, tuple(tokenizer.encode(text)), ""), n, Sampling(heat, limit, budget))


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


def test_logprobs_equal_a_plain_forward_pass_also_after_refills_and_growth(model: Any, tokenizer: Any) -> None:
    engine = generator(model, tokenizer)
    for index in range(12):  # 36 completions of different lengths through 6 slots, cache too short at first
        engine.submit(request(tokenizer, index, limit=5 + 3 * (index % 5), heat=0.5 + 0.25 * (index % 3)))
    groups = drain(engine)
    assert sorted(group.request.id for group in groups) == list(range(12))
    for group in groups:
        assert len(group.completions) == 3
        for completion in group.completions:
            expected = plain_logprobs(
                model, group.request.prompt.tokens, completion, group.request.sampling.temperature
            )
            torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-4, rtol=0)


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


def test_the_same_seed_samples_the_same_tokens(model: Any, tokenizer: Any) -> None:
    def once() -> list[tuple[int, ...]]:
        engine = generator(model, tokenizer)
        for index in range(5):
            engine.submit(request(tokenizer, index))
        return [completion.tokens for group in drain(engine) for completion in group.completions]

    assert once() == once()


def test_a_group_larger_than_the_slots_is_refused(model: Any, tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="6 slots"):
        generator(model, tokenizer).submit(request(tokenizer, 0, n=7))
