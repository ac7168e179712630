"""What the trainer relies on in vLLM 0.32, against plain forward passes of the same model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.vllm.conftest import PHRASE, SLOTS, sharpened
from trainer.learn.fp32_head import hidden_states, logprobs
from trainer.model import make_tiny
from trainer.rollout.length import Interruption
from trainer.rollout.vllm_engine import EngineError, VllmEngine
from trainer.rollout.vllm_generator import VllmGenerator
from trainer.settings import TinyModel
from trainer.types import Completion, Group, GroupRequest, Prompt, Sampling, Span, Version

TEXTS = ("07+3-2+5=", "1=", "12-4+1+1+1-2=", "05+5=", "19-1-1=", "03+2+2=")
LONG = "07+3-2+5=" * 40
"""Longer than two blocks of the prefix cache."""
CLOSE = 1e-4
"""Float32 on both sides; measured: 2e-5 and less."""

COLD = 0.01
"""A temperature so low that no completion of a few tokens ends by chance, whatever its seed."""


def request(
    tokenizer: Any,
    index: int,
    n: int = 3,
    limit: int = 20,
    budget: int = 0,
    heat: float = 1.0,
    text: str = "",
    seed: int | None = None,
) -> GroupRequest:
    text = text or TEXTS[index % len(TEXTS)]
    prompt = Prompt(index, text, tuple(tokenizer.encode(text)), "")
    return GroupRequest(index, prompt, n, Sampling(heat, limit, budget), 1000 + index if seed is None else seed)


def drain(generator: VllmGenerator) -> list[Group]:
    groups: list[Group] = []
    for _ in range(3000):
        groups += generator.poll()
        if not generator.inflight and generator.room == SLOTS:
            return sorted(groups, key=lambda group: group.request.id)
    raise AssertionError("the generator never finished")


def every_logprob(model: Any, prompt: tuple[int, ...], completion: Completion, heat: float) -> Tensor:
    """The learner's log-probabilities [tokens, vocabulary]."""
    with torch.no_grad():
        hidden = hidden_states(model, input_ids=torch.tensor([prompt + completion.tokens]), use_cache=False)
        return logprobs(model, hidden[0, len(prompt) - 1 : -1], heat)


def difference(model: Any, group: Group) -> Tensor:
    """Recorded minus learner's log-probability of all tokens that were sampled."""
    found = []
    for completion in group.completions:
        every = every_logprob(model, group.request.prompt.tokens, completion, group.request.sampling.temperature)
        expected = every.gather(1, torch.tensor(completion.tokens).unsqueeze(1)).squeeze(1)
        found.append((torch.tensor(completion.logprobs) - expected)[torch.tensor(completion.loss_mask)])
    return torch.cat(found)


def with_weights(model: Any, weights: Mapping[str, Tensor], tokenizer: Any) -> Any:
    other = make_tiny(TinyModel(), tokenizer, seed=3).eval()
    other.load_state_dict(weights)
    return other


def test_logprobs_are_the_learners_at_every_temperature_also_after_refills(
    generator: VllmGenerator, model: Any, tokenizer: Any
) -> None:
    for index in range(12):  # 36 completions of different lengths through 16 slots
        generator.submit(request(tokenizer, index, limit=5 + 3 * (index % 5), heat=0.5 + 0.25 * (index % 4)))
    groups = drain(generator)
    assert [group.request.id for group in groups] == list(range(12))
    for group in groups:
        assert len(group.completions) == 3
        assert difference(model, group).abs().max() < CLOSE


@pytest.mark.parametrize("heat", [0.5, 1.0, 1.5])
def test_tokens_are_drawn_from_the_distribution_they_are_recorded_with(
    generator: VllmGenerator, model: Any, tokenizer: Any, heat: float
) -> None:
    for index in range(12):
        generator.submit(request(tokenizer, index, n=16, limit=20, heat=heat))
    surprise = []
    for group in drain(generator):
        for completion in group.completions:
            every = every_logprob(model, group.request.prompt.tokens, completion, heat)
            entropy = -(every.exp() * every).sum(dim=1)
            surprise.append(-torch.tensor(completion.logprobs) - entropy)
    excess = torch.cat(surprise)  # a martingale difference: its mean is 0 if and only if the temperature is right
    assert excess.mean().abs() < 4 * excess.std() / len(excess) ** 0.5
    assert len(excess) > 2000


