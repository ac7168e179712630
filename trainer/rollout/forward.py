"""The seam between the generator's bookkeeping and the model: one forward pass over running rows and new prompts.

A row is one completion with its keys and values. Rows in use are 0..n-1; who belongs to which row, what is sampled and
when a row ends is the generator's business. `ModuleForward` runs any Hugging Face decoder as it is.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from trainer.learn.fp32_head import hidden_states
from trainer.model import Model
from trainer.rollout.slot_cache import SlotCache


class NewPrompt(NamedTuple):
    """A prompt that starts in `rows` rows: computed once, shared by all of them."""

    tokens: tuple[int, ...]
    rows: int


class SlotForward(Protocol):
    """Forward passes over slots with a KV cache of their own; the weights are the model's."""

    def step(self, tokens: Tensor, positions: Tensor, active: int, prompts: Sequence[NewPrompt]) -> Tensor:
        """One token further in rows 0..n-1, and prompts into the rows after them.

        Args:
            tokens, positions: [n], the last token of each running row and its position.
            active: largest position + 1.

        Returns:
            Final hidden states [rows, hidden] of each row's last token, new rows included; more rows may follow that
            mean nothing.
        """
        ...

    def ensure(self, length: int) -> None:
        """Rows of up to `length` tokens fit afterwards; what is stored stays."""
        ...

    def move(self, source: Tensor, target: Tensor, active: int) -> None:
        """Copy the first `active` entries of rows `source` onto rows `target`."""
        ...

    def save(self, rows: int, active: int) -> Sequence[Tensor]:
        """Copies of the first `active` entries of rows 0..rows-1."""
        ...

    def restore(self, saved: Sequence[Tensor]) -> None:
        """Put back what `save` returned."""
        ...


class ModuleForward:
    """Implements `SlotForward` with the forward pass of the Hugging Face model."""

    def __init__(self, model: Model, slots: int, length: int) -> None:
        self._model = model
        self._cache = SlotCache(model.config, slots, length, next(model.parameters()))

    def step(self, tokens: Tensor, positions: Tensor, active: int, prompts: Sequence[NewPrompt]) -> Tensor:
        parts = [self._decode(tokens, positions, active)] if len(tokens) else []
        if prompts:
            parts.append(self._prefill(len(tokens), prompts, tokens.device))
        return torch.cat(parts)

    def _decode(self, tokens: Tensor, positions: Tensor, active: int) -> Tensor:
        self._cache.decode(positions, active)
        seen = torch.arange(active, device=positions.device) <= positions.unsqueeze(1)
        hidden = hidden_states(
            self._model,
            input_ids=tokens.unsqueeze(1),
            position_ids=positions.unsqueeze(1),
            attention_mask=seen[:, None, None],
            past_key_values=self._cache,
            use_cache=True,
        )
        return hidden[:, 0]

    def _prefill(self, first: int, prompts: Sequence[NewPrompt], device: torch.device) -> Tensor:
        tokens, last, repeats = padded(prompts, device)
        count, width = tokens.shape
        self._cache.prefill(first, repeats, width)
        hidden = hidden_states(
            self._model,
            input_ids=tokens,
            position_ids=torch.arange(width, device=device).expand(count, width),
            attention_mask=torch.ones(width, width, dtype=torch.bool, device=device).tril().expand(count, 1, -1, -1),
            past_key_values=self._cache,
            use_cache=True,
        )
        return hidden[torch.arange(count, device=device), last].repeat_interleave(repeats, dim=0)

    def ensure(self, length: int) -> None:
        self._cache.ensure(length)

    def move(self, source: Tensor, target: Tensor, active: int) -> None:
        for stored in self._cache.stored:
            stored[target, :, :active] = stored[source, :, :active]

    def save(self, rows: int, active: int) -> Sequence[Tensor]:
        return [stored[:rows, :, :active].clone() for stored in self._cache.stored]

    def restore(self, saved: Sequence[Tensor]) -> None:
        rows, _, active, _ = saved[0].shape
        self.ensure(active)
        for stored, copy in zip(self._cache.stored, saved, strict=True):
            stored[:rows, :, :active] = copy


def padded(prompts: Sequence[NewPrompt], device: torch.device, multiple: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids [prompts, width] padded on the right, where causality hides it; last positions and rows, [prompts]."""
    width = max(len(prompt.tokens) for prompt in prompts)
    width += -width % multiple
    tokens = torch.tensor([[*prompt.tokens, *[0] * (width - len(prompt.tokens))] for prompt in prompts], device=device)
    last = torch.tensor([len(prompt.tokens) - 1 for prompt in prompts], device=device)
    return tokens, last, torch.tensor([prompt.rows for prompt in prompts], device=device)
