"""The optimizer step: advantages -> micro-batches -> CISPO -> finite? -> AdamW.

Only groups with signal are computed. A step with a non-finite quantity changes nothing, and neither does one in which
no group has signal. The learning rate is `schedule(step) * lr_scale`, written to the optimizer in one place.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainer.learn import LearnResult
from trainer.learn.advantage import batch_normalised
from trainer.learn.fp32_head import hidden_states, logprobs
from trainer.learn.loss import LossStats, cispo, prompt_average_weights
from trainer.model import Model
from trainer.settings import OptimizerSpec
from trainer.types import ScoredGroup


@dataclass(frozen=True)
class _Sequence:
    """One completion made ready for the forward pass."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    behaviour: tuple[float, ...]
    loss_mask: tuple[bool, ...]
    advantage: float
    group: int
    temperature: float

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.tokens)


def schedule(base_lr: float, step: int, warmup_steps: int) -> float:
    """Learning rate of step 1, 2, ... before `lr_scale`: linear warm-up, then constant."""
    return base_lr * min(1.0, step / warmup_steps) if warmup_steps else base_lr


class PlainLearner:
    """Implements `Learner` in one process: model, optimizer and base learning rate."""

    def __init__(self, model: Model, spec: OptimizerSpec) -> None:
        self.model = model.eval()  # no dropout: sampler and learner must agree
        self.base_lr = spec.lr
        self._spec = spec
        self._optimizer = torch.optim.AdamW(
            model.parameters(), lr=0.0, betas=(spec.beta1, spec.beta2), eps=spec.eps, weight_decay=spec.weight_decay
        )

    def step(self, step: int, groups: Sequence[ScoredGroup], tunables: Mapping[str, float]) -> LearnResult:
        """Train step number `step` (1, 2, ...) on a batch; the batch is normalised by its real counts."""
        lr = self._write_lr(step, tunables["lr_scale"])
        rewards = [reward for group in groups for reward in group.rewards]
        if not all(map(math.isfinite, rewards)):
            return LearnResult(skipped="nonfinite", nonfinite=("reward",), lr=lr)
        surviving = [group for group in groups if group.signal == "mixed"]
        if not surviving:
            return LearnResult(skipped="no_signal", lr=lr)
        advantages, std = batch_normalised([group.rewards for group in surviving])
        sequences = _sequences(surviving, advantages)
        self._optimizer.zero_grad(set_to_none=True)
        loss, stats, entropy = self._accumulate(sequences, len(surviving), tunables["ratio_max"])
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._spec.clip_norm))
        nonfinite = _nonfinite(
            loss=loss,
            grad=norm,
            logprob=stats.ratio + stats.kl + sum(sum(s.behaviour) for s in sequences),
            advantage=std,
        )
        if not nonfinite:
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return LearnResult(
            skipped="nonfinite" if nonfinite else "",
            nonfinite=nonfinite,
            lr=lr,
            loss=loss,
            grad_norm=norm,
            grad_clipped=norm > self._spec.clip_norm,
            entropy=entropy / stats.tokens,
            mismatch_kl=stats.kl / stats.tokens,
            ratio_mean=stats.ratio / stats.tokens,
            ratio_max=stats.ratio_max,
            clipped_ratio=stats.clipped / stats.tokens,
            effective_sample_ratio=stats.effective_sample_ratio,
            advantage_std=std,
            trained_tokens=0 if nonfinite else stats.tokens,
        )

    def state_dict(self) -> dict[str, Any]:
        """Model, optimizer and base learning rate (a reference, not a copy)."""
        return {"model": self.model.state_dict(), "optimizer": self._optimizer.state_dict(), "base_lr": self.base_lr}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Bit-exact inverse of `state_dict`."""
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.base_lr = state["base_lr"]

    def _write_lr(self, step: int, lr_scale: float) -> float:
        """The only place that writes a learning rate."""
        lr = schedule(self.base_lr, step, self._spec.warmup_steps) * lr_scale
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        return lr

    def _accumulate(
        self, sequences: Sequence[_Sequence], prompts: int, ratio_max: float
    ) -> tuple[float, LossStats, float]:
        """Backward through all micro-batches; returns loss, statistics and summed entropy."""
        weights = _token_weights(sequences, prompts)
        loss, entropy, stats = 0.0, 0.0, LossStats(0, 0.0, 0.0, 0.0, 0, 0.0)
        for chosen in _micro_batches(sequences, self._spec.tokens_per_micro_batch):
            batch = [sequences[index] for index in chosen]
            logp, token_entropy = self._forward(batch)
            width = logp.shape[1]
            part, part_stats = cispo(
                logp,
                _padded([s.behaviour for s in batch], width),
                torch.tensor([s.advantage for s in batch]),
                _padded([weights[index] for index in chosen], width),
                ratio_max,
            )
            part.backward()  # type: ignore[no-untyped-call]
            loss += float(part.detach())
            stats += part_stats
            entropy += float((token_entropy * _padded([s.loss_mask for s in batch], width)).sum())
        return loss, stats, entropy

    def _forward(self, batch: Sequence[_Sequence]) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy of every completion token, each [sequences, longest completion]."""
        length = max(s.length for s in batch)
        width = max(len(s.tokens) for s in batch)
        tokens = torch.zeros(len(batch), length, dtype=torch.long)
        at = torch.zeros(len(batch), width, dtype=torch.long)
        for row, s in enumerate(batch):
            tokens[row, : s.length] = torch.tensor(s.prompt + s.tokens)
            at[row] = torch.arange(width) + len(s.prompt) - 1
        at.clamp_(max=length - 2)
        hidden = hidden_states(self.model, input_ids=tokens[:, :-1], use_cache=False)
        chosen = hidden.gather(1, at.unsqueeze(2).expand(-1, -1, hidden.shape[2]))
        temperature = torch.tensor([s.temperature for s in batch]).view(-1, 1, 1)
        every = logprobs(self.model, chosen, temperature)
        logp = every.gather(2, tokens.gather(1, at + 1).unsqueeze(2)).squeeze(2)
        with torch.no_grad():
            entropy = -(every.exp() * every).sum(dim=2)
        return logp, entropy