def test_a_cached_prompt_does_not_outlive_its_weights(
    generator: VllmGenerator, model: Any, other_weights: Mapping[str, Tensor], tokenizer: Any
) -> None:
    generator.submit(request(tokenizer, 0, text=LONG))
    (before,) = drain(generator)
    generator.load(other_weights, Version(0, before.oldest.n + 1))
    generator.submit(request(tokenizer, 1, text=LONG))
    (after,) = drain(generator)
    assert difference(model, before).abs().max() < CLOSE
    assert after.oldest == Version(0, before.oldest.n + 1)
    assert difference(with_weights(model, other_weights, tokenizer), after).abs().max() < CLOSE


def test_a_prompt_that_waits_while_the_weights_change_is_read_by_the_new_ones(
    generator: VllmGenerator, model: Any, other_weights: Mapping[str, Tensor], tokenizer: Any
) -> None:
    generator.submit(request(tokenizer, 0, n=1, text=LONG))  # the old weights' KV of this prompt is cached
    drain(generator)
    for index in range(1, SLOTS):  # more prompt tokens than one step takes
        generator.submit(request(tokenizer, index, n=1, text=f"{index:02d}" + LONG))
    generator.submit(request(tokenizer, SLOTS, n=1, text=LONG))
    generator.poll()
    new = Version(3, 10**6)
    generator.load(other_weights, new)
    groups = drain(generator)
    fresh = [group for group in groups if group.oldest == new]
    assert 1 < len(fresh) < SLOTS
    assert fresh[-1].request.id == SLOTS
    other = with_weights(model, other_weights, tokenizer)
    for group in fresh:
        assert difference(other, group).abs().max() < CLOSE


def test_an_update_in_flight_gives_two_spans_and_finite_ratios(
    engine: VllmEngine, generator: VllmGenerator, model: Any, other_weights: Mapping[str, Tensor], tokenizer: Any
) -> None:
    old, new = engine.version, Version(1, engine.version.n + 1)
    generator.submit(request(tokenizer, 0, n=8, limit=12))
    for _ in range(5):
        generator.poll()
    generator.load(other_weights, new)
    (group,) = drain(generator)
    through = [completion for completion in group.completions if len(completion.tokens) > 5]
    assert through
    for completion in through:
        assert completion.spans == (Span(old, 5), Span(new, len(completion.tokens) - 5))
        prefix = Completion(completion.tokens[:5], completion.logprobs[:5], (True,) * 5, (), "length", False, 0.0)
        assert difference(model, Group(group.request, (prefix,))).abs().max() < CLOSE
    assert group.oldest == old
    ratios = (-difference(with_weights(model, other_weights, tokenizer), group)).exp()
    assert ratios.isfinite().all()
    assert (ratios - 1).abs().max() > 0.1  # the two policies are not the same


def test_loaded_weights_are_copied(
    engine: VllmEngine, generator: VllmGenerator, model: Any, other_weights: Mapping[str, Tensor], tokenizer: Any
) -> None:
    theirs = {name: value.clone() for name, value in other_weights.items()}
    generator.load(theirs, Version(0, engine.version.n + 1))
    for value in theirs.values():
        value.zero_()
    generator.submit(request(tokenizer, 0))
    (group,) = drain(generator)
    assert difference(with_weights(model, other_weights, tokenizer), group).abs().max() < CLOSE


def test_weights_that_lack_a_tensor_are_refused_and_nothing_is_loaded(
    engine: VllmEngine, generator: VllmGenerator, model: Any, other_weights: Mapping[str, Tensor], tokenizer: Any
) -> None:
    version = engine.version
    lacking = {name: value for name, value in other_weights.items() if name != "model.norm.weight"}
    with pytest.raises(ValueError, match=r"model\.norm\.weight"):
        generator.load(lacking, Version(0, version.n + 1))
    generator.submit(request(tokenizer, 0))
    (group,) = drain(generator)
    assert group.oldest == version
    assert difference(model, group).abs().max() < CLOSE


