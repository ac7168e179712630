"""A batch made ready for the learner: which completions are computed, with which advantage and weight, as tensors.

    scored groups -> effective batch (zero-variance filter) -> advantages, token weights -> rows that have a gradient

Groups of equal rewards have no gradient and are never computed; without the filter they still count in every denominator,
as in the paper's ablation. Completions cut by the length limit carry no loss under `mask_truncated`, but their rewards
count in the mean of their group.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from trainer.learn.advantage import advantages
from trainer.learn.weights import token_weights
from trainer.settings import Loss
from trainer.types import Completion, ScoredGroup


@dataclass(frozen=True)
class Batch:
    """Sequences, longest first; N of them, W the longest. Padding is on the right."""

    tokens: Tensor
    """[N, W] prompt and completion."""
    behaviour: Tensor
    """[N, W] log-probability as sampled; meaningless where there is no loss."""
    carries: Tensor
    """[N, W] true for tokens that carry loss."""
    group: Tensor
    """[N] sequences of one group share their prompt."""
    prompt: Tensor
    """[N] tokens of the prompt."""
    length: Tensor
    """[N] tokens of prompt and completion."""
    advantage: Tensor
    """[N]"""
    weight: Tensor
    """[N] of each token that carries loss."""
    temperature: Tensor
    """[N]"""

    def halves(self) -> tuple[tuple["Batch", int], ...]:
        """Every other prompt, and the rest, each with its number of prompts; the batch as it is where there is only one."""
        present, rank = torch.unique(self.group, return_inverse=True)
        if len(present) < 2:
            return ((self, len(present)),)
        return tuple((self._rows(rank % 2 == odd), (len(present) + 1 - odd) // 2) for odd in (0, 1))

    def _rows(self, which: Tensor | slice) -> "Batch":
        return Batch(**{part.name: getattr(self, part.name)[which] for part in fields(self)})

    def micro_batches(self, budget: int) -> Iterator["Batch"]:
        """Slices of similar lengths, at most `budget` tokens each, padding included (one sequence at least)."""
        lengths = self.length.tolist()
        start = 0
        while start < len(lengths):
            longest = lengths[start]
            rows = slice(start, start + max(1, budget // longest))
            parts = {part.name: getattr(self, part.name)[rows] for part in fields(self)}
            yield Batch(**{name: part[:, :longest] if part.dim() == 2 else part for name, part in parts.items()})
            start = rows.stop


@dataclass(frozen=True)
class _Row:
    """One completion of the effective batch."""

    scored: ScoredGroup
    completion: Completion
    group: int
    count: int
    """Tokens that carry loss."""

    @property
    def prompt(self) -> tuple[int, ...]:
        return self.scored.group.request.prompt.tokens

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.completion.tokens)


def assemble(groups: Sequence[ScoredGroup], loss: Loss, device: torch.device) -> tuple[Batch, float] | None:
    """The batch and the standard deviation of its centred rewards; None where nothing has a gradient."""
    counted = [group for group in groups if group.signal == "mixed" or not loss.zero_variance_filter]
    if not any(group.signal == "mixed" for group in counted):
        return None
    grouped, std = advantages([group.rewards for group in counted], loss.advantage)
    rows = [
        _Row(scored, completion, index, _loss_tokens(completion, loss.mask_truncated))
        for index, scored in enumerate(counted)
        for completion in scored.group.completions
    ]
    weights = token_weights([row.count for row in rows], [row.group for row in rows], loss.aggregation)
    values = [advantage for group in grouped for advantage in group]
    computed = [
        (row, advantage, weight)
        for row, advantage, weight in zip(rows, values, weights, strict=True)
        if row.count and row.scored.signal == "mixed"
    ]
    if not computed:
        return None
    computed.sort(key=lambda entry: -entry[0].length)
    return _tensors([entry[0] for entry in computed], [e[1] for e in computed], [e[2] for e in computed], device), std


def _loss_tokens(completion: Completion, mask_truncated: bool) -> int:
    return 0 if mask_truncated and completion.finish == "length" else sum(completion.loss_mask)


def _tensors(rows: Sequence[_Row], advantage: Sequence[float], weight: Sequence[float], device: torch.device) -> Batch:
    prompt = torch.tensor([len(row.prompt) for row in rows])
    length = torch.tensor([row.length for row in rows])
    at = torch.arange(int(length[0])).expand(len(rows), -1)
    real = at < length.unsqueeze(1)
    completion = real & (at >= prompt.unsqueeze(1))

    def laid_out(where: Tensor, values: Tensor) -> Tensor:
        out = torch.zeros(where.shape, dtype=values.dtype)
        out[where] = values
        return out

    parts = Batch(
        tokens=laid_out(real, torch.tensor([token for row in rows for token in row.prompt + row.completion.tokens])),
        behaviour=laid_out(completion, torch.tensor([x for row in rows for x in row.completion.logprobs])),
        carries=laid_out(completion, torch.tensor([x for row in rows for x in row.completion.loss_mask])),
        group=torch.tensor([row.group for row in rows]),
        prompt=prompt,
        length=length,
        advantage=torch.tensor(advantage, dtype=torch.float32),
        weight=torch.tensor(weight, dtype=torch.float32),
        temperature=torch.tensor([row.scored.group.request.sampling.temperature for row in rows]),
    )
    return Batch(**{part.name: getattr(parts, part.name).to(device) for part in fields(parts)})