def _sequences(groups: Sequence[ScoredGroup], advantages: Sequence[Tensor]) -> list[_Sequence]:
    return [
        _Sequence(
            prompt=scored.group.request.prompt.tokens,
            tokens=completion.tokens,
            behaviour=completion.logprobs,
            loss_mask=completion.loss_mask,
            advantage=float(advantage),
            group=index,
            temperature=scored.group.request.sampling.temperature,
        )
        for index, (scored, of_group) in enumerate(zip(groups, advantages, strict=True))
        for completion, advantage in zip(scored.group.completions, of_group, strict=True)
    ]


def _token_weights(sequences: Sequence[_Sequence], prompts: int) -> list[tuple[float, ...]]:
    """Prompt-average weight of every token of every sequence."""
    width = max(len(s.tokens) for s in sequences)
    mask = _padded([s.loss_mask for s in sequences], width) > 0
    weights = prompt_average_weights(mask, torch.tensor([s.group for s in sequences]), prompts)
    return [tuple(row[: len(s.tokens)].tolist()) for row, s in zip(weights, sequences, strict=True)]


def _micro_batches(sequences: Sequence[_Sequence], budget: int) -> Iterator[list[int]]:
    """Indices, similar lengths together, at most `budget` padded tokens each (one sequence at least)."""
    chosen: list[int] = []
    for index in sorted(range(len(sequences)), key=lambda i: -sequences[i].length):
        if chosen and (len(chosen) + 1) * sequences[chosen[0]].length > budget:
            yield chosen
            chosen = []
        chosen.append(index)
    if chosen:
        yield chosen


def _padded(rows: Sequence[Sequence[float]], width: int) -> Tensor:
    out = torch.zeros(len(rows), width)
    for index, row in enumerate(rows):
        out[index, : len(row)] = torch.tensor(row)
    return out


def _nonfinite(**quantities: float) -> tuple[str, ...]:
    return tuple(name for name, value in quantities.items() if not math.isfinite(value))