def test_the_phrase_is_forced_at_the_cut_and_exactly_it_is_masked(
    generator: VllmGenerator, model: Any, tokenizer: Any, interruption: Interruption
) -> None:
    for index in range(10):
        generator.submit(request(tokenizer, index, limit=20, budget=10))
    phrase, positions = tuple(tokenizer.encode(PHRASE)), []
    for group in drain(generator):
        cuts = interruption.draw(10, group.request.seed, 3)
        for at, completion in zip(cuts, group.completions, strict=True):
            forced = [i for i, own in enumerate(completion.loss_mask) if not own]
            assert completion.interrupted == bool(forced)
            assert sum(span.tokens for span in completion.spans) == len(completion.tokens) <= 20
            if forced:
                assert forced == [at, at + 1]
                assert completion.tokens[at : at + 2] == phrase
                positions.append(at)
            else:
                assert len(completion.tokens) <= at or interruption.closing in completion.tokens[:at]
        assert difference(model, group).abs().max() < CLOSE
    assert len(positions) > 10
    assert set(positions) <= set(range(5, 11))
    assert len(set(positions)) > 3


def test_a_closed_thought_is_not_interrupted(
    generator: VllmGenerator, tokenizer: Any, interruption: Interruption
) -> None:
    for index in range(60):
        generator.submit(request(tokenizer, index, limit=24, budget=20))
    closed = [
        completion
        for group in drain(generator)
        for completion in group.completions
        if interruption.closing in completion.tokens[:10]
    ]
    assert any(len(completion.tokens) > 20 for completion in closed)
    assert not any(completion.interrupted for completion in closed)


@pytest.mark.parametrize(("window", "budget", "limit"), [((0.01, 0.01), 10, 6), ((1.0, 1.0), 5, 6), ((1.0, 1.0), 6, 6)])
def test_a_cut_at_the_edge_keeps_to_the_limit(
    engine: VllmEngine, tokenizer: Any, interruption: Interruption, window: tuple[float, float], budget: int, limit: int
) -> None:
    generator = VllmGenerator(engine, SLOTS, Interruption(interruption.phrase, interruption.closing, window))
    at = round(window[0] * budget)
    generator.submit(request(tokenizer, 0, n=8, limit=limit, budget=budget))
    (group,) = drain(generator)
    for completion in group.completions:
        assert len(completion.tokens) <= limit
        if len(completion.tokens) > at and interruption.closing not in completion.tokens[:at]:
            room = min(2, limit - at)
            assert completion.tokens[at : at + room] == interruption.phrase[:room]
            assert completion.interrupted
    assert any(completion.interrupted for completion in group.completions) == (at < limit)


def test_finish_reason_is_length_only_at_the_limit(generator: VllmGenerator, tokenizer: Any) -> None:
    for index in range(30):
        generator.submit(request(tokenizer, index, limit=15, budget=12 if index % 2 else 0))
    completions = [completion for group in drain(generator) for completion in group.completions]
    for completion in completions:
        ended = completion.tokens[-1] == tokenizer.eos_token_id
        assert (completion.finish == "stop") == ended
        assert completion.finish == "stop" or len(completion.tokens) == 15
        assert tokenizer.eos_token_id not in completion.tokens[:-1]
    assert {completion.finish for completion in completions} == {"stop", "length"}


def test_abort_forgets_everything_and_counts_what_it_threw_away(generator: VllmGenerator, tokenizer: Any) -> None:
    for index in range(8):
        generator.submit(request(tokenizer, index, limit=30, heat=COLD))
    assert generator.room == SLOTS - 24
    for _ in range(3):
        generator.poll()
    assert generator.inflight == 15
    assert generator.abort() == 45
    assert (generator.inflight, generator.room, generator.poll()) == (0, SLOTS, [])
    assert generator.abort() == 0
    generator.submit(request(tokenizer, 0))
    assert len(drain(generator)) == 1


def test_abort_counts_the_part_before_the_cut(engine: VllmEngine, tokenizer: Any, interruption: Interruption) -> None:
    generator = VllmGenerator(engine, SLOTS, Interruption(interruption.phrase, -1, (1.0, 1.0)))
    generator.submit(request(tokenizer, 0, n=1, limit=30, budget=3, heat=COLD))
    for _ in range(5):
        assert generator.poll() == []
    assert generator.abort() == 3 + 2 + 2  # before the cut, the phrase, after it


def test_a_request_samples_the_same_tokens_alone_and_in_company(generator: VllmGenerator, tokenizer: Any) -> None:
    wanted = request(tokenizer, 3, n=4, limit=30, budget=20)
    generator.submit(wanted)
    (alone,) = drain(generator)
    generator.submit(wanted)
    (again,) = drain(generator)
    for index in (0, 1):
        generator.submit(request(tokenizer, index, limit=25))
    generator.poll()
    generator.submit(wanted)
    company = drain(generator)[-1]
    tokens = [completion.tokens for completion in alone.completions]
    assert tokens == [completion.tokens for completion in again.completions]
    assert tokens == [completion.tokens for completion in company.completions]
    assert len(set(tokens)) == 4


def test_the_seed_decides_and_nothing_else_of_the_request(generator: VllmGenerator, tokenizer: Any) -> None:
    sampled = set()
    for seed in (10, 20, 2**63 - 1):
        generator.submit(request(tokenizer, 0, n=2, limit=30, text=TEXTS[0], seed=seed))
        generator.submit(request(tokenizer, 1, n=2, limit=30, text=TEXTS[0], seed=seed))
        first, second = ([completion.tokens for completion in group.completions] for group in drain(generator))
        assert first == second
        sampled |= set(first)
    assert len(sampled) == 6


def test_what_cannot_fit_is_refused(generator: VllmGenerator, tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="16 slots"):
        generator.submit(request(tokenizer, 0, n=17))
    with pytest.raises(ValueError, match="4096 positions"):
        generator.submit(request(tokenizer, 0, limit=4090))
    assert generator.room == SLOTS


def test_generators_that_share_an_engine_get_their_own_groups(
    engine: VllmEngine, tokenizer: Any, interruption: Interruption
) -> None:
    ours, theirs = (VllmGenerator(engine, 8, interruption) for _ in range(2))
    ours.submit(request(tokenizer, 0, n=8, limit=30))
    theirs.submit(request(tokenizer, 0, n=2, limit=4, text="1="))
    finished = ours.poll() + theirs.poll()  # one poll is a step for both
    for _ in range(40):
        finished += ours.poll()
    assert [len(group.completions) for group in finished] == [8]
    assert theirs.abort() > 0
    assert ours.abort() == 0
    assert theirs.poll() == []


def test_a_failed_engine_says_so_each_time(
    engine: VllmEngine, generator: VllmGenerator, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise RuntimeError("out of memory")

    generator.submit(request(tokenizer, 0))
    monkeypatch.setattr(engine, "_failure", None)
    with monkeypatch.context() as patch:
        patch.setattr(engine._llm, "step", broken)
        with pytest.raises(EngineError, match="out of memory"):
            generator.poll()
    with pytest.raises(EngineError, match="failed before"):
        generator.poll()


def test_an_engine_that_lost_its_requests_is_an_error_and_no_endless_wait(
    engine: VllmEngine, generator: VllmGenerator, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator.submit(request(tokenizer, 0, heat=COLD))
    generator.poll()
    monkeypatch.setattr(engine._llm, "has_unfinished_requests", lambda: False)
    with pytest.raises(EngineError, match="lost 3 requests"):
        generator.poll()


def test_the_learner_keeps_its_number_of_threads(engine: VllmEngine) -> None:
    torch.set_num_threads(2)
    assert torch.get_num_threads() == 2


def test_bfloat16_with_tied_embeddings_and_a_float32_head_stays_near_the_learner(
    tokenizer: Any, interruption: Interruption, tmp_path: Path
) -> None:
    master = make_tiny(TinyModel(), tokenizer, seed=5)
    master.config.tie_word_embeddings = True
    master.tie_weights()
    sharpened(master).save_pretrained(tmp_path)
    generator = VllmGenerator(
        VllmEngine(tmp_path, SLOTS, 64, tokenizer.eos_token_id, dtype="bfloat16"), SLOTS, interruption
    )
    with torch.no_grad():
        for parameter in master.parameters():
            parameter.mul_(1.1)
    generator.load(master.state_dict(), Version(0, 1))
    for index in range(4):
        generator.submit(request(tokenizer, index, n=4))
    learner = master.to(torch.bfloat16)
    gaps = torch.cat([difference(learner, group) for group in drain(generator)]).abs()
    assert gaps.mean() < 0.02
